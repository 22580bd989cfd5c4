import io

import numpy as np
import pytest
import torch
from PIL import Image

import powerclip
from powerclip.alignment.reference import enumerate_pair
from powerclip.config import ScoringConfig
from powerclip.model import make_tokenizer, make_transforms
from powerclip.model.pooling import pool_leaves, pool_phrases, pool_regions
from powerclip.phrases import encode_caption
from powerclip.phrases.tree import Phrase, PhraseTree
from powerclip.regions import RegionAnnotation, tiles
from powerclip.report.grounding import TOKEN, Grounding, ground, regions_of, rows
from powerclip.scenes import sample

CAPTION = r"a $\frac$ <b> & dog"
TREE = PhraseTree(
    leaves=((0, 1), (2, 9), (10, 13), (14, 15), (16, 19)),
    phrases=(Phrase(label="NP", first=0, last=4), Phrase(label="NP", first=0, last=1)),
    parser="gold",
)


def model(seed=0, **options):
    torch.manual_seed(seed)
    return powerclip.create_model("tiny", **options).eval()


def scene_and_masks():
    scene = sample("test", 3, seed=0)
    masks = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    return scene, Image.open(io.BytesIO(scene.image)).convert("RGB"), masks


def test_grounding_scores_are_those_of_enumeration():
    tower = model()
    scene, image, masks = scene_and_masks()
    grounded = ground(tower, image, scene.caption, scene.tree, masks=masks)
    assert {place: (p.label, p.text) for place, p in grounded.phrases.items()} == {
        (p.first, p.last, 0): (p.label, scene.caption[scene.tree.leaves[p.first][0] : scene.tree.leaves[p.last][1]])
        for p in scene.tree.phrases
    }
    assert grounded.grid == (8, 8)
    assert torch.equal(grounded.masks, masks)
    found = grounded.phrases.values()
    with torch.inference_mode():
        patches = tower.encode_patches(make_transforms(tower)[1](image)[None])
        encoded = encode_caption(scene.caption, scene.tree, make_tokenizer(tower), context_length=48)
        leaves = pool_leaves(tower.encode_tokens(encoded.tokens[None]), encoded.leaf_of_token[None], leaves=48)
        phrases, _ = pool_phrases(*leaves, encoded.phrase_spans[None], norm=tower.phrase_norm)
        s = pool_regions(patches, masks[None])[0][0] @ phrases[0].T
    scores = torch.tensor([phrase.score for phrase in found])
    torch.testing.assert_close(scores.mean(), enumerate_pair(s)[0], rtol=1e-5, atol=1e-5)
    for phrase, s_M in zip(found, s.T.tolist(), strict=True):
        assert phrase.shares == pytest.approx({m: value for m, value in enumerate(s_M) if value > 0}, abs=1e-5)
        assert [value for _, value in phrase.parts] == sorted(phrase.shares.values(), reverse=True)
        assert phrase.score == pytest.approx(sum(phrase.shares.values()))


def test_groundings_have_the_zero_of_their_model():
    scene, image, masks = scene_and_masks()
    plain, moved = model(), model(scoring=ScoringConfig(zero=0.1))
    found, above = (ground(m, image, scene.caption, scene.tree, masks=masks).phrases.values() for m in (plain, moved))
    with torch.inference_mode():
        encoded = encode_caption(scene.caption, scene.tree, make_tokenizer(plain), context_length=48)
        regions = plain.encode_regions(make_transforms(plain)[1](image)[None], masks[None])[0][0]
        inputs = (x[None] for x in (encoded.tokens, encoded.leaf_of_token, encoded.phrase_spans))
        s = regions @ plain.encode_phrases(*inputs)[0][0].T - 0.1  # (M, K)
    assert [len(phrase.shares) for phrase in above] == (s > 0).sum(dim=0).tolist()
    assert sum(len(phrase.shares) for phrase in above) != sum(len(phrase.shares) for phrase in found)
    torch.testing.assert_close(torch.tensor([phrase.score for phrase in above]), s.clamp(min=0).sum(dim=0))
    centred = model(scoring=ScoringConfig(zero="centred"))
    centred.vector_means.copy_(torch.stack([regions.mean(dim=0)] * 2))
    again = ground(centred, image, scene.caption, scene.tree, masks=masks).phrases.values()
    assert [phrase.shares.keys() for phrase in again] != [phrase.shares.keys() for phrase in found]


def test_a_model_trained_on_tokens_or_single_regions_is_grounded_by_them():
    tower = model(phrase_unit="token", scoring=ScoringConfig(subsets="single"))
    scene, image, masks = scene_and_masks()
    found = ground(tower, image, scene.caption, scene.tree, masks=masks).phrases
    tokenizer = make_tokenizer(tower)
    encoded = encode_caption(scene.caption, scene.tree, tokenizer, context_length=48)
    words = [tokenizer.decode([int(t)]).strip() for t in encoded.tokens[encoded.leaf_of_token >= 0]]
    assert [(phrase.label, phrase.text) for phrase in found.values()] == [(TOKEN, word) for word in words]
    assert [leaf for leaf, _, _ in found] == [leaf for leaf in encoded.leaf_of_token.tolist() if leaf >= 0]
    with torch.inference_mode():
        patches = tower.encode_patches(make_transforms(tower)[1](image)[None])
        tokens = tower.encode_tokens(encoded.tokens[None])[0, encoded.leaf_of_token >= 0]
        s = torch.nn.functional.normalize(tokens, dim=-1) @ pool_regions(patches, masks[None])[0][0].T
    for phrase, s_M in zip(found.values(), s, strict=True):
        assert list(phrase.shares) == [s_M.argmax().item()]
        assert phrase.score == pytest.approx(s_M.max().item(), abs=1e-5)
        others = {m: s for m, s in enumerate(s_M.tolist()) if m not in phrase.shares}
        assert phrase.others == pytest.approx(others, abs=1e-5)


@pytest.mark.parametrize("context", ["caption", "alone"])
def test_a_model_trained_on_phrases_and_tokens_is_grounded_by_both(context):
    scene, image, masks = scene_and_masks()
    alone, tokens, both = (
        ground(model(phrase_unit=u, phrase_context=context), image, scene.caption, scene.tree, masks=masks).phrases
        for u in ("phrase", "token", "both")
    )
    words = [scene.caption[start:end].lower() for start, end in scene.tree.leaves]  # each is one token
    assert all(phrase.text == words[leaf] for (leaf, _, _), phrase in tokens.items())
    within = [leaf for p in scene.tree.phrases for leaf in range(p.first, p.last + 1)]
    assert [leaf for leaf, _, _ in tokens] == (within if context == "alone" else list(range(len(words))))
    assert list(both) == [*alone, *tokens]
    for place, phrase in {**alone, **tokens}.items():
        assert (both[place].label, both[place].text) == (phrase.label, phrase.text)
        assert both[place].shares == pytest.approx(phrase.shares, abs=1e-5)


def test_a_model_trained_on_patches_is_drawn_on_every_patch():
    scene, image, _ = scene_and_masks()
    found = ground(model(region_unit="patch", image_size=96), image, scene.caption, scene.tree)
    assert torch.equal(found.masks, torch.eye(144).bool())


def test_the_share_of_one_region_is_its_similarity_and_an_unseen_phrase_has_none():
    image = Image.linear_gradient("L").convert("RGB")
    masks = torch.zeros(1, 64, dtype=torch.bool)
    masks[0, 9:14] = True
    signs = set()
    for seed in range(4):  # untrained models: the region grounds the phrases of some and not of others
        found = ground(model(seed), image, CAPTION, TREE, masks=masks).phrases.values()
        assert [phrase.text for phrase in found] == [CAPTION, r"a $\frac$"]
        for phrase in found:
            signs.add(phrase.score > 0)
            assert list(phrase.shares) == ([0] if phrase.score > 0 else [])
    assert signs == {False, True}


def test_the_image_is_shown_as_the_model_sees_it():
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((200, 30, 90), (100, 0, 200, 100))
    seen = ground(model(), wide, CAPTION, TREE).image
    assert seen.size == (64, 64)
    assert {seen.getpixel(place) for place in ((2, 2), (32, 32), (61, 61))} == {(200, 30, 90)}  # the centre crop


def test_rows_are_the_tree_in_reading_order_with_every_model_that_has_the_phrase():
    scene, image, masks = scene_and_masks()
    phrases = ground(model(), image, CAPTION, TREE)
    tokens = ground(model(phrase_unit="token"), image, CAPTION, TREE)
    (top,) = rows({"phrases": phrases, "tokens": tokens})
    assert (top.label, top.text, set(top.found)) == ("NP", CAPTION, {"phrases"})
    inner, *rest = top.children
    assert (inner.text, inner.found["phrases"]) == (r"a $\frac$", phrases.phrases[0, 1, 0])
    below = [*inner.children, *rest]
    assert [row.found["tokens"] for row in below] == list(tokens.phrases.values())
    assert {row.label for row in below} == {TOKEN}
    assert next(row.text for row in inner.children) == "a"
    assert all(not row.children for row in below)
    first, second = rows(
        {
            "one": Grounding(
                **{**vars(phrases), "phrases": {(2, 3, 0): inner.found["phrases"], (0, 1, 0): inner.found["phrases"]}}
            )
        }
    )
    assert first.children == second.children == []  # neither is inside the other


def test_stored_regions_move_with_the_image_and_the_best_are_kept():
    tower = model()
    square = np.zeros((3, 100, 300), dtype=bool)
    square[0, :, 100:200] = True  # all that the centre crop keeps
    square[1, :50, 100:200] = True
    square[2, :, :90] = True  # outside the crop
    stored = RegionAnnotation.from_masks(square, scores=[0.5, 0.9, 0.1], proposer="test")
    grids = regions_of(tower, stored)
    assert grids.shape == (3, 64)
    assert grids.sum(dim=1).tolist() == [32, 64, 0]  # the highest score first
    assert grids[0].view(8, 8)[:4].all()
    assert regions_of(tower, None) is None
    assert regions_of(tower, RegionAnnotation.from_masks(square[2:], scores=[1.0], proposer="test")) is None
    image = Image.new("RGB", (300, 100), "teal")
    assert torch.equal(ground(tower, image, CAPTION, TREE).masks, tiles((8, 8)))
