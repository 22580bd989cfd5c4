import pytest
import torch

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.search import Candidates, hardest_negatives
from tests.support.problems import masked, problem


def candidates(I, J, seed=0, offsets=False):
    """Few ids, so that many pairs share one, and some rows that take no part."""
    g = torch.Generator().manual_seed(seed)
    return Candidates(
        image_id=torch.randint(4, (I,), generator=g),
        caption_id=torch.randint(4, (J,), generator=g),
        image_valid=torch.rand(I, generator=g) < 0.8,
        caption_valid=torch.rand(J, generator=g) < 0.8,
        image_offset=torch.rand(I, generator=g, dtype=torch.float64) * 4 if offsets else None,
        caption_offset=torch.rand(J, generator=g, dtype=torch.float64) * 4 if offsets else None,
    )


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("tile_bytes", [1024, 2**14, 2**22])
def test_what_is_found_is_what_loops_over_the_matrix_find(tile_bytes, offsets, monkeypatch):
    monkeypatch.setattr("powerclip.alignment.tiled.IMAGES_PER_TILE", 4)  # several blocks of images
    I, J = 11, 9
    regions, phrases = masked(problem(I, J, 4, 5))
    given = candidates(I, J, offsets=offsets)
    scoring = Scoring(tau=0.1, normalise_by_regions=True, tile_bytes=tile_bytes)
    found = hardest_negatives(regions, phrases, candidates=given, scoring=scoring)
    s = torch.einsum("imd,jkd->ijmk", regions.values, phrases.values)
    t2r, r2t = scoring.score(s, regions.mask[:, None], phrases.mask[None])
    scores = scoring.total(t2r, r2t, regions.mask).tolist()
    valid = [[bool(a and b) for b in given.caption_valid] for a in given.image_valid]
    negative = [[valid[i][j] and given.image_id[i] != given.caption_id[j] for j in range(J)] for i in range(I)]
    off_image, off_caption = (
        [0.0] * n if x is None else x.tolist() for x, n in ((given.image_offset, I), (given.caption_offset, J))
    )
    for i in range(I):
        options = [(scores[i][j] - off_caption[j], -j) for j in range(J) if negative[i][j]] or [(ABSENT, 0)]
        assert found.caption[i] == -max(options)[1]
        assert found.caption_score[i].item() == pytest.approx(max(options)[0], rel=1e-12)
        total = sum(scores[i][j] for j in range(J) if valid[i][j])
        assert found.image_sum[i].item() == pytest.approx(total, rel=1e-12)
    for j in range(J):
        options = [(scores[i][j] - off_image[i], -i) for i in range(I) if negative[i][j]] or [(ABSENT, 0)]
        assert found.image[j] == -max(options)[1]
        assert found.image_score[j].item() == pytest.approx(max(options)[0], rel=1e-12)
        total = sum(scores[i][j] for i in range(I) if valid[i][j])
        assert found.caption_sum[j].item() == pytest.approx(total, rel=1e-12)


def test_ties_go_to_the_lowest_index_and_without_negatives_nothing_is_found(monkeypatch):
    monkeypatch.setattr("powerclip.alignment.tiled.IMAGES_PER_TILE", 2)
    inputs = tuple(x.repeat(6, *[1] * (x.ndim - 1)) for x in problem(1, 1, 4, 5))
    everyone = torch.ones(6, dtype=torch.bool)
    for ids, expected in ((torch.arange(6), [1, 0, 0, 0, 0, 0]), (torch.zeros(6, dtype=torch.int64), [0] * 6)):
        given = Candidates(image_id=ids, caption_id=ids, image_valid=everyone, caption_valid=everyone)
        found = hardest_negatives(*masked(inputs), candidates=given, scoring=Scoring(tau=0.1, tile_bytes=1024))
        assert found.caption.tolist() == found.image.tolist() == expected
        assert ((found.caption_score == ABSENT) == (ids.max() == 0)).all()
        assert ((found.image_score == ABSENT) == (ids.max() == 0)).all()
