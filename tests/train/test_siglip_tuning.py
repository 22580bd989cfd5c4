"""SigLIP towers go on with their own loss, temperature, bias, tokenizer and preprocessing."""

import dataclasses

import open_clip
import pytest
import torch

import powerclip
from powerclip.config import ModelConfig, ObjectiveConfig
from powerclip.data.loader import open_data
from powerclip.data.shards import write_shards
from powerclip.loss import PowersetAlignmentLoss
from powerclip.recipes import finetune_open_clip
from powerclip.runs import read_metrics
from powerclip.scenes import generate
from powerclip.train import train
from powerclip.train.build import build_cache, build_loader, build_loss, build_model
from tests.support.models import write_start
from tests.support.pretrained import siglip_folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_shards(generate("train", count=16, seed=0), folder, samples_per_shard=8)
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder of a small SigLIP, and open_clip's model."""
    folder = tmp_path_factory.mktemp("siglip") / "model"
    return folder, siglip_folder(folder)


def tuning(folder, **objective):
    base = finetune_open_clip()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, name=f"local-dir:{folder}", pretrained=None),
        objective=ObjectiveConfig(**objective),
        data=dataclasses.replace(base.data, workers=0),
        optim=dataclasses.replace(base.optim, learning_rate=1e-3, warmup_steps=0),
        batch_size=4,
        steps=2,
        epochs=None,
        log_every_steps=1,
        device="cpu",
        ema_decay=None,
    )


def open_clip_s_loss(theirs, config, shards):
    """Of the run's first batch, from open_clip's own embeddings; and the batch."""
    opened = open_data(shards, cache=build_cache(config))
    (batch,) = next(build_loader(config, build_model(config), opened).steps(0, pieces=1))
    with torch.no_grad():
        embeddings = theirs.encode_image(batch.images, True), theirs.encode_text(batch.tokens, True)
        loss = open_clip.loss.SigLipLoss()(*embeddings, theirs.logit_scale.exp(), theirs.logit_bias)
    return loss.item(), batch


@pytest.mark.parametrize("objective", [{"name": "siglip"}, {}, {"global_loss": "siglip"}], ids=str)
def test_the_first_loss_is_open_clip_s_and_the_bias_is_trained_on(objective, theirs, shards, tmp_path, capsys):
    folder, model = theirs
    config = tuning(folder, **objective)
    expected, batch = open_clip_s_loss(model, config, shards)
    assert batch.tokens.shape == (4, 64)
    assert (batch.images.amin(), batch.images.amax()) == pytest.approx((-1, 1), abs=0.1)  # by mean and deviation 0.5
    run = train(config, data=shards, output=tmp_path / "run").output
    assert "scale 117.9, bias -12.9)" in " ".join(capsys.readouterr().err.split())
    first, last = read_metrics(run / "metrics.jsonl")
    assert first["loss_siglip"] == pytest.approx(expected, rel=1e-4)
    assert ("loss_powerset" in first) == ("name" not in objective)
    assert first["logit_scale"] == pytest.approx(117.9, rel=0.002)  # not cut to CLIP's limit of 100
    assert last["logit_bias"] != pytest.approx(-12.9, abs=1e-4)
    assert last["logit_bias"] == pytest.approx(-12.9, abs=0.01)
    tuned, preprocess, tokenizer = powerclip.load(run)
    assert tuned.logit_bias.item() == last["logit_bias"]
    assert tuned.backbone.visual.preprocess_cfg["resize_mode"] == "squash"
    assert tokenizer(["A red cube, above a ball."]).tolist()[0][:8] == [2, 15, 19, 9, 2, 20, 1, 1]


def test_clip_s_loss_beside_a_bias_leaves_it_alone(theirs, shards, tmp_path):
    config = tuning(theirs[0], global_loss="clip")
    run = train(config, data=shards, output=tmp_path / "run").output
    assert {"loss_clip", "loss_powerset"} < read_metrics(run / "metrics.jsonl")[0].keys()
    assert powerclip.load(run)[0].logit_bias.item() == pytest.approx(-12.9)


def test_the_global_loss_follows_the_model_unless_it_is_named(theirs, tmp_path):
    clip, siglip = ModelConfig(pretrained=write_start(tmp_path)), tuning(theirs[0]).model
    for model, named, terms, bias in [
        (clip, "auto", {"clip": 1.0}, None),
        (clip, "clip", {"clip": 1.0}, None),
        (clip, "siglip", {"siglip": 1.0}, True),
        (siglip, "auto", {"siglip": 1.0}, True),
        (siglip, "clip", {"clip": 1.0}, False),
        (clip, "sparc", {"clip": 0.5, "sparc": 1.0}, None),
    ]:
        config = dataclasses.replace(tuning(theirs[0], global_loss=named), model=model)
        built = build_model(config)
        assert (None if built.logit_bias is None else built.logit_bias.requires_grad) is bias
        g = torch.Generator().manual_seed(0)
        vectors = torch.nn.functional.normalize(torch.randn(4, 3, 2, 8, generator=g), dim=-1)
        features = powerclip.Features(
            image=vectors[:, 0, 0], text=vectors[:, 0, 1], regions=vectors[:, 1], phrases=vectors[:, 2],
            region_mask=torch.ones(4, 2, dtype=torch.bool), phrase_mask=torch.ones(4, 2, dtype=torch.bool),
            logit_scale=built.logit_scale.exp(), logit_bias=built.logit_bias,
            patches=vectors[:, 1], tokens=vectors[:, 2], token_mask=torch.ones(4, 2, dtype=torch.bool),
        )  # fmt: skip
        output = build_loss(config, built)(features)
        assert output.terms.keys() == {*terms, "powerset"}
        powerset = PowersetAlignmentLoss(**vars(config.objective.scoring))(features.regions, features.phrases)
        expected = sum(weight * output.terms[term] for term, weight in terms.items()) + 0.2 * powerset
        torch.testing.assert_close(output.total, expected)


@pytest.mark.filterwarnings("ignore:.* so that its embeddings mean nothing at first")
def test_weights_without_a_bias_start_from_the_paper_s(tmp_path):
    start = powerclip.load(write_start(tmp_path))[0]
    torch.save(start.backbone.state_dict(), tmp_path / "clip.pt")
    for pretrained in (tmp_path / "clip.pt", tmp_path / "start"):
        settings = ModelConfig(name=str(tmp_path / "small.json"), pretrained=str(pretrained))
        config = dataclasses.replace(tuning(tmp_path, name="siglip"), model=settings)
        model = build_model(config)
        assert model.logit_bias.item() == -10
        assert torch.equal(model.logit_scale, start.logit_scale)
