import dataclasses
import io
import struct
import zlib

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.tv_tensors import Mask

import powerclip
from powerclip.data.images import decode_image
from powerclip.errors import BadSampleError
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


@pytest.mark.parametrize("config", [RESIZING[name] for name in ("shortest", "squash", "oblong, shortest")])
@pytest.mark.parametrize("size", [(1, 250), (251, 1), (2, 250), (501, 2)])
def test_an_extreme_image_looks_as_open_clip_s_and_its_masks_move_along(model, config, size):
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    model.backbone.visual.preprocess_cfg = dataclasses.asdict(PreprocessCfg(**config))
    train, evaluate = make_transforms(model, crop="none")
    image = Image.effect_noise(size, 90).convert("RGB")
    masks = Mask(torch.ones(2, size[1], size[0], dtype=torch.uint8))
    seen, moved = evaluate(image, masks)
    torch.testing.assert_close(seen, theirs(image), rtol=1e-6, atol=1e-6)
    assert torch.equal(moved, torch.ones(2, *config["size"]))
    assert train(image).shape == (3, *config["size"])


@pytest.mark.parametrize("config", RESIZING.values(), ids=RESIZING.keys())
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_an_extreme_image_takes_little_memory(model, config, size, monkeypatch):
    largest, resize = [0], Image.Image.resize

    def measured(image, size, *arguments, **options):
        between = size[0] * image.height  # Pillow makes an image wide first, then high
        largest[0] = max(largest[0], size[0] * size[1], between)
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", measured)
    model.backbone.visual.preprocess_cfg = dataclasses.asdict(PreprocessCfg(**config))
    for transform in make_transforms(model, crop="none"):
        assert transform(Image.new("RGB", size)).shape == (3, *config["size"])
    assert 0 < largest[0] < 200_000


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def phone_photo():
    image = Image.new("RGB", (64, 64), (220, 20, 20))
    image.paste((20, 20, 220), (32, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return encoded(image, "JPEG", exif=exif)


def sixteen_bits():
    ramp = np.broadcast_to(np.linspace(0, 65535, 64).astype(np.uint16), (64, 64))
    return encoded(Image.fromarray(np.ascontiguousarray(ramp)), "PNG")


def see_through():
    return encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG")


def palette():
    image = Image.effect_noise((90, 70), 90).convert("P")
    return encoded(image, "GIF", transparency=int(np.array(image)[0, 0]))


@pytest.mark.parametrize("data", [phone_photo(), sixteen_bits(), see_through(), palette()])
def test_an_image_is_seen_as_in_training(data):
    preprocess = make_transforms(tiny_model())[1]
    image = Image.open(io.BytesIO(data))
    assert torch.equal(preprocess(image), preprocess(decode_image(data)))
    assert Image.open(io.BytesIO(data)).info == image.info  # the caller's image stays as it was


def with_a_transparent_colour():
    """Stored with 16 bits for each colour, which no library here writes."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    colour = struct.pack(">HHH", 65535, 300, 7)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(8 * (b"\0" + 8 * colour))
    chunks = [chunk(b"IHDR", header), chunk(b"tRNS", colour), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("data", [phone_photo(), sixteen_bits(), see_through(), palette(), with_a_transparent_colour()])
def test_a_copy_of_an_image_is_seen_as_the_image(data):
    preprocess = make_transforms(tiny_model())[1]
    assert torch.equal(preprocess(Image.open(io.BytesIO(data)).copy()), preprocess(decode_image(data)))


def test_a_copy_without_a_range_of_values_is_refused():
    data = encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    preprocess = make_transforms(tiny_model())[1]
    with pytest.raises(BadSampleError, match="without a range of values"):
        preprocess(Image.open(io.BytesIO(data)).copy())


@pytest.mark.parametrize(("mode", "premultiplied"), [("LA", "La"), ("RGBA", "RGBa")])
def test_premultiplied_colours_are_seen(mode, premultiplied):
    preprocess = make_transforms(tiny_model())[1]
    image = Image.new(mode, (64, 64), (80, 255) if mode == "LA" else (80, 20, 10, 255))
    assert torch.equal(preprocess(image.convert(premultiplied)), preprocess(image))


@pytest.mark.parametrize(
    "given", [np.zeros((9, 9, 3), np.uint8), torch.zeros(3, 9, 9), "a.jpg", b"a", None, [Image.new("RGB", (9, 9)), 3]]
)
def test_what_is_no_image_is_refused(given):
    for transform in make_transforms(tiny_model()):
        with pytest.raises(TypeError, match=r"^got (ndarray|Tensor|str|bytes|NoneType|int); expected a PIL image"):
            transform(given)


def test_the_interpolation_of_the_weights_is_used_in_training(model):
    image = Image.effect_noise((31, 50), 90).convert("RGB")
    seen = []
    for interpolation in ("bicubic", "bilinear"):
        config = PreprocessCfg(size=(24, 24), interpolation=interpolation, resize_mode="squash")
        model.backbone.visual.preprocess_cfg = dataclasses.asdict(config)
        train, evaluate = make_transforms(model, crop="none")
        assert torch.equal(train(image), evaluate(image))
        seen.append(train(image))
    assert not torch.equal(*seen)


def test_an_unknown_interpolation_is_named(model, monkeypatch):
    config = {**model.backbone.visual.preprocess_cfg, "interpolation": "nearest"}
    monkeypatch.setattr(model.backbone.visual, "preprocess_cfg", config)
    with pytest.raises(ValueError, match="interpolation is 'nearest'; it must be one of bicubic, bilinear, random"):
        make_transforms(model)


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
