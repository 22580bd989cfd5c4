import io

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
from powerclip.report.pictures import MAX_PHRASES, Grounding, PhraseGrounding, ground, picture, shown_phrases
from powerclip.report.plots import png
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
    found = ground(tower, image, scene.caption, scene.tree, masks=masks).phrases
    assert {(p.label, p.text) for p in found} == {
        (p.label, scene.caption[scene.tree.leaves[p.first][0] : scene.tree.leaves[p.last][1]])
        for p in scene.tree.phrases
    }
    with torch.inference_mode():
        patches = tower.encode_patches(make_transforms(tower)[1](image)[None])
        encoded = encode_caption(scene.caption, scene.tree, make_tokenizer(tower), context_length=48)
        leaves = pool_leaves(tower.encode_tokens(encoded.tokens[None]), encoded.leaf_of_token[None], leaves=48)
        phrases, _ = pool_phrases(*leaves, encoded.phrase_spans[None], norm=tower.phrase_norm)
        s = pool_regions(patches, masks[None])[0][0] @ phrases[0].T
    scores = torch.tensor([phrase.score for phrase in found])
    torch.testing.assert_close(scores.mean(), enumerate_pair(s)[0], rtol=1e-5, atol=1e-5)
    for phrase in found:
        assert phrase.heat.shape == (8, 8)
        assert (phrase.heat.flatten()[~masks.any(dim=0)] == 0).all()
        assert (phrase.score > 0) == (phrase.regions > 0)


def test_a_picture_has_the_zero_of_its_model():
    scene, image, masks = scene_and_masks()
    plain, moved = model(), model(scoring=ScoringConfig(zero=0.1))
    found, above = (ground(m, image, scene.caption, scene.tree, masks=masks).phrases for m in (plain, moved))
    with torch.inference_mode():
        encoded = encode_caption(scene.caption, scene.tree, make_tokenizer(plain), context_length=48)
        regions = plain.encode_regions(make_transforms(plain)[1](image)[None], masks[None])[0][0]
        inputs = (x[None] for x in (encoded.tokens, encoded.leaf_of_token, encoded.phrase_spans))
        s = regions @ plain.encode_phrases(*inputs)[0][0].T - 0.1  # (M, K)
    assert [phrase.regions for phrase in above] == (s > 0).sum(dim=0).tolist()
    assert sum(phrase.regions for phrase in above) != sum(phrase.regions for phrase in found)
    torch.testing.assert_close(torch.tensor([phrase.score for phrase in above]), s.clamp(min=0).sum(dim=0))
    centred = model(scoring=ScoringConfig(zero="centred"))
    centred.vector_means.copy_(torch.stack([regions.mean(dim=0)] * 2))
    again = ground(centred, image, scene.caption, scene.tree, masks=masks).phrases
    assert [phrase.regions for phrase in again] != [phrase.regions for phrase in found]


def test_a_model_trained_on_tokens_or_single_regions_is_drawn_by_them():
    tower = model(phrase_unit="token", scoring=ScoringConfig(subsets="single"))
    scene, image, masks = scene_and_masks()
    found = ground(tower, image, scene.caption, scene.tree, masks=masks)
    tokenizer = make_tokenizer(tower)
    encoded = encode_caption(scene.caption, scene.tree, tokenizer, context_length=48)
    words = [tokenizer.decode([int(t)]).strip() for t in encoded.tokens[encoded.leaf_of_token >= 0]]
    assert [(phrase.label, phrase.text) for phrase in found.phrases] == [("token", word) for word in words]
    with torch.inference_mode():
        patches = tower.encode_patches(make_transforms(tower)[1](image)[None])
        tokens = tower.encode_tokens(encoded.tokens[None])[0, encoded.leaf_of_token >= 0]
        s = torch.nn.functional.normalize(tokens, dim=-1) @ pool_regions(patches, masks[None])[0][0].T
    scores = torch.tensor([phrase.score for phrase in found.phrases])
    torch.testing.assert_close(scores, s.amax(dim=1), rtol=0, atol=1e-5)
    assert all(phrase.regions == 1 for phrase in found.phrases)
    covered = masks.float().sum(dim=0).clamp(min=1)
    for phrase, best, score in zip(found.phrases, s.argmax(dim=1), s.amax(dim=1), strict=True):
        torch.testing.assert_close(phrase.heat.flatten(), score.clamp(min=0) * masks[best] / covered, rtol=0, atol=1e-5)
    highest = sorted(found.phrases, key=lambda phrase: -phrase.score)[:MAX_PHRASES]
    assert {phrase.text for phrase in shown_phrases(found.phrases)} == {phrase.text for phrase in highest}


def test_the_heat_of_one_region_is_its_similarity():
    image = Image.linear_gradient("L").convert("RGB")
    masks = torch.zeros(1, 64, dtype=torch.bool)
    masks[0, 9:14] = True
    signs = set()
    for seed in range(4):  # untrained models: the region grounds the phrases of some and not of others
        found = ground(model(seed), image, CAPTION, TREE, masks=masks)
        assert [phrase.text for phrase in found.phrases] == [CAPTION, r"a $\frac$"]
        for phrase in found.phrases:
            signs.add(phrase.score > 0)
            assert phrase.heat.flatten()[masks[0]].tolist() == pytest.approx([phrase.score] * 5)
            assert phrase.heat.flatten()[~masks[0]].eq(0).all()
    assert signs == {False, True}
    assert png(picture({"$m$": found})).startswith(b"\x89PNG")  # dollars are not formulas


def test_the_image_is_shown_as_the_model_sees_it():
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((200, 30, 90), (100, 0, 200, 100))
    seen = ground(model(), wide, CAPTION, TREE).image
    assert seen.size == (64, 64)
    assert {seen.getpixel(place) for place in ((2, 2), (32, 32), (61, 61))} == {(200, 30, 90)}  # the centre crop


def test_the_heat_is_laid_over_the_whole_image_seen():
    found = ground(model(), Image.new("RGB", (200, 90), "teal"), CAPTION, TREE)
    rows = picture({"one": found, "two": found})
    photo, heat = rows.axes[1].images
    assert list(heat.get_extent()) == list(photo.get_extent()) == [-0.5, 63.5, 63.5, -0.5]
    assert heat.get_array().shape == (8, 8)
    titles = [axes.get_title() for axes in rows.axes]
    assert titles[0] == "one"
    assert titles[3] == "two"
    first = found.phrases[0]
    assert titles[1] == f"{CAPTION}\n{first.regions} regions, {first.score:.2f}"


def phrase(text, label="NP"):
    return PhraseGrounding(text=text, label=label, heat=torch.zeros(2, 2), score=0.0, regions=0)


def test_short_noun_phrases_are_shown_first_and_in_order():
    nouns = [phrase("x" * length) for length in (9, 1, 8, 2, 3, 4, 5, 6)]
    shown = shown_phrases([phrase("a", "PP"), *nouns])
    assert [len(p.text) for p in shown] == [1, 2, 3, 4, 5, 6]
    assert len(shown) == MAX_PHRASES
    assert [p.text for p in shown_phrases([phrase("on it", "PP")])] == ["on it"]


def test_a_caption_without_phrases_and_a_hostile_one_are_drawn():
    image = Image.new("RGB", (4, 4))
    empty = Grounding(image=image, phrases=())
    odd = Grounding(image=image, phrases=(phrase("图\x1b[2J\n" + "long " * 20),))
    figure = picture({"empty": empty, "odd\x07": odd})
    assert png(figure).startswith(b"\x89PNG")
    titles = "".join(axes.get_title() for axes in figure.axes)
    assert "\x1b" not in titles
    assert "\x07" not in titles
