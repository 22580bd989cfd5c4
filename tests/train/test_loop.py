import dataclasses
import json
import math
import os
import signal
import threading

import pytest
import torch

import powerclip
from powerclip.config import ModelConfig, ObjectiveConfig, load_config
from powerclip.data.scenes import generate
from powerclip.data.shards import write_shards
from powerclip.recipes import scenes_tiny
from powerclip.train import checkpoint, loop, train
from powerclip.train.log import read_metrics
from powerclip.types import PowerclipError, RunFailedError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 24, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_shards(generate("train", count=40, seed=0), folder, samples_per_shard=20)
    return folder


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(TINY))
    base = scenes_tiny()
    return dataclasses.replace(
        base,
        model=ModelConfig(name=str(path)),
        optim=dataclasses.replace(base.optim, warmup_steps=2),
        batch_size=8,
        steps=8,
        log_every_steps=1,
        checkpoint_every_steps=3,
        device="cpu",
    )


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl")]


def weights(run):
    model, _, _ = powerclip.load(str(run))
    return model.state_dict()


def test_a_run_folder_holds_what_it_promises(config, shards, tmp_path):
    run = train(config, data=shards, output=tmp_path / "run").output
    assert load_config(run / "config.yaml") == config
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["samples_seen"] for line in lines] == [8 * step for step in range(1, 9)]
    assert {"loss", "loss_clip", "loss_powerset", "samples_per_s", "data_wait_s", "learning_rate"} <= set(lines[0])
    for line in lines:
        expected = line["loss_clip"] + config.objective.powerset_weight * line["loss_powerset"]
        assert line["loss"] == pytest.approx(expected, rel=1e-6)
    names = [path.name for path in checkpoint.all_checkpoints(run / "checkpoints")]
    assert names == ["step-00000006", "step-00000008"]
    model, preprocess, tokenizer = powerclip.load(str(run))
    assert model.encode_text(tokenizer(["a red cube"])).shape == (1, 16)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config, shards, tmp_path):
    runs = [train(config, data=shards, output=tmp_path / name).output for name in ("a", "b")]
    assert losses(runs[0]) == losses(runs[1])
    for name, value in weights(runs[0]).items():
        assert torch.equal(value, weights(runs[1])[name]), name
    other = train(dataclasses.replace(config, seed=1), data=shards, output=tmp_path / "c").output
    assert losses(other) != losses(runs[0])


def test_training_lowers_the_loss(config, shards, tmp_path):
    config = dataclasses.replace(config, steps=40, optim=dataclasses.replace(config.optim, learning_rate=3e-3))
    curve = losses(train(config, data=shards, output=tmp_path / "run").output)
    assert sum(curve[-5:]) < sum(curve[:5])


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config, shards, tmp_path, monkeypatch):
    whole = train(config, data=shards, output=tmp_path / "whole").output
    step_of_loop, cut = loop._train_step, tmp_path / "cut"

    def dies_at_step_5(run, batch, step):
        if step == 5:
            raise RuntimeError("power cut")
        return step_of_loop(run, batch, step)

    monkeypatch.setattr(loop, "_train_step", dies_at_step_5)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, data=shards, output=cut)
    monkeypatch.setattr(loop, "_train_step", step_of_loop)
    assert train(config, data=shards, output=cut, resume=True).steps == 8
    assert losses(cut) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[name]), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_usable_folder(number, config, shards, tmp_path, monkeypatch, capsys):
    step_of_loop = loop._train_step

    def signalled_at_step_2(run, batch, step):
        if step == 2:
            os.kill(os.getpid(), number)
        return step_of_loop(run, batch, step)

    monkeypatch.setattr(loop, "_train_step", signalled_at_step_2)
    before = signal.getsignal(number)
    result = train(config, data=shards, output=tmp_path / "run")
    assert (result.interrupted, result.steps) == (True, 3)
    assert signal.getsignal(number) == before
    assert "run the same command with --resume auto" in capsys.readouterr().err
    powerclip.load(str(tmp_path / "run"))
    assert train(config, data=shards, output=tmp_path / "run", resume=True).steps == 8


def test_training_works_outside_the_main_thread(config, shards, tmp_path):
    config = dataclasses.replace(config, steps=1)
    results = []
    thread = threading.Thread(target=lambda: results.append(train(config, data=shards, output=tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].steps == 1


def test_plain_clip_draws_no_boxes(config, shards, tmp_path):
    objective = dataclasses.replace(config.objective, powerset_weight=0.0)
    run = train(dataclasses.replace(config, objective=objective), data=shards, output=tmp_path / "run").output
    line = read_metrics(run / "metrics.jsonl")[-1]
    assert line["loss"] == line["loss_clip"]


ABLATIONS = [
    {"zeta": "calibrated"},
    {"method": "sampled", "samples": 16},
    {"method": "exact", "regions": 4},
    {"subsets": "single"},
    {"direction": "t2r"},
    {"direction": "r2t"},
    {"tau": 0.0},
    {"t1_activation": "gelu", "t2_activation": "softsign"},
    {"equal_captions": "ignored"},
    {"phrase_unit": "token"},
]


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_every_ablation_is_a_setting_that_changes_the_run(ablation, config, shards, tmp_path):
    config = dataclasses.replace(config, steps=2)
    ablation = dict(ablation)
    model = dataclasses.replace(config.model, phrase_unit=ablation.pop("phrase_unit", "phrase"))
    changed = dataclasses.replace(config, model=model, objective=dataclasses.replace(config.objective, **ablation))
    found = losses(train(changed, data=shards, output=tmp_path / "changed").output)
    assert all(math.isfinite(loss) for loss in found)
    if ablation != {"equal_captions": "ignored"}:  # eight scenes seldom share a caption
        assert found != losses(train(config, data=shards, output=tmp_path / "plain").output)


@pytest.mark.parametrize("name", ["clip", "siglip", "filip", "sparc"])
def test_every_baseline_trains_in_the_same_loop(name, config, shards, tmp_path):
    config = dataclasses.replace(config, objective=ObjectiveConfig(name=name))
    result = train(config, data=shards, output=tmp_path / "run")
    terms = {key for key in read_metrics(result.output / "metrics.jsonl")[-1] if key.startswith("loss_")}
    assert terms == {"clip": {"loss_clip"}, "sparc": {"loss_clip", "loss_sparc"}}.get(name, {f"loss_{name}"})
    model, _, _ = powerclip.load(str(result.output))
    assert (model.logit_bias is not None) == (name == "siglip")
    assert load_config(result.output / "config.yaml").objective.name == name


def test_siglip_starts_from_its_paper_s_temperature_and_bias(config):
    model = loop.build_model(dataclasses.replace(config, objective=ObjectiveConfig(name="siglip")))
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10
    clip = loop.build_model(config)
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_a_loss_that_stays_non_finite_stops_the_run(config, shards, tmp_path, monkeypatch):
    config = dataclasses.replace(config, steps=20)
    forward = loop.PowerCLIPLoss.forward

    def poisoned(self, features):
        output = forward(self, features)
        return dataclasses.replace(output, total=output.total * float("nan"))

    monkeypatch.setattr(loop.PowerCLIPLoss, "forward", poisoned)
    with pytest.raises(RunFailedError, match="not finite in 10 steps in a row"):
        train(config, data=shards, output=tmp_path / "run")


def test_a_used_folder_is_not_overwritten(config, shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(PowerclipError, match="is not empty; add --resume auto"):
        train(config, data=shards, output=tmp_path / "run")
    assert (tmp_path / "run" / "precious").read_text() == "x"


def test_resuming_with_other_settings_is_refused(config, shards, tmp_path):
    train(config, data=shards, output=tmp_path / "run")
    with pytest.raises(PowerclipError, match="other settings .*seed: 0 then, 7 now"):
        train(dataclasses.replace(config, seed=7), data=shards, output=tmp_path / "run", resume=True)


def test_bad_data_is_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(PowerclipError, match="nowhere"):
        train(config, data=tmp_path / "nowhere", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_model_leaves_no_folder(config, shards, tmp_path):
    with pytest.raises(PowerclipError, match="unknown model 'tinny'; did you mean tiny"):
        train(dataclasses.replace(config, model=ModelConfig(name="tinny")), data=shards, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_is_one_line(config, shards, tmp_path):
    with pytest.raises(PowerclipError, match="device 'cuda:99' cannot be used here"):
        train(dataclasses.replace(config, device="cuda:99"), data=shards, output=tmp_path / "run")
