"""SAM and SAM 2 with small random weights of the real classes."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from powerclip.config import PrepareConfig
from powerclip.data.images import decode_image
from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError
from powerclip.prepare import prepare
from powerclip.regions import RegionAnnotation, load_proposer
from powerclip.regions import sam as regions_sam
from powerclip.regions.masks import annotate, masks_at_size, shrink_to
from powerclip.regions.sam import GPU_IMAGES, GPU_POINTS, IMAGES, POINTS, SAM, SAM_MODELS, MaskChoice

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and numpy's own

EVERYTHING = MaskChoice(points_per_side=8, min_score=-9.0, min_stability=-1.0, max_box_iou=1.0)
"""Random weights are not sure of anything; so nothing is filtered, and 8 x 8 points are enough."""

PROMPTS = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}


def loud(model):
    """A model whose logits are beyond 1 and -1 in places, so that some of its masks are stable and others are not."""
    with torch.no_grad():
        for part in (model.mask_decoder.output_hypernetworks_mlps, model.mask_decoder.upscale_conv2):
            for parameter in part.parameters():
                parameter.mul_(30)
    return model


def sam(folder):
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        "output_channels": 16, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 2, "num_pos_feats": 8,
    }  # fmt: skip
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    loud(transformers.SamModel(config)).save_pretrained(folder)
    transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(folder)  # fmt: skip


def sam2(folder):
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [8, 8, 8, 8],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 16, "num_feature_levels": 3,
    }  # fmt: skip
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    loud(transformers.Sam2Model(config)).save_pretrained(folder)
    transformers.Sam2ImageProcessorFast(
        size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}
    ).save_pretrained(folder)


def sam2_video(folder):
    """The form in which SAM 2 is published: the model of videos, of which that of images is a part."""
    sam2(folder)
    config = transformers.Sam2VideoConfig(**{
        part: json.loads((folder / "config.json").read_text())[part]
        for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    })  # fmt: skip
    config.save_pretrained(folder)


@pytest.fixture(scope="module", params=[sam, sam2, sam2_video], ids=["sam", "sam2", "sam2_video"])
def checkpoint(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    return folder


def picture(width=64, height=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def proposer(folder, **options):
    return SAM(str(folder), device="cpu", **{"choice": EVERYTHING, **options})


def test_masks_are_in_the_pixels_of_the_image(checkpoint):
    for image in (picture(), picture(100, 150)):
        (annotation,) = proposer(checkpoint).propose([image])
        assert annotation.masks().shape[1:] == (image.height, image.width)
        assert len(annotation.rles) > 10
        assert list(annotation.scores) == sorted(annotation.scores, reverse=True)
        assert annotation.proposer == f"sam:{checkpoint}"
        assert RegionAnnotation.from_json(annotation.to_json()) == annotation


@pytest.mark.parametrize("max_box_iou", [0.7, 1.0])
def test_masks_are_those_of_transformers_pipeline(max_box_iou, checkpoint):
    """But for SAM 2 and images that are not square: of what it sees of them, the pipeline's points miss a part."""
    second = checkpoint.name.startswith("sam2")
    score = 0.5 if second else 1e-12  # that of about half the masks is above
    choice = replace(EVERYTHING, min_score=score, min_stability=0.3, max_box_iou=max_box_iou)
    generate = transformers.pipeline("mask-generation", model=str(checkpoint), device="cpu", dtype=torch.float32)
    settings = {"pred_iou_thresh": score, "stability_score_thresh": 0.3, "crops_nms_thresh": max_box_iou}
    for size in [(64, 64), (48, 48)] if second else [(64, 64), (64, 48), (100, 150)]:
        image = picture(*size)
        theirs = generate(image, points_per_batch=16, points_per_crop=8, **settings)
        (found,) = proposer(checkpoint, choice=choice).propose([image])
        masks = np.stack([np.asarray(mask) for mask in theirs["masks"]])
        expected = annotate(masks, theirs["scores"].tolist(), image, proposer=found.proposer)
        assert found.rles == expected.rles
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        assert len(masks) > (5 if max_box_iou == 1.0 else 0)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_the_points_cover_what_the_model_sees_of_an_image(size, checkpoint, monkeypatch):
    """SAM pads below and at the right, SAM 2 stretches: to 64 x 64 pixels both."""
    sam = proposer(checkpoint)
    model, asked = sam.loaded[0], []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **x: asked.append(x["input_points"]) or forward(**x))
    sam.propose([picture(*size)])
    points = torch.cat(asked, dim=1)[0, :, 0]
    seen = torch.tensor(size if checkpoint.name.startswith("sam0") else (64, 64))
    assert points.shape == (64, 2)
    torch.testing.assert_close(points.amin(0), seen / 16)
    torch.testing.assert_close(points.amax(0), seen - seen / 16)


@pytest.mark.parametrize("options", [{"points_per_batch": 7}, {"points_per_batch": 1}, {"points_per_batch": 1000}])
def test_images_and_points_at_once_change_no_mask(options, checkpoint):
    """Up to rounding, which a logit of nearly 0 could turn; none of these is so near."""
    images = [picture(), picture(100, 150), picture(33, 7)]
    together = proposer(checkpoint, **options).propose(images)
    for found, image in zip(together, images, strict=True):
        (alone,) = proposer(checkpoint).propose([image])
        assert found.rles == alone.rles
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


def test_a_large_image_is_seen_in_a_smaller_copy(checkpoint, monkeypatch):
    assert regions_sam.LONGEST_SIDE == 1024
    monkeypatch.setattr(regions_sam, "LONGEST_SIDE", 64)
    large = picture(200, 150)
    full, small = proposer(checkpoint).propose([large, shrink_to(large, 64)])
    assert small.masks().shape[1:] == (48, 64)
    assert len(small.rles) > 0
    np.testing.assert_array_equal(full.masks(), masks_at_size(small.masks(), large))


def test_bf16_gives_masks_too(checkpoint):
    """A GPU's default, run here on the CPU."""
    exact = {}
    for dtype in (torch.float32, torch.bfloat16):
        annotation, _ = proposer(checkpoint, dtype=dtype).propose([picture(), picture(100, 150)])
        assert len(annotation.rles) > 0
        assert annotation.masks().any(axis=(1, 2)).all()
        scores = torch.tensor(annotation.scores)
        exact[dtype] = torch.equal(scores.bfloat16().float(), scores)
    assert exact == {torch.float32: False, torch.bfloat16: True}  # it is bf16 that was computed in


def test_a_gpu_takes_bf16_and_more_at_once(checkpoint, monkeypatch):
    monkeypatch.setattr(regions_sam, "find_device", torch.device)  # there need not be one here
    gpu, cpu = (SAM(str(checkpoint), device=device) for device in ("cuda:0", "cpu"))
    assert (gpu.dtype, gpu.batch_size, gpu.points_per_batch) == (torch.bfloat16, GPU_IMAGES, GPU_POINTS)
    assert (cpu.dtype, cpu.batch_size, cpu.points_per_batch) == (torch.float32, IMAGES, POINTS)
    own = SAM(str(checkpoint), device="cuda", dtype=torch.float32, batch_size=2, points_per_batch=8)
    assert (own.dtype, own.batch_size, own.points_per_batch) == (torch.float32, 2, 8)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1)])
def test_a_picture_on_its_side_has_the_regions_of_the_upright_one(checkpoint, orientation, turns):
    stored, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    picture().save(stored, "JPEG", exif=exif)
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(stored)), turns))
    turned, expected = (
        proposer(checkpoint).propose([image])[0] for image in (decode_image(stored.getvalue()), upright)
    )  # fmt: skip
    assert turned.masks().shape[1:] == (upright.height, upright.width)
    assert len(turned.rles) > 0
    assert turned == expected


def test_a_model_is_named_without_its_weights(checkpoint, tmp_path):
    """Only what proposes needs them; a wrong name is still reported at once."""
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    unloaded = load_proposer(f"sam:{tmp_path}", device="cpu")
    assert unloaded.name == f"sam:{tmp_path}"
    with pytest.raises(PowerclipError, match="^cannot load the SAM model .*; give a hub name or the folder of a SAM"):
        unloaded.propose([picture()])


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"model_type": "sam", "vision_config": 3}', '{"model_type": "?"}'])
def test_what_is_not_a_model_is_reported_in_one_line(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(PowerclipError, match=r"^cannot load the SAM model .*; give a hub name") as error:
        SAM(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [transformers.CLIPConfig, transformers.SamHQConfig])
def test_another_model_is_refused_by_its_type(config, tmp_path):
    config().save_pretrained(tmp_path)
    with pytest.raises(PowerclipError, match=f"its type, {config.model_type}, is not one of SAM or SAM 2"):
        SAM(str(tmp_path))


def test_an_image_in_which_nothing_is_found_has_no_regions(checkpoint):
    (annotation,) = proposer(checkpoint, choice=MaskChoice(min_score=1e9)).propose([picture()])
    assert annotation.masks().shape == (0, 48, 64)


def test_prepare_takes_a_local_folder(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("noise")
    report = prepare(tmp_path / "photos", tmp_path / "shards", PrepareConfig(regions=f"sam:{checkpoint}", device="cpu"))
    (sample,) = read_shards(tmp_path / "shards")
    assert sample.regions.proposer == load_proposer(f"sam:{checkpoint}", device="cpu").name
    assert report["proposer"] == {sample.regions.proposer: 1}


@pytest.mark.parametrize("name", SAM_MODELS)
def test_models_have_short_names(name, checkpoint, monkeypatch):
    """Which are those of the hub; what is there is a local model here."""
    from transformers import AutoConfig

    real, asked = AutoConfig.from_pretrained, []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **x: asked.append(name) or real(checkpoint, **x))
    assert load_proposer(name).name == f"sam:{SAM_MODELS[name]}"
    assert asked == [SAM_MODELS[name]]
    assert name.partition("-")[0].replace("sam2", "sam2.1") in asked[0]
