import pytest
import torch
from torch.nn.functional import normalize

from powerclip.model.pooling import SHORTEST, mean_of_valid, pool_leaves, pool_phrases, pool_regions


@pytest.mark.parametrize("norm", ["unit", "image"])
def test_regions_follow_their_definitions(norm):
    g = torch.Generator().manual_seed(0)
    patches, masks = torch.randn(3, 6, 4, generator=g, dtype=torch.float64), torch.rand(3, 5, 6, generator=g) < 0.4
    masks[1, 2] = False
    regions, present = pool_regions(patches, masks, norm=norm)
    for b in range(3):
        of_image = (sum(patches[b]) / 6).norm()
        for m in range(5):
            chosen = [patches[b, n] for n in range(6) if masks[b, m, n]]
            assert present[b, m] == bool(chosen)
            expected = torch.zeros(4, dtype=torch.float64)
            if chosen:
                expected = normalize(sum(chosen), dim=0) if norm == "unit" else sum(chosen) / len(chosen) / of_image
            torch.testing.assert_close(regions[b, m], expected, rtol=0, atol=1e-12)


def test_leaves_and_phrases_follow_their_definitions():
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    leaf_of_token = torch.tensor([[-1, 0, 0, 1, -1], [0, 1, 2, 2, 2]])
    spans = torch.tensor([[[0, 1], [1, 1], [-1, -1]], [[0, 2], [3, 4], [1, 1]]])
    leaves, leaf_mask = pool_leaves(tokens, leaf_of_token, leaves=5)
    own = {
        (b, leaf): normalize(sum(tokens[b, t] for t in range(5) if leaf_of_token[b, t] == leaf), dim=0)
        for b, leaf in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    }
    for b in range(2):
        for leaf in range(5):
            assert leaf_mask[b, leaf] == ((b, leaf) in own)
            expected = own.get((b, leaf), torch.zeros(3, dtype=torch.float64))
            torch.testing.assert_close(leaves[b, leaf], expected, rtol=0, atol=1e-12)
    for norm in ("sum", "mean", "unit"):
        phrases, present = pool_phrases(leaves, leaf_mask, spans, norm=norm)
        for b in range(2):
            for k in range(3):
                inside = [own[b, leaf] for leaf in range(spans[b, k, 0], spans[b, k, 1] + 1) if (b, leaf) in own]
                assert present[b, k] == bool(inside)
                expected = sum(inside) if inside else torch.zeros(3, dtype=torch.float64)
                if inside and norm == "mean":
                    expected = expected / len(inside)
                if inside and norm == "unit":
                    expected = normalize(expected, dim=0)
                torch.testing.assert_close(phrases[b, k], expected, rtol=0, atol=1e-12)


def test_patches_that_cancel_make_no_region_long_without_bound():
    patches = torch.tensor([[[1.0, 0.0], [-1.0, 1e-6]]])
    regions, _ = pool_regions(patches, torch.eye(2, dtype=torch.bool)[None], norm="image")
    torch.testing.assert_close(regions, patches / SHORTEST)


@pytest.mark.parametrize("norm", ["unit", "image"])
def test_without_masks_each_patch_is_a_region(norm):
    patches = torch.randn(2, 4, 3)
    regions, present = pool_regions(patches, None, norm=norm)
    expected, _ = pool_regions(patches, torch.eye(4, dtype=torch.bool).expand(2, -1, -1), norm=norm)
    torch.testing.assert_close(regions, expected)
    assert present.shape == (2, 4)
    assert present.all()


@pytest.mark.parametrize("norm", ["unit", "image"])
def test_what_is_absent_has_a_finite_zero_gradient(norm):
    patches = torch.zeros(1, 4, 3, requires_grad=True)
    regions, _ = pool_regions(patches, torch.zeros(1, 2, 4, dtype=torch.bool), norm=norm)
    leaves, leaf_mask = pool_leaves(patches, torch.full((1, 4), -1), leaves=2)
    phrases, _ = pool_phrases(leaves, leaf_mask, torch.full((1, 1, 2), -1), norm="unit")
    (regions.sum() + phrases.sum()).backward()
    assert (patches.grad == 0).all()


def test_normalisation_is_float32_under_autocast():
    patches, masks = torch.randn(1, 4, 3).bfloat16(), torch.ones(1, 1, 4, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pool_regions(patches, masks)[0].dtype == torch.float32
        assert mean_of_valid(patches, torch.ones(1, 4, dtype=torch.bool)).dtype == torch.float32


def test_masks_of_another_grid_are_named():
    with pytest.raises(ValueError, match=r"masks have shape \(1, 2, 5\); expected \(B, M, N\) with .* N = 4 patches"):
        pool_regions(torch.zeros(1, 4, 3), torch.zeros(1, 2, 5, dtype=torch.bool))
