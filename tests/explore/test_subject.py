import json

import pytest
from safetensors.torch import save_file

import powerclip
from powerclip.config import ExploreConfig
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.explore import subject
from powerclip.explore.subject import find_subject, open_image
from powerclip.model import save
from tests.support.images import one_colour
from tests.support.models import write_tiny
from tests.support.pretrained import SMALL, theirs_of
from tests.support.runs import own_data, record_data

CPU = ExploreConfig(device="cpu")


def test_a_run_is_shown_with_its_own_pairs_and_a_model_folder_with_scenes(tmp_path):
    run = tmp_path / "mine"
    save(powerclip.create_model(write_tiny(tmp_path)), run / "model")
    record_data(run, own_data(tmp_path / "data", "a dog", "a cat"))
    found = find_subject(str(run), CPU)
    assert (found.name, found.aligned, [pair.caption for pair in found.pairs]) == ("mine", True, ["a dog", "a cat"])
    found = find_subject(str(run / "model"), CPU)
    assert len(found.pairs) == 6


def test_a_model_of_open_clip_is_not_taken_to_know_phrases(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    save_file(theirs_of(SMALL).state_dict(), tmp_path / "weights.safetensors")
    found = find_subject(
        str(tmp_path / "small.json"), ExploreConfig(device="cpu", pretrained=str(tmp_path / "weights.safetensors"))
    )
    assert found.aligned is False
    assert found.dense is not None
    vector = found.vector_of("a dog")
    assert vector.norm().item() == pytest.approx(1.0)
    assert found.encoder.known == {}
    with pytest.raises(PowerclipError, match="--pretrained openai needs the model's name"):
        find_subject(None, ExploreConfig(pretrained="openai"))


def test_what_is_opened_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(one_colour("red", size=(30, 20)))
    assert open_image(tmp_path / "a.png").size == (30, 20)
    monkeypatch.setattr("powerclip.data.images.MAX_PIXELS", 599)
    with pytest.raises(BadSampleError, match="image too large"):
        open_image(tmp_path / "a.png")
    monkeypatch.setattr(subject, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(BadSampleError, match="file of more than 0 MiB"):
        open_image(tmp_path / "a.png")
