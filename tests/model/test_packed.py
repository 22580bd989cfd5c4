import pytest
import torch
from safetensors.torch import load_file, save_file

import powerclip
from powerclip.errors import PowerclipError
from powerclip.files import SUMS, checksums
from powerclip.model import pack, save
from powerclip.model.packed import PRESENT
from tests.support.models import write_tiny


@pytest.fixture
def packed(tmp_path):
    """A model that knows ten words, and its packed folder."""
    model = powerclip.create_model(write_tiny(tmp_path))
    embeddings = model.backbone.token_embedding.weight
    with torch.no_grad():
        embeddings[10:] = 0
    return model, save(model, tmp_path / "packed", state=pack(model.state_dict()))


def test_a_packed_model_is_the_model_in_half_precision(packed, tmp_path):
    model, folder = packed
    loaded = powerclip.load(folder)[0].state_dict()
    started = powerclip.create_model(write_tiny(tmp_path), pretrained=str(folder)).state_dict()
    assert loaded.keys() == started.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value.half().to(value.dtype))
        assert torch.equal(started[name], loaded[name])
    stored = load_file(folder / "model.safetensors")
    assert stored["backbone.token_embedding.weight"].shape == (10, 16)
    assert (folder / "model.safetensors").stat().st_size < 150_000


def test_rows_that_are_missing_are_noticed(packed):
    _, folder = packed
    state = load_file(folder / "model.safetensors")
    state["backbone.token_embedding.weight" + PRESENT][20] = True
    save_file(state, folder / "model.safetensors")
    (folder / SUMS).write_text(checksums(folder))
    with pytest.raises(PowerclipError, match="token_embedding.weight has other rows than it holds"):
        powerclip.load(folder)
