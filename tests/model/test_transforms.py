import dataclasses

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.tv_tensors import Mask

import powerclip
from powerclip.model import make_transforms
from tests.support.models import tiny_model


def test_transforms_keep_an_image_of_the_right_size():
    model = powerclip.create_model("tiny")
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    train, evaluate = make_transforms(model)
    pixels = torch.from_numpy(np.array(image)).float().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD))
    torch.testing.assert_close(evaluate(image), (pixels - mean[:, None, None]) / std[:, None, None])
    assert train(image).shape == (3, 64, 64)


RESIZING = {
    "shortest": {"size": (24, 24)},
    "bilinear": {"size": (24, 24), "interpolation": "bilinear"},
    "squash": {"size": (24, 24), "resize_mode": "squash"},
    "longest": {"size": (24, 24), "resize_mode": "longest", "fill_color": 7},
    "oblong, longest": {"size": (16, 40), "resize_mode": "longest"},
    "oblong, shortest": {"size": (16, 40)},
}


@pytest.fixture(scope="module")
def model():
    return powerclip.create_model("tiny")


@pytest.mark.parametrize("config", RESIZING.values(), ids=RESIZING.keys())
@pytest.mark.parametrize("size", [(50, 31), (31, 50), (24, 24), (13, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_evaluation_transform_is_open_clip_s_and_moves_masks(model, config, size, mode):
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    model.backbone.visual.preprocess_cfg = dataclasses.asdict(PreprocessCfg(**config))
    ours = make_transforms(model)[1]
    image = Image.effect_noise(size, 90).convert(mode)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-6, atol=1e-6)
    white = Image.new("RGB", size, "white")
    half = np.zeros((2, size[1], size[0]), dtype=np.uint8)
    half[0, :, size[0] // 2 :] = 1
    half[1] = 1
    moved, masks = ours(white, Mask(torch.from_numpy(half)))
    assert torch.equal(ours(Mask(torch.from_numpy(half))), masks)
    # Where the mask of all shows the image, and only there, the image is white; edges are interpolated.
    inside = (moved - moved.amax(dim=(1, 2), keepdim=True)).abs().amax(dim=0) < 1e-6
    assert torch.equal(masks[1].bool(), inside)
    edge = masks[0].any(dim=0).int().argmax() / masks.shape[2]
    columns = inside.any(dim=0).nonzero()
    middle = (columns[0] + columns[-1] + 1) / 2 / masks.shape[2]
    assert abs(edge - middle).item() < 2 / masks.shape[2] + 1 / size[0]


def test_the_training_transform_is_open_clip_s():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    config = PreprocessCfg(**tiny_model().backbone.visual.preprocess_cfg)
    torch.manual_seed(3)
    theirs = image_transform_v2(config, is_train=True)(image)
    torch.manual_seed(3)
    ours = make_transforms(tiny_model())[0](image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert type(ours) is torch.Tensor
    assert ours.shape == (3, 64, 64)
