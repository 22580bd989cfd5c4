"""SAM and SAM 2 with small random weights of the real classes, through the real pipeline."""

import io
import json

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
from powerclip.regions.masks import masks_at_size, shrink_to
from powerclip.regions.sam import GPU_POINTS, LONGEST_SIDE, POINTS, SAM

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and numpy's own

EVERYTHING = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "points_per_crop": 8}
"""Random weights are not sure of anything; so nothing is filtered, and 8 x 8 points are enough."""

PROMPTS = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
}


def sam(folder):
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        "output_channels": 16, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 2, "num_pos_feats": 8,
    }  # fmt: skip
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    transformers.SamModel(config).save_pretrained(folder)
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
    transformers.Sam2Model(config).save_pretrained(folder)
    transformers.Sam2ImageProcessorFast(
        size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}
    ).save_pretrained(folder)


@pytest.fixture(scope="module", params=[sam, sam2], ids=["sam", "sam2"])
def checkpoint(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    return folder


def picture(width=64, height=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def test_masks_are_in_the_pixels_of_the_image(checkpoint):
    proposer = SAM(str(checkpoint), device="cpu", **EVERYTHING)
    for image in (picture(), picture(100, 150)):
        annotation = proposer.propose(image)
        assert annotation.masks().shape[1:] == (image.height, image.width)
        assert len(annotation.rles) > 0
        assert list(annotation.scores) == sorted(annotation.scores, reverse=True)
        assert annotation.proposer == f"sam:{checkpoint}"
        assert RegionAnnotation.from_json(annotation.to_json()) == annotation


@pytest.mark.parametrize("points", [16, 32])
def test_the_points_at_once_change_no_mask(checkpoint, points):
    some = SAM(str(checkpoint), device="cpu", points_per_batch=points, **EVERYTHING).propose(picture())
    usual = SAM(str(checkpoint), device="cpu", **EVERYTHING).propose(picture())
    np.testing.assert_array_equal(some.masks(), usual.masks())


def test_a_large_image_is_seen_in_a_smaller_copy(checkpoint):
    assert LONGEST_SIDE == 1024
    large = picture(200, 150)
    proposer = SAM(str(checkpoint), device="cpu", longest_side=64, **EVERYTHING)
    full, small = proposer.propose(large), proposer.propose(shrink_to(large, 64))
    assert small.masks().shape[1:] == (48, 64)
    assert len(small.rles) > 0
    np.testing.assert_array_equal(full.masks(), masks_at_size(small.masks(), large))


def test_bf16_gives_masks_too(checkpoint):
    """A GPU's default, run here on the CPU: the pipeline removes duplicates on the CPU in either case."""
    exact = {}
    for dtype in (torch.float32, torch.bfloat16):
        annotation = SAM(str(checkpoint), device="cpu", dtype=dtype, **EVERYTHING).propose(picture())
        assert len(annotation.rles) > 0
        assert annotation.masks().any(axis=(1, 2)).all()
        scores = torch.tensor(annotation.scores)
        exact[dtype] = torch.equal(scores.bfloat16().float(), scores)
    assert exact == {torch.float32: False, torch.bfloat16: True}  # it is bf16 that was computed in


def test_a_gpu_takes_bf16_and_more_points(checkpoint):
    gpu, cpu = (SAM(str(checkpoint), device=device) for device in ("cuda:0", "cpu"))
    assert (gpu.dtype, gpu.points_per_batch) == (torch.bfloat16, GPU_POINTS)
    assert (cpu.dtype, cpu.points_per_batch) == (torch.float32, POINTS)
    assert SAM(str(checkpoint), device="cuda", dtype=torch.float32, points_per_batch=8).points_per_batch == 8
    assert [1024 % points for points in (POINTS, GPU_POINTS)] == [0, 0]


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1)])
def test_a_picture_on_its_side_has_the_regions_of_the_upright_one(checkpoint, orientation, turns):
    stored, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    picture().save(stored, "JPEG", exif=exif)
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(stored)), turns))
    proposer = SAM(str(checkpoint), device="cpu", **EVERYTHING)
    turned, expected = proposer.propose(decode_image(stored.getvalue())), proposer.propose(upright)
    assert turned.masks().shape[1:] == (upright.height, upright.width)
    assert len(turned.rles) > 0
    assert turned == expected


def test_a_model_is_named_without_its_weights(checkpoint, tmp_path):
    """Only what proposes needs them; a wrong name is still reported at once."""
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    proposer = load_proposer(f"sam:{tmp_path}", device="cpu")
    assert proposer.name == f"sam:{tmp_path}"
    with pytest.raises(PowerclipError, match="^cannot load the SAM model .*; give a hub name or the folder of a SAM"):
        proposer.propose(picture())


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"model_type": "sam", "vision_config": 3}', '{"model_type": "?"}'])
def test_what_is_not_a_model_is_reported_in_one_line(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(PowerclipError, match=r"^cannot load the SAM model .*; give a hub name") as error:
        SAM(str(tmp_path))
    assert "\n" not in str(error.value)


def test_another_model_is_refused_by_its_type(tmp_path):
    transformers.CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(PowerclipError, match="its type, clip, does not generate masks"):
        SAM(str(tmp_path))


def test_an_image_in_which_nothing_is_found_has_no_regions(checkpoint):
    annotation = SAM(str(checkpoint), device="cpu", pred_iou_thresh=1e9).propose(picture())
    assert annotation.masks().shape == (0, 48, 64)


def test_prepare_takes_a_local_folder(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("noise")
    report = prepare(tmp_path / "photos", tmp_path / "shards", PrepareConfig(regions=f"sam:{checkpoint}", device="cpu"))
    (sample,) = read_shards(tmp_path / "shards")
    assert sample.regions.proposer == load_proposer(f"sam:{checkpoint}", device="cpu").name
    assert report["proposer"] == {sample.regions.proposer: 1}
