"""SAM and SAM 2 with small random weights of the real classes, through the real pipeline."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from powerclip.data.shards import read_shards
from powerclip.prepare import prepare
from powerclip.regions import RegionAnnotation
from powerclip.regions.proposers import load_proposer
from powerclip.regions.sam import SAM

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and numpy's own

EVERYTHING = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0}
"""Random weights are not sure of anything; so nothing is filtered."""

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


def test_masks_lie_in_the_pixels_of_each_image(checkpoint):
    found = SAM(str(checkpoint), device="cpu", **EVERYTHING).propose([picture(), picture(100, 150)])
    assert [annotation.masks.shape[1:] for annotation in found] == [(48, 64), (150, 100)]
    assert all(len(annotation.masks) > 0 for annotation in found)
    for annotation in found:
        assert list(annotation.scores) == sorted(annotation.scores, reverse=True)
        assert annotation.proposer == f"sam:{checkpoint}"
        read = RegionAnnotation.from_json(annotation.to_json())
        np.testing.assert_array_equal(read.masks, annotation.masks)


def test_an_image_in_which_nothing_is_found_has_no_regions(checkpoint):
    (found,) = SAM(str(checkpoint), device="cpu", pred_iou_thresh=1e9).propose([picture()])
    assert found.masks.shape == (0, 48, 64)


def test_prepare_takes_a_local_folder(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("noise")
    report = prepare(tmp_path / "photos", tmp_path / "shards", regions=f"sam:{checkpoint}", device="cpu")
    (sample,) = read_shards(tmp_path / "shards")
    assert sample.regions["proposer"] == report["proposer"] == load_proposer(f"sam:{checkpoint}", device="cpu").name
