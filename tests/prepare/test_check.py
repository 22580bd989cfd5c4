"""``--check``: what it compares with, and where its results go."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from powerclip.config import PrepareConfig
from powerclip.data.loader import open_data
from powerclip.data.sample import Sample
from powerclip.data.shards import is_unfinished, read_shards, write_shards
from powerclip.errors import RunFailedError
from powerclip.prepare import prepare
from powerclip.prepare.check import check
from tests.support.images import one_colour
from tests.support.sources import FULL, WHOLE, pairs, picture
from tests.support.tars import npy, write_tar


def printed(path, **options):
    text = io.StringIO()
    return check(path, console=Console(file=text, width=200), **options), text.getvalue()


@pytest.fixture
def out(tmp_path):
    prepare(
        "scenes:train",
        tmp_path / "out",
        PrepareConfig(count=12, samples_per_shard=4),
        console=Console(file=io.StringIO()),
    )
    return tmp_path / "out"


def test_a_finished_shard_that_is_gone_is_a_failure(out):
    assert printed(out)[0]["missing"] == 0
    (out / "shard-000001.tar").unlink()
    with pytest.raises(RunFailedError, match=r"4 of the 12 samples that .*report.json counts are missing; the command"):
        printed(out)
    assert json.loads((out / "check.json").read_text())["missing"] == 4
    assert printed(out / "shard-000000.tar")[0]["samples"] == 4  # one shard alone is compared with nothing


@pytest.mark.parametrize("report", [None, '{"samples": 8, "unfinished_shards": 1}'])
def test_what_a_job_left_half_made_is_not_taken_for_all(report, out):
    assert not is_unfinished(out)
    (out / "shard-000002.tar").unlink()
    (out / "report.json").unlink() if report is None else (out / "report.json").write_text(report)
    with pytest.raises(RunFailedError, match=r"the prepare that makes .*out has not come to its end, .* run the same"):
        printed(out)
    with pytest.warns(UserWarning, match=r"the prepare that makes .*out has not come to its end; this takes what"):
        assert sum(open_data(out).counts) == 8
    shards = sorted(out.glob("*.tar"))
    assert not any(map(is_unfinished, shards))  # one shard is what it is


def test_characters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    sample = Sample(key="a", image=one_colour("red"), image_extension="png", caption=30 * "\u732b\U0001f408")
    write_shards([sample], tmp_path)
    assert printed(tmp_path)[0]["samples"] == 1  # a warning is an error here
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        dark = np.asarray(sheet.convert("L")) < 100
    assert dark.any(axis=0)[: sheet.width // 4].any()
    assert not dark.any(axis=0)[sheet.width // 4 :].any()  # the caption stays below its own image, of four in a row


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"samples": "many"}'])
def test_a_report_without_a_count_is_compared_with_nothing(report, out):
    (out / "report.json").write_text(report)
    assert printed(out)[0]["missing"] == 0


def test_results_of_a_pattern_are_written_next_to_its_first_shard(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "x.tar", pairs(2))
    found, text = printed(tmp_path / "{b,c}" / "*.tar")
    assert found["samples"] == 4
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["check.json", "contact_sheet.png", "x.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_some_samples_are_shown_unless_they_are_not_asked_for(out):
    text = printed(out)[1]
    assert "Of 12 captions, 0 (0%) are longer than the context of 77 tokens" in text
    assert "train-00000000: 64 x 64 pixels, " in text
    assert text.count("  phrases: '") == 3
    assert "Of 12 captions" not in printed(out, look=False)[1]


def test_results_that_cannot_be_written_are_printed(out):
    (out / "check.json").mkdir()
    result, text = printed(out)
    assert result["samples"] == 12
    assert f"Nothing written to {out}: [Errno" in text


def test_annotations_are_held_to_what_prepare_holds_them_to(tmp_path):
    files = {
        "a": ("regions.json", json.dumps({**WHOLE, "masks": [FULL] * 9 + [{"rle": "\\4"}]}).encode()),
        "b": ("regions.json", json.dumps({**WHOLE, "height": 8}).encode()),
        "c": ("phrases.json", b'{"leaves":[[0,9]],"phrases":[]}'),
        "d": ("samlens.npy", npy([1])),
        "e": ("regions.json", json.dumps({**WHOLE, "masks": [FULL]}).encode()),
    }
    members = [(f"{k}.{e}", d) for k, file in files.items() for e, d in (("jpg", picture()), ("txt", b"a dog"), file)]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(RunFailedError, match="4 of 5 samples cannot be used"):
        printed(tmp_path / "x.tar")
    found = json.loads((tmp_path / "check.json").read_text())
    assert set(found["bad"]) == {
        "malformed regions.json", "regions and image differ in size", "phrases reach beyond the caption",
        "samlens.npy without samcat.npy",
    }  # fmt: skip
    assert found["measures"]["regions"]["max"] == 1


def test_check_reports_what_the_shards_hold(tmp_path):
    prepare("scenes:train", tmp_path / "out", PrepareConfig(count=40, samples_per_shard=10))
    found, text = printed(tmp_path / "out", workers=2)
    samples = list(read_shards(tmp_path / "out"))
    assert found["samples"] == 40 and found["shards"] == 4 and not found["bad"]
    assert found["measures"]["phrases"]["mean"] == sum(len(s.tree.phrases) for s in samples) / 40
    assert found["measures"]["regions"]["max"] == max(len(s.regions.rles) for s in samples)
    assert "40 samples in 4 shards, 0 bad" in text
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.convert("RGB").getcolors(2**24)) > 100


def test_check_finds_what_is_not_valid(tmp_path):
    prepare("scenes:train", tmp_path / "out", PrepareConfig(count=20, samples_per_shard=10))
    first, second = sorted((tmp_path / "out").glob("*.tar"))
    first.write_bytes(first.read_bytes().replace(b'"leaves":[[0,', b'"leaves":[[9,', 1))
    second.write_bytes(second.read_bytes()[:3000])
    with pytest.raises(RunFailedError, match="1 of 2 shards are broken: .*shard-000001.tar is truncated or not a tar"):
        printed(tmp_path / "out")
    second.unlink()
    for name in ("report.json", ".source.json"):  # as a folder of other shards
        (tmp_path / "out" / name).unlink()
    with pytest.raises(RunFailedError, match="1 of 10 samples cannot be used; most often: malformed phrases.json"):
        printed(tmp_path / "out")
