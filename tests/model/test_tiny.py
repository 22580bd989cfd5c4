import pytest
import torch

import powerclip
from powerclip.model import load, save


@pytest.mark.parametrize(("name", "side"), [("tiny-conv", 2), ("tiny-local", 3)])
def test_patches_are_convolutional_and_no_image_depends_on_its_batch(name, side):
    model = powerclip.create_model(name).eval()
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model.encode_patches(image[None]) for image in images])
    torch.testing.assert_close(model.train().encode_patches(images), alone, rtol=0, atol=1e-5)
    assert alone.shape == (3, model.grid_size[0] * model.grid_size[1], 96)
    moved = images.clone()
    moved[0, :, 7, 7] += 1.0  # the last pixel of the first patch, which its neighbours' convolutions see too
    stem = model.backbone.visual.trunk.patch_embed
    changed = (stem(moved[:1]) != stem(images[:1])).any(dim=-1)[0]
    assert changed.view(model.grid_size).nonzero().tolist() == [[i, j] for i in range(side) for j in range(side)]


@pytest.mark.parametrize("name", ["tiny", "tiny-conv", "tiny-local"])
def test_of_a_size_that_patches_do_not_divide_the_rest_is_not_seen(name, tmp_path):
    save(powerclip.create_model(name, image_size=48), tmp_path)
    whole = powerclip.create_model(pretrained=str(tmp_path)).eval()
    model = powerclip.create_model(pretrained=str(tmp_path), image_size=50).eval()
    assert model.grid_size == whole.grid_size == (6, 6)
    images = torch.randn(2, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.encode_patches(images), whole.encode_patches(images[..., :48, :48]))
    assert model.encode_regions(images, torch.ones(2, 1, 36, dtype=torch.bool))[1].all()


@pytest.mark.parametrize("name", ["tiny-conv", "tiny-local"])
def test_it_is_saved_and_resized_as_any_other(name, tmp_path):
    model = powerclip.create_model(name, image_size=64).eval()
    assert model.grid_size == (8, 8)
    save(model, tmp_path / "m")
    again, _, _ = load(tmp_path / "m")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.encode_image(images), model.encode_image(images))
