import copy
import dataclasses
import json
import math

import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import powerclip
from powerclip.config import ScoringConfig
from powerclip.errors import PowerclipError
from powerclip.files import SUMS
from powerclip.model import from_open_clip, make_tokenizer, save
from powerclip.model.pooling import caption_ids, pool_regions
from powerclip.phrases import PhraseTree, encode_captions
from powerclip.types import Batch

SMALL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 2},
}
TIMM = {
    **SMALL,
    "vision_cfg": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 224,
    },
}
CUSTOM = {**SMALL, "custom_text": True}
CAPTIONS = ["a red cube", "two dogs on a beach, running!", "!"]


def config_file(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(params=[SMALL, CUSTOM, TIMM], ids=["native", "custom text", "timm"])
def model(request, tmp_path):
    torch.manual_seed(0)
    return powerclip.create_model(config_file(tmp_path, request.param)).eval()


def test_global_embeddings_are_means_of_dense_ones(model):
    images = torch.randn(2, 3, *model.image_size)
    patches = model.encode_patches(images)
    assert patches.shape == (2, model.grid_size[0] * model.grid_size[1], 12)
    torch.testing.assert_close(model.encode_image(images), patches.mean(dim=1))
    torch.testing.assert_close(model.encode_image(images, normalize=True), normalize(patches.mean(dim=1), dim=-1))
    tokenizer = make_tokenizer(model)
    tokens = tokenizer(CAPTIONS)
    dense = model.encode_tokens(tokens)
    assert dense.shape == (3, 16, 12)
    for caption, row, found in zip(CAPTIONS, dense, model.encode_text(tokens), strict=True):
        valid = len(tokenizer.encode(caption)) + 2
        torch.testing.assert_close(found, row[:valid].mean(dim=0))


@pytest.mark.parametrize("of", ["numbers", "shape", "kind"])
def test_what_is_no_image_and_no_caption_is_said_in_one_line(of, model):
    height, width = model.image_size
    wrong = {
        "numbers": torch.zeros(2, 3, height, width, dtype=torch.uint8),
        "shape": torch.randn(3, height, width),
        "kind": Image.new("RGB", (height, width)),
    }[of]
    shape = rf"\(B, 3, {height}, {width}\) float tensor"
    got = {"numbers": "of torch.uint8", "shape": rf"got \(3, {height}, {width}\)", "kind": "got a Image"}[of]
    for encode in (model.encode_image, model.encode_patches):
        with pytest.raises(ValueError, match=f"{shape}.*preprocess.*{got}"):
            encode(wrong)
    tokens = make_tokenizer(model)(CAPTIONS)
    wrong = {"numbers": tokens.float(), "shape": tokens[0], "kind": "a cat"}[of]
    got = {"numbers": "of torch.float32", "shape": r"got \(16,\) of", "kind": "got a str"}[of]
    for encode in (model.encode_text, model.encode_tokens):
        with pytest.raises(ValueError, match=rf"\(B, T\) token ids.*tokenizer.*{got}"):
            encode(wrong)
    with pytest.raises(ValueError, match="at most 16 tokens a caption; got 32"):
        model.encode_text(tokens.repeat(1, 2))


def test_padding_does_not_matter(model):
    tokens = make_tokenizer(model)(CAPTIONS)
    assert (tokens[:, 12:] == 0).all()
    torch.testing.assert_close(model.encode_text(tokens[:, :12]), model.encode_text(tokens))


@pytest.mark.filterwarnings("ignore:.* so that its embeddings mean nothing at first")
@pytest.mark.parametrize("config", [SMALL, CUSTOM], ids=["native", "custom text"])
def test_an_open_clip_checkpoint_gives_open_clip_s_outputs(config, tmp_path):
    torch.manual_seed(1)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    theirs = (open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP)(**arguments).eval()
    checkpoint = tmp_path / "theirs.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, checkpoint)
    ours = powerclip.create_model(config_file(tmp_path, config), pretrained=str(checkpoint), text_pool="argmax").eval()
    tokens = make_tokenizer(ours)(CAPTIONS)
    torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens))
    images = torch.randn(2, 3, 32, 32)
    theirs.visual.output_tokens = True
    tokens_of_image = theirs.visual(images)[1] @ theirs.visual.proj
    torch.testing.assert_close(ours.encode_patches(images), tokens_of_image)
    assert ours.logit_scale == theirs.logit_scale


def test_a_malicious_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"state_dict": {"x": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(PowerclipError, match="do not fit"):
        powerclip.create_model(config_file(tmp_path, SMALL), pretrained=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "pwned").exists()


def test_features_of_a_batch(model):
    tokens = make_tokenizer(model)(CAPTIONS)
    rows, columns = model.grid_size
    batch = Batch(
        images=torch.randn(3, 3, *model.image_size),
        tokens=tokens,
        leaf_of_token=torch.where((tokens > 0) & (tokens < 49406), torch.arange(16) - 1, -1),
        phrase_spans=torch.tensor([[[0, 2], [1, 2]], [[0, 3], [-1, -1]], [[-1, -1], [-1, -1]]]),
        region_masks=torch.rand(3, 4, rows * columns) < 0.5,
    )
    features = model(batch)
    assert features.regions.shape == (3, 4, 12)
    assert features.phrase_mask.tolist() == [[True, True], [True, False], [False, False]]
    torch.testing.assert_close(features.image, model.encode_image(batch.images, normalize=True))
    torch.testing.assert_close(features.text, model.encode_text(tokens, normalize=True))
    torch.testing.assert_close(features.regions.norm(dim=-1), torch.ones(3, 4))
    torch.testing.assert_close(features.logit_scale, model.logit_scale.exp())


def test_tokens_can_stand_for_phrases(tmp_path):
    torch.manual_seed(0)
    model = powerclip.create_model(config_file(tmp_path, SMALL), phrase_unit="token").eval()
    tokens = make_tokenizer(model)(CAPTIONS)
    leaf_of_token = torch.where((tokens > 0) & (tokens < 49406), 0, -1)
    batch = Batch(
        images=torch.randn(3, 3, 32, 32),
        tokens=tokens,
        leaf_of_token=leaf_of_token,
        phrase_spans=torch.full((3, 1, 2), -1),
        region_masks=torch.ones(3, 2, 16, dtype=torch.bool),
    )
    features = model(batch)
    assert torch.equal(features.phrase_mask, leaf_of_token >= 0)
    expected = normalize(model.encode_tokens(tokens), dim=-1) * features.phrase_mask[..., None]
    torch.testing.assert_close(features.phrases, expected)
    save(model, tmp_path / "model")
    assert powerclip.load(tmp_path / "model")[0].phrase_unit == "token"


def test_tokens_can_stand_beside_phrases(tmp_path):
    model = powerclip.create_model(config_file(tmp_path, SMALL), phrase_unit="both").eval()
    tokens = make_tokenizer(model)(CAPTIONS)
    inputs = tokens, torch.where((tokens > 0) & (tokens < 49406), 0, -1), torch.tensor([[[0, 0], [-1, -1]]] * 3)
    vectors, present = model.encode_phrases(*inputs)
    of_unit = {}
    for unit in ("phrase", "token"):
        model.phrase_unit = unit
        of_unit[unit] = model.encode_phrases(*inputs)
    for found, (phrases, of_tokens) in zip((vectors, present), zip(*of_unit.values(), strict=True), strict=True):
        assert torch.equal(found, torch.cat([phrases, of_tokens], dim=1))  # (3, 2 + T, ...)


def test_phrases_alone_are_those_of_texts_of_their_own(model, tmp_path):
    captions = ["a red cube above two unfathomable dogs", "dogs", "!"]
    trees = [
        PhraseTree.from_spans(
            ((0, 1), (2, 5), (6, 10), (11, 16), (17, 20), (21, 33), (34, 38)),
            [("NP", 0, 6), ("NP", 0, 2), ("PP", 3, 6), ("NP", 4, 6)],
            parser="gold",
        ),
        PhraseTree.from_spans(((0, 4),), [], parser="gold"),
        PhraseTree.from_spans((), [], parser="gold"),
    ]
    tokenizer = make_tokenizer(model)
    model.phrase_context = "alone"
    phrases, mask = model.encode_phrases(*encode_captions(captions, trees, tokenizer, context_length=16))
    assert mask.tolist() == [[True] * 4, [True, False, False, False], [False] * 4]
    assert not phrases[~mask].any()
    for caption, tree, found in zip(captions, trees, phrases, strict=True):
        for phrase, vector in zip(tree.phrases, found, strict=False):
            start = tree.leaves[phrase.first][0]
            text = caption[start : tree.leaves[phrase.last][1]]
            leaves = [(a - start, b - start) for a, b in tree.leaves[phrase.first : phrase.last + 1]]
            alone = PhraseTree.from_spans(leaves, [], parser="gold")
            model.phrase_context = "caption"
            expected, _ = model.encode_phrases(*encode_captions([text], [alone], tokenizer, context_length=16))
            torch.testing.assert_close(vector, expected[0, 0])
            model.phrase_context = "alone"
    assert model.encode_phrases(*encode_captions(["!"], trees[2:], tokenizer, context_length=16))[1].sum() == 0


def test_dense_outputs_are_those_of_the_towers_parts(model):
    images = torch.randn(2, 3, *model.image_size)
    visual = model.backbone.visual
    if hasattr(visual, "trunk"):
        x = visual.trunk.forward_features(images)[:, visual.trunk.num_prefix_tokens :]
        expected = visual.head(visual.trunk.fc_norm(x))
    else:
        expected = visual.ln_post(visual.transformer(visual._embeds(images))[:, 1:]) @ visual.proj
    torch.testing.assert_close(model.encode_patches(images), expected)
    text = getattr(model.backbone, "text", model.backbone)
    tokens = make_tokenizer(model)(CAPTIONS)
    for length in (16, 12):
        x = text.token_embedding(tokens[:, :length]) + text.positional_embedding[:length]
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length])) @ text.text_projection
        torch.testing.assert_close(model.encode_tokens(tokens[:, :length]), x)


def test_regions_and_phrases_are_those_of_a_batch(model):
    g = torch.Generator().manual_seed(0)
    tokens = make_tokenizer(model)(CAPTIONS)
    rows, columns = model.grid_size
    batch = Batch(
        images=torch.randn(3, 3, *model.image_size, generator=g),
        tokens=tokens,
        leaf_of_token=torch.where((tokens > 0) & (tokens < 49406), torch.arange(16) - 1, -1),
        phrase_spans=torch.tensor([[[0, 2], [1, 2]], [[0, 3], [-1, -1]], [[-1, -1], [-1, -1]]]),
        region_masks=torch.rand(3, 4, rows * columns, generator=g) < 0.5,
    )
    features = model(batch)
    regions, region_mask = model.encode_regions(batch.images, batch.region_masks)
    phrases, phrase_mask = model.encode_phrases(tokens, batch.leaf_of_token, batch.phrase_spans)
    torch.testing.assert_close((regions, phrases), (features.regions, features.phrases))
    assert torch.equal(region_mask, features.region_mask)
    assert torch.equal(phrase_mask, features.phrase_mask)
    with pytest.raises(ValueError, match="masks have shape"):
        model.encode_regions(batch.images, batch.region_masks[..., 1:])
    for leaves, spans in ((batch.leaf_of_token[:1], batch.phrase_spans), (batch.leaf_of_token, batch.phrase_spans[:1])):
        message = r"leaf_of_token and spans have shapes \(3, 16\), .* expected \(B, T\)"
        with pytest.raises(ValueError, match=message):
            model.encode_phrases(tokens, leaves, spans)
        with pytest.raises(ValueError, match=message):
            model(dataclasses.replace(batch, leaf_of_token=leaves, phrase_spans=spans))
    for context in ("caption", "alone"):
        model.phrase_context = context
        vectors, present = model.encode_phrases(tokens[:0], batch.leaf_of_token[:0], batch.phrase_spans[:0])
        assert vectors.shape == (0, 2, features.phrases.shape[2])
        assert present.shape == (0, 2)


def test_a_model_keeps_the_lengths_of_its_regions_and_older_ones_have_none(tmp_path):
    model = powerclip.create_model("tiny", region_norm="image").eval()
    save(model, tmp_path / "m")
    again = powerclip.load(tmp_path / "m")[0]
    images, masks = torch.randn(2, 3, *model.image_size), torch.rand(2, 3, math.prod(model.grid_size)) < 0.5
    expected, _ = pool_regions(model.encode_patches(images), masks, norm="image")
    assert (expected.norm(dim=-1) - 1).abs().max() > 1e-3
    for found in (model.encode_regions(images, masks), again.encode_image_and_regions(images, masks)):
        torch.testing.assert_close(found[0], expected)
    without = {name: value for name, value in model.config.items() if name != "region_norm"}
    assert powerclip.PowerCLIP(model.backbone, config=without).region_norm == "unit"


def test_regions_of_a_model_on_patches_are_its_patches(tmp_path):
    save(powerclip.create_model("tiny", region_unit="patch"), tmp_path / "m")
    model = powerclip.load(tmp_path / "m")[0]
    N = math.prod(model.grid_size)
    tokens = torch.zeros(2, model.context_length, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1] = 1, 2
    batch = Batch(
        images=torch.randn(2, 3, *model.image_size),
        tokens=tokens,
        leaf_of_token=torch.full_like(tokens, -1),
        phrase_spans=torch.full((2, 1, 2), -1),
        region_masks=torch.zeros(2, 0, N, dtype=torch.bool),  # as the loader gives it
    )
    features = model(batch)
    expected, _ = model.encode_regions(batch.images, torch.eye(N, dtype=torch.bool).expand(2, -1, -1))
    torch.testing.assert_close(features.regions, expected)
    assert features.region_mask.shape == (2, N)
    assert features.region_mask.all()


def test_a_model_keeps_how_it_is_scored(tmp_path):
    scoring = ScoringConfig(tau=0.01, zeta=0.3, t2_activation="erf", direction="t2r")
    save(powerclip.create_model("tiny", scoring=scoring), tmp_path / "model")
    assert powerclip.load(tmp_path / "model")[0].scoring == scoring
    (tmp_path / "model" / SUMS).unlink()
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    old = {name: value for name, value in config.items() if name != "scoring"}
    path.write_text(json.dumps(old))
    assert powerclip.load(tmp_path / "model")[0].scoring == ScoringConfig()
    path.write_text(json.dumps({**config, "scoring": {"tau": -1.0}}))
    with pytest.raises(PowerclipError, match="tau is -1.0; it must be 0 or more"):
        powerclip.load(tmp_path / "model")
    path.write_text(json.dumps({**config, "text_pool": "max"}))
    with pytest.raises(PowerclipError, match="not a valid powerclip model.*text_pool is 'max'; it must be one of avg"):
        powerclip.load(tmp_path / "model")


def test_an_open_clip_model_gets_dense_outputs_that_share_its_weights(tmp_path):
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**SMALL).eval()
    dense = from_open_clip(theirs)
    tokens = open_clip.SimpleTokenizer(context_length=16)(CAPTIONS)
    torch.testing.assert_close(dense.encode_text(tokens), theirs.encode_text(tokens))
    assert {id(p) for p in dense.parameters()} == {id(p) for p in theirs.parameters()}
    images = torch.randn(3, 3, *dense.image_size)
    torch.testing.assert_close(dense(images, tokens), dense(image=images, text=tokens), rtol=0, atol=0)
    with pytest.raises(PowerclipError, match="DataParallel is not a model of open_clip; .* give .module"):
        from_open_clip(torch.nn.DataParallel(theirs))
    with pytest.raises(ValueError, match="has no config to build it from; save its open_clip model"):
        save(dense, tmp_path / "model")


@pytest.mark.parametrize("text_pool", ["avg", "argmax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"])
def test_half_precision_gives_one_dtype(dtype, text_pool, tmp_path):
    torch.manual_seed(0)
    full = powerclip.create_model(config_file(tmp_path, SMALL), text_pool=text_pool).eval()
    tokens, images = make_tokenizer(full)(CAPTIONS), torch.randn(3, 3, 32, 32)
    expected = full.encode_image(images, normalize=True), full.encode_text(tokens, normalize=True)
    half = torch.bfloat16 if dtype == "autocast" else dtype
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"), torch.no_grad():
        model = full if dtype == "autocast" else copy.deepcopy(full).to(dtype)
        for normalize in (True, False):
            image = model.encode_image(images if dtype == "autocast" else images.to(dtype), normalize=normalize)
            text = model.encode_text(tokens, normalize=normalize)
            assert image.dtype == text.dtype == half
            assert (image @ text.T).shape == (3, 3)
            if normalize:  # some tens of roundings of 2^-9 through two layers
                torch.testing.assert_close(image.float(), expected[0], rtol=0, atol=0.1)
                torch.testing.assert_close(text.float(), expected[1], rtol=0, atol=0.1)


def test_equal_captions_have_equal_ids_and_others_do_not():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 49408, (2000, 77), generator=generator)
    tokens[5] = tokens[3]
    tokens[7] = tokens[6].flip(0)
    ids = caption_ids(tokens)
    assert ids[5] == ids[3]
    assert len(ids.unique()) == 1999
    assert torch.equal(caption_ids(tokens[:4]), ids[:4])


def test_a_saved_model_loads_as_the_same(model, tmp_path):
    save(model, tmp_path / "run" / "model")
    save(model, tmp_path / "run" / "model")
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        loaded, preprocess, tokenizer = powerclip.load(place)
        image = preprocess(Image.new("RGB", (50, 40), "red"))[None]
        assert torch.equal(loaded.encode_image(image), model.encode_image(image))
        assert torch.equal(loaded.encode_text(tokenizer(CAPTIONS)), model.encode_text(tokenizer(CAPTIONS)))
        assert not loaded.training
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"model"}


def test_what_cannot_be_built_is_one_line(tmp_path):
    (tmp_path / "half.json").write_text('{"embed_dim": 8, "text_cfg": {}}')
    for name, message in [
        (str(tmp_path / "half.json"), "half.json is not a model config in open_clip's form: it lacks vision_cfg"),
        ("ViT-B-33", "unknown model 'ViT-B-33'; did you mean ViT-B-32"),
        ("RN50", "ModifiedResNet has no patch tokens"),
        ("coca_ViT-B-32", "CoCa|no patch tokens|attention pooling|cannot build"),
        ("xlm-roberta-base-ViT-B-32", "Hugging Face"),
        (str(tmp_path / "none.json"), "cannot read the model config"),
    ]:
        with pytest.raises(PowerclipError, match=message) as caught:
            powerclip.create_model(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="text_pool is 'max'; it must be one of avg, tower, argmax"):
        powerclip.create_model("tiny", text_pool="max")
    with pytest.raises(ValueError, match="override is 'depth'; it must be one of image_size, context_length"):
        powerclip.create_model("tiny", depth=3)
    with pytest.raises(PowerclipError, match="neither a file, nor a run or model folder, nor a tag"):
        powerclip.create_model("tiny", pretrained="nowhere.pt")
    (tmp_path / "model").mkdir()
    with pytest.raises(PowerclipError, match="no model at"):
        powerclip.load(tmp_path / "model")


def test_overrides_change_grid_and_context():
    model = powerclip.create_model("tiny", image_size=32, context_length=20)
    assert (model.grid_size, model.context_length) == ((4, 4), 20)


def test_gradient_checkpointing_changes_no_value(model):
    images = torch.randn(2, 3, *model.image_size)
    plain = model.train().encode_patches(images)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.encode_patches(images), plain)


@pytest.mark.parametrize("text_pool", ["avg", "tower"])
@pytest.mark.parametrize("architecture", [SMALL, CUSTOM, TIMM], ids=["native", "custom text", "timm"])
def test_padding_that_is_cut_off_changes_nothing(tmp_path, architecture, text_pool):
    """Forward and gradient: a causal tower does not look at what follows."""
    torch.manual_seed(0)
    model = powerclip.create_model(config_file(tmp_path, architecture), text_pool=text_pool)
    tokens = make_tokenizer(model)(CAPTIONS)
    gradients = []
    for T in (16, 10):
        model.zero_grad()
        dense, embedding = model.encode_tokens(tokens[:, :T])[:, :10], model.encode_text(tokens[:, :T])
        torch.testing.assert_close(embedding, model.encode_text(tokens), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dense, model.encode_tokens(tokens)[:, :10], rtol=1e-5, atol=1e-6)
        embedding.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-5, msg=name)
