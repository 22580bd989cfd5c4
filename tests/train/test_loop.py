import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import open_clip
import pytest
import torch
from rich.console import Console

import powerclip
from powerclip.config import ModelConfig, ObjectiveConfig, ParallelConfig, PeriodicEvaluationConfig, load_config
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import find_damaged
from powerclip.loss import PowerCLIPLoss
from powerclip.recipes import RECIPES, recipe
from powerclip.runs import RunFolder, all_checkpoints, read_metrics, step_of
from powerclip.scenes import generate
from powerclip.train import checkpoint, loop, signals, train
from powerclip.train.build import build_model
from powerclip.train.evaluator import Evaluator
from powerclip.train.step import Engine
from tests.support.models import TINY, write_start
from tests.support.power import Disk, write_tree
from tests.support.runs import losses, tiny_run, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_shards(generate("train", count=40, seed=0), folder, samples_per_shard=20)
    return folder


@pytest.fixture
def config(tmp_path):
    return tiny_run(tmp_path)


def test_a_run_folder_holds_what_it_promises(config, shards, tmp_path):
    run = train(config, data=shards, output=tmp_path / "run").output
    assert load_config(run / "config.yaml") == config
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["samples_seen"] for line in lines] == [8 * step for step in range(1, 9)]
    assert {"loss", "loss_clip", "loss_powerset", "samples_per_s", "data_wait_s", "learning_rate"} <= set(lines[0])
    for line in lines:
        assert set(lines[0]) == set(line)
        shares = [value for name, value in line.items() if name.endswith(("zero_share", "i2t", "t2i"))]
        assert len(shares) == 6
        assert all(0 <= share <= 1 for share in shares)
        assert line["powerset_weight"] == config.objective.powerset_weight
        assert line["gradient_ratio"] > 0
        assert math.isfinite(line["score_gap"])
        expected = line["loss_clip"] + config.objective.powerset_weight * line["loss_powerset"]
        assert line["loss"] == pytest.approx(expected, rel=1e-6)
    names = [path.name for path in all_checkpoints(run / "checkpoints")]
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


def test_what_the_model_sees_is_shown_before_the_first_step_only(config, shards, tmp_path):
    def printed(name, **options):
        text = io.StringIO()
        run = train(
            config, data=shards, output=tmp_path / name, console=Console(file=text, width=200), **options
        ).output
        return run, text.getvalue()

    run, text = printed("a")
    assert "Of 40 captions, 0 (0%) are longer than the context of " in text
    assert re.search(
        r"train-00000000: 64 x 64 pixels, seen as 64 x 64 with 10 boxes\n  caption: 'a .*'\n  phrases: 'a ", text
    )
    assert text.count("  caption: ") == 3
    assert text.index("Of 40 captions") < text.index("8/8 steps")
    assert "caption" not in printed("a", resume=True)[1]
    blind, text = printed("b", look=False)
    assert "caption" not in text
    assert losses(blind) == losses(run)


def test_stored_regions_are_shown_too(config, shards, tmp_path):
    objective = dataclasses.replace(config.objective, region_source="stored", regions=2)
    text = io.StringIO()
    config = dataclasses.replace(config, objective=objective, steps=1)
    train(config, data=shards, output=tmp_path / "run", console=Console(file=text, width=200))
    drawn = re.findall(r"with (\d) of (\d) stored regions", text.getvalue())
    assert len(drawn) == 3
    assert all(int(some) == min(2, int(stored)) > 0 for some, stored in drawn)


def test_training_lowers_the_loss(config, shards, tmp_path):
    config = dataclasses.replace(config, steps=40, optim=dataclasses.replace(config.optim, learning_rate=3e-3))
    curve = losses(train(config, data=shards, output=tmp_path / "run").output)
    assert sum(curve[-5:]) < sum(curve[:5])


@pytest.mark.parametrize("name", ["powerclip", "superclip"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name, config, shards, tmp_path, monkeypatch):
    config = config.with_objective(name)
    whole = train(config, data=shards, output=tmp_path / "whole").output
    real_step, cut = Engine.step, tmp_path / "cut"

    def dies_at_step_5(engine, batch, step):
        if step == 5:
            raise RuntimeError("power cut")
        return real_step(engine, batch, step)

    monkeypatch.setattr(Engine, "step", dies_at_step_5)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, data=shards, output=cut)
    assert json.loads((cut / "status.json").read_text()) == {"step": 3, "steps": 8, "finished": False}
    monkeypatch.setattr(Engine, "step", real_step)
    assert train(config, data=shards, output=cut, resume=True).steps == 8
    assert losses(cut) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[name]), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_with_a_usable_folder(number, config, shards, tmp_path, monkeypatch, capsys):
    real_step = Engine.step

    def signalled_at_step_2(engine, batch, step):
        if step == 2:
            os.kill(os.getpid(), number)
        return real_step(engine, batch, step)

    monkeypatch.setattr(Engine, "step", signalled_at_step_2)
    monkeypatch.setattr(signals, "ECHO_S", math.inf)
    caught = []
    before = {each: signal.getsignal(each) for each in signals.SIGNALS}
    signal.signal(number, lambda number, _: caught.append(number))
    try:
        result = train(config, data=shards, output=tmp_path / "run")
        assert (result.interrupted, result.steps) == (True, 3)
        os.kill(os.getpid(), number)
        assert caught == []  # an echo, after the run's end
        monkeypatch.setattr(signals, "ECHO_S", 0.0)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert caught == [number, number]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert "run the same command with --resume auto" in capsys.readouterr().err
    powerclip.load(str(tmp_path / "run"))
    assert train(config, data=shards, output=tmp_path / "run", resume=True).steps == 8


STOPPED = """
import atexit, os, signal, threading, time
from signals import ECHO_S, stop_on_signal

def kill():
    os.kill(os.getpid(), {number})

def later():
    time.sleep({seconds})
    kill()

threading.Thread(target=later, daemon=True).start()
atexit.register(time.sleep, ECHO_S)
with stop_on_signal() as stop:
    kill()
    assert stop.requested
"""


def status_of_stopped(number, seconds):
    """The exit status of a process that is stopped, ends, and gets the signal again while it is ending."""
    code, package = STOPPED.format(number=int(number), seconds=seconds), Path(signals.__file__).parent
    return subprocess.run([sys.executable, "-c", code], cwd=package).returncode  # without what the package imports


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_echo_does_not_end_a_process_that_is_ending(number):
    assert status_of_stopped(number, 0.5) == 0


def test_a_later_signal_ends_a_process_that_is_ending():
    assert status_of_stopped(signal.SIGTERM, signals.ECHO_S + 1) == -signal.SIGTERM


def test_training_works_outside_the_main_thread(config, shards, tmp_path):
    config = dataclasses.replace(config, steps=1)
    results = []
    thread = threading.Thread(target=lambda: results.append(train(config, data=shards, output=tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].steps == 1


def test_a_task_of_srun_that_trains_alone_says_so(config, shards, tmp_path, monkeypatch, capsys):
    for name, tasks, said in (("a", "2", True), ("b", "1", False)):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        train(dataclasses.replace(config, steps=1), data=shards, output=tmp_path / name)
        assert ("srun has started 2 tasks and this one trains alone; to train" in capsys.readouterr().err) is said


def test_plain_clip_draws_no_boxes(config, shards, tmp_path):
    run = train(config.with_objective("clip"), data=shards, output=tmp_path / "run").output
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
    {"weight_start_step": 1},
    {"weight_warmup_steps": 3},
    {"gradient_ratio": 0.5},
    {"gradient_cap": 0.01},
    {"phrase_unit": "token"},
    {"phrase_unit": "both"},
    {"region_unit": "patch"},
]


@pytest.fixture(scope="module")
def few_captions(tmp_path_factory):
    """40 scenes with 5 captions: several pairs of a batch share one."""
    samples = list(generate("train", count=40, seed=0))
    said = [(sample.caption, sample.tree) for sample in samples[:5]]
    samples = [dataclasses.replace(s, caption=said[i % 5][0], tree=said[i % 5][1]) for i, s in enumerate(samples)]
    folder = tmp_path_factory.mktemp("few") / "train"
    write_shards(samples, folder, samples_per_shard=20)
    return folder


@pytest.fixture(scope="module")
def plain_losses(few_captions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return losses(train(tiny_run(folder, steps=2), data=few_captions, output=folder / "run").output)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_every_ablation_is_a_setting_that_changes_the_run(ablation, config, few_captions, plain_losses, tmp_path):
    config = dataclasses.replace(config, steps=2)
    units = {name: value for name, value in ablation.items() if name.endswith("_unit")}
    ablation = {name: value for name, value in ablation.items() if name not in units}
    model = dataclasses.replace(config.model, **units)
    changed = dataclasses.replace(config, model=model, objective=dataclasses.replace(config.objective, **ablation))
    found = losses(train(changed, data=few_captions, output=tmp_path / "changed").output)
    assert all(math.isfinite(loss) for loss in found)
    assert found != plain_losses


@pytest.mark.parametrize("name", ["powerclip", "clip"])
def test_phrases_that_are_read_alone_are_trained_on(name, config, shards, tmp_path):
    model = dataclasses.replace(config.model, phrase_context="alone")
    out = io.StringIO()
    alone = dataclasses.replace(config, model=model, steps=3).with_objective(name)
    run = train(alone, data=shards, output=tmp_path / "run", console=Console(file=out, width=1000)).output
    assert len(losses(run)) == 3
    assert "GiB for weights, gradients and optimiser and more for pairs and activations, not" in out.getvalue()


def test_too_many_regions_to_enumerate_are_refused_before_there_is_a_folder(config, shards, tmp_path):
    def refused(message, **changes):
        with pytest.raises(PowerclipError, match=message):
            train(dataclasses.replace(config, **changes), data=shards, output=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    patch = dataclasses.replace(config.model, region_unit="patch", image_size=96)
    exact = dataclasses.replace(config.objective, method="exact")
    refused(
        "^--model.region-unit patch and --objective.method exact: .* at most M = 16 regions, got 36; use",
        model=patch,
        objective=exact,
    )
    refused(
        "^--objective.regions 17 and --objective.method exact: .* got 17; use",
        objective=dataclasses.replace(exact, regions=17),
    )
    single = dataclasses.replace(exact, subsets="single")
    assert train(dataclasses.replace(config, objective=single, model=patch), data=shards, output=tmp_path / "run").steps


def test_settings_without_effect_are_named_before_the_first_step(config, shards, tmp_path):
    out = io.StringIO()
    objective = dataclasses.replace(config.objective, subsets="single", zero="learned", zeta="calibrated")
    objective = dataclasses.replace(objective, weight_start_step=9)
    idle = dataclasses.replace(config, objective=objective, steps=1)
    train(idle, data=shards, output=tmp_path / "run", console=Console(file=out, width=1000))
    assert "objective.zeta is 'calibrated' and has no effect: subsets is 'single'\n" in out.getvalue()
    assert "objective.zero is 'learned' and has no effect: subsets is 'single' and form 'triplet'" in out.getvalue()
    assert "objective.weight_start_step is 9 and training ends after step 1: no powerset loss\n" in out.getvalue()


def test_a_loss_without_regions_makes_none_of_patches(config, shards, tmp_path):
    on_patches = dataclasses.replace(config.model, region_unit="patch")
    of_clip = dataclasses.replace(config, model=on_patches, objective=ObjectiveConfig(name="clip"))
    assert build_model(of_clip).region_unit == "region"
    assert build_model(dataclasses.replace(of_clip, objective=ObjectiveConfig())).region_unit == "patch"
    train(of_clip, data=shards, output=tmp_path / "patch")
    train(dataclasses.replace(of_clip, model=config.model), data=shards, output=tmp_path / "region")
    assert losses(tmp_path / "patch") == losses(tmp_path / "region")


@pytest.mark.parametrize("name", ["clip", "siglip", "filip", "sparc", "superclip"])
def test_every_baseline_trains_in_the_same_loop(name, config, shards, tmp_path):
    config = dataclasses.replace(config, objective=ObjectiveConfig(name=name))
    result = train(config, data=shards, output=tmp_path / "run")
    terms = {key for key in read_metrics(result.output / "metrics.jsonl")[-1] if key.startswith("loss_")}
    two = {"sparc": {"loss_clip", "loss_sparc"}, "superclip": {"loss_clip", "loss_token"}}
    assert terms == two.get(name, {f"loss_{name}"})
    model, _, _ = powerclip.load(str(result.output))
    assert (model.logit_bias is not None) == (name == "siglip")
    assert load_config(result.output / "config.yaml").objective.name == name


def test_siglip_starts_from_its_paper_s_temperature_and_bias(config):
    model = build_model(dataclasses.replace(config, objective=ObjectiveConfig(name="siglip")))
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10
    clip = build_model(config)
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize(("steps", "in_a_row"), [(20, 10), (3, 3)])
def test_a_loss_that_stays_non_finite_stops_the_run(steps, in_a_row, config, shards, tmp_path, monkeypatch):
    config = dataclasses.replace(config, steps=steps)
    forward = PowerCLIPLoss.forward

    def poisoned(self, features, **options):
        output = forward(self, features)
        return dataclasses.replace(output, total=output.total * float("nan"))

    monkeypatch.setattr(PowerCLIPLoss, "forward", poisoned)
    with pytest.raises(RunFailedError, match=f"not finite in {in_a_row} steps in a row"):
        train(config, data=shards, output=tmp_path / "run")
    noted = [json.loads(line) for line in (tmp_path / "run" / "bad_batches.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in noted] == list(range(1, in_a_row + 1))
    assert all(len(entry["keys"]) == 8 for entry in noted)


def test_a_single_bad_step_is_counted_and_said(config, shards, tmp_path, monkeypatch, capsys):
    forward, calls = PowerCLIPLoss.forward, []

    def poisoned_once(self, features, **options):
        output = forward(self, features)
        calls.append(1)
        return dataclasses.replace(output, total=output.total * (float("inf") if len(calls) == 1 else 1.0))

    monkeypatch.setattr(PowerCLIPLoss, "forward", poisoned_once)
    run = train(dataclasses.replace(config, steps=2), data=shards, output=tmp_path / "run").output
    assert read_metrics(run / "metrics.jsonl")[-1]["bad_steps"] == 1
    assert "1 of 2 steps changed nothing: the loss or its gradient was not finite" in capsys.readouterr().err


def test_a_used_folder_is_not_overwritten(config, shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(PowerclipError, match="is not empty; add --resume auto"):
        train(config, data=shards, output=tmp_path / "run")
    assert (tmp_path / "run" / "precious").read_text() == "x"


def changed(config, **names):
    """A config with other values under dotted names."""
    for name, value in names.items():
        group, _, inner = name.rpartition("__")
        if group:
            value = dataclasses.replace(getattr(config, group), **{inner: value})
        config = dataclasses.replace(config, **{group or inner: value})
    return config


def test_what_is_learnt_does_not_depend_on_what_may_change_when_resuming(config, shards, tmp_path):
    whole = train(config, data=shards, output=tmp_path / "whole").output
    stopped(config, shards, tmp_path / "cut", at=4)
    other = changed(
        config,
        data__workers=1,
        data__max_bad_share=0.5,
        data__cache=str(tmp_path),
        checkpoint_every_steps=2,
        keep_checkpoints=9,
    )
    train(other, data=shards, output=tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(whole)
    assert load_config(tmp_path / "cut" / "config.yaml") == other


def stopped(config, shards, output, *, at):
    """A run that ended after a step, as by a signal."""
    real = Engine.step

    def step(engine, pieces, number):
        if number + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(engine, pieces, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        result = train(config, data=shards, output=output, resume=True)
    assert (result.steps, result.interrupted) == (at, True)


def test_a_signal_before_the_first_step_ends_the_run_with_a_message(config, shards, tmp_path, monkeypatch, capsys):
    def signalled(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return build_model(config)

    monkeypatch.setattr(loop, "build_model", signalled)
    result = train(config, data=shards, output=tmp_path / "run")
    assert (result.steps, result.interrupted) == (0, True)
    assert "Stopped at step 0 of 8: nothing was trained yet" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert train(config, data=shards, output=tmp_path / "run", resume=True).steps == 8


def test_a_run_whose_first_steps_were_bad_can_be_resumed(config, shards, tmp_path, monkeypatch):
    forward = PowerCLIPLoss.forward

    def poisoned(self, features, **options):
        output = forward(self, features)
        return dataclasses.replace(output, total=output.total * float("nan"))

    monkeypatch.setattr(PowerCLIPLoss, "forward", poisoned)
    stopped(config, shards, tmp_path / "run", at=2)
    monkeypatch.undo()
    assert train(config, data=shards, output=tmp_path / "run", resume=True).steps == 8


def test_another_number_of_cpu_threads_is_said_at_the_resume(config, shards, tmp_path, monkeypatch, capsys):
    stopped(config, shards, tmp_path / "run", at=4)
    assert " from scratch (" in capsys.readouterr().err
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    said = (
        "It ran on 1 CPU threads and continues on 7, which round sums in another order: for the same bits, set OMP_NUM"
    )
    assert train(config, data=shards, output=tmp_path / "run", resume=True).steps == 8
    shown = capsys.readouterr().err
    assert said in shown
    assert " from scratch" not in shown


def test_torch_leaves_cores_to_the_readers_of_a_training(config, shards, tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(loop, "cores_left_to", lambda workers: left.append(workers) or contextlib.nullcontext())
    for workers in (0, 1):
        train(changed(config, data__workers=workers), data=shards, output=tmp_path / str(workers))
    assert left == [0, 1]


def test_time_that_goes_to_reading_is_said_once_with_the_option_that_saves_it(
    config, shards, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "LONG_WAIT", 0.0)
    for cores, times in ((2, 1), (1, 0)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)), raising=False)
        train(changed(config, log_every_steps=1), data=shards, output=tmp_path / f"on-{cores}")
        assert capsys.readouterr().err.count("goes to reading samples: --data.workers 1") == times
    train(changed(config, data__workers=1), data=shards, output=tmp_path / "beside")
    assert "goes to reading" not in capsys.readouterr().err


def test_after_a_power_cut_at_any_moment_the_run_goes_on(config, shards, tmp_path, monkeypatch, capsys):
    """Each checkpoint that is left can be read, and what the run says of its steps is left too."""
    (tmp_path / "disk").mkdir()
    disk, often = Disk(tmp_path / "disk", monkeypatch), changed(config, steps=3, checkpoint_every_steps=1)
    train(often, data=shards, output=tmp_path / "disk" / "run")
    disk.close()
    left = [write_tree(tree, tmp_path / str(number)) / "run" for number, tree in enumerate(disk.left)]
    found = {}
    for run in map(RunFolder, left):
        newest = run.latest_checkpoint()
        step = 0 if newest is None else step_of(newest)
        found.setdefault(step, run.path)
        assert [line["step"] for line in read_metrics(run.metrics_file)][:step] == [*range(1, step + 1)]
        for folder in filter(Path.exists, (*all_checkpoints(run.checkpoints), run.model)):
            assert find_damaged(folder) is None
            assert len(list(folder.iterdir())) == 3
            assert run.config().steps == 3
            assert run.data() is not None
    assert found.keys() == {0, 1, 2, 3}
    assert train(often, data=shards, output=found[2], resume=True).steps == 3
    assert "at step 2 of 3" in capsys.readouterr().err
    expected = weights(tmp_path / "disk" / "run")
    assert all(torch.equal(value, expected[name]) for name, value in weights(found[2]).items())


def test_a_run_can_be_fixed_and_made_longer_and_says_so(config, shards, tmp_path, capsys):
    stopped(config, shards, tmp_path / "run", at=4)
    other = changed(config, steps=12, optim__learning_rate=1e-4)
    assert train(other, data=shards, output=tmp_path / "run", resume=True).steps == 12
    said = "Changed since the run started: optim.learning_rate: was 0.001, now 0.0001, steps: was 8, now 12"
    assert said in capsys.readouterr().err
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[4]["learning_rate"] < 1.1e-4 < lines[3]["learning_rate"]


def test_fewer_steps_than_were_done_are_refused_and_as_many_are_done_already(config, shards, tmp_path):
    run = train(changed(config, steps=4), data=shards, output=tmp_path / "run").output
    before = (run / "config.yaml").read_text()
    with pytest.raises(
        PowerclipError, match="run has done 4 steps and this asks for 3; ask for more than 4 to continue"
    ):
        train(changed(config, steps=3), data=shards, output=run, resume=True)
    assert (run / "config.yaml").read_text() == before
    assert train(changed(config, steps=4), data=shards, output=run, resume=True).steps == 4


def test_a_damaged_line_of_metrics_costs_no_other_when_a_run_is_resumed(config, shards, tmp_path):
    stopped(config, shards, tmp_path / "run", at=4)
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + '{"step": 2, "lo\n' + "".join(lines[2:]))
    train(config, data=shards, output=tmp_path / "run", resume=True)
    assert [line["step"] for line in read_metrics(log)] == [1, 3, 4, 5, 6, 7, 8]


def test_a_run_goes_on_with_its_own_data_only(config, shards, tmp_path):
    stopped(config, shards, tmp_path / "run", at=4)
    write_shards(generate("train", count=41, seed=0), tmp_path / "more", samples_per_shard=20)
    with pytest.raises(PowerclipError, match="trained on 40 samples in 2 shards, and these data are 41 in 3"):
        train(config, data=tmp_path / "more", output=tmp_path / "run", resume=True)
    write_shards(generate("train", count=40, seed=0), tmp_path / "cut", samples_per_shard=39)
    with pytest.raises(PowerclipError, match="40 samples in 2 shards, .*40 in 2 with other names or content"):
        train(config, data=tmp_path / "cut", output=tmp_path / "run", resume=True)
    (tmp_path / "named").mkdir()
    for shard in shards.glob("*.tar"):
        shutil.copy(shard, tmp_path / "named" / f"other-{shard.name}")
    with pytest.raises(PowerclipError, match="with other names or content; resume it on .*train, or start another run"):
        train(config, data=tmp_path / "named", output=tmp_path / "run", resume=True)


def test_data_that_an_earlier_version_did_not_record_are_recorded_and_reported(config, shards, tmp_path, capsys):
    run = train(config, data=shards, output=tmp_path / "run").output
    recorded = (run / "data.json").read_text()
    (run / "data.json").unlink()
    capsys.readouterr()
    for reported in (True, False):
        train(config, data=shards, output=run, resume=True)
        assert ("does not say which data it was trained on" in capsys.readouterr().err) is reported
        assert (run / "data.json").read_text() == recorded


def test_a_finished_run_that_is_run_again_keeps_its_checkpoints(config, shards, tmp_path, monkeypatch):
    run = train(config, data=shards, output=tmp_path / "run").output
    before = [(path.name, path.stat().st_mtime_ns) for path in all_checkpoints(run / "checkpoints")]
    shutil.rmtree(run / "model")  # as if it had been killed before this was written

    def full(*_, **__):
        raise AssertionError("written again")

    monkeypatch.setattr(checkpoint, "save_distributed", full)
    assert train(config, data=shards, output=run, resume=True).steps == 8
    assert [(p.name, p.stat().st_mtime_ns) for p in all_checkpoints(run / "checkpoints")] == before
    powerclip.load(run)
    assert json.loads((run / "status.json").read_text()) == {"step": 8, "steps": 8, "finished": True}


def test_a_failing_evaluation_costs_no_training(config, shards, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Evaluator, "evaluate", fails)
    config = dataclasses.replace(config, evaluation=PeriodicEvaluationConfig(every_steps=8, size=4))
    with pytest.raises(RuntimeError, match="out of memory"):
        train(config, data=shards, output=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.latest_checkpoint().name == "step-00000008"
    assert run.status() == {"step": 8, "steps": 8, "finished": False}
    monkeypatch.undo()
    train(config, data=shards, output=tmp_path / "run", resume=True)  # what was missed is done, once
    train(config, data=shards, output=tmp_path / "run", resume=True)
    assert [line["step"] for line in read_metrics(run.metrics_file) if "eval/mean" in line] == [8]
    assert run.model_best.is_dir()
    assert run.is_finished()


def test_a_signal_while_the_last_checkpoint_is_written_does_not_harm_it(config, shards, tmp_path, monkeypatch):
    real = checkpoint.save_distributed

    def signalled(state, checkpoint_id):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(state, checkpoint_id=checkpoint_id)

    monkeypatch.setattr(checkpoint, "save_distributed", signalled)
    config = dataclasses.replace(config, steps=3, checkpoint_every_steps=9)
    assert not train(config, data=shards, output=tmp_path / "run").interrupted
    powerclip.load(tmp_path / "run")


def test_pruning_cut_short_leaves_whole_checkpoints_only(config, shards, tmp_path, monkeypatch):
    run = train(config, data=shards, output=tmp_path / "run").output
    real = shutil.rmtree

    def dies_half_way(path, **_):
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", dies_half_way)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(run / "checkpoints", keep=1)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", real)
    assert [path.name for path in all_checkpoints(run / "checkpoints")] == ["step-00000008"]
    checkpoint.prune(run / "checkpoints", keep=1)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000008"]


def test_more_pieces_than_pairs_are_refused(config, shards, tmp_path):
    config = dataclasses.replace(config, parallel=ParallelConfig(accumulate=9))
    with pytest.raises(PowerclipError, match="accumulate is 9 and each process takes 8 pairs .*at most 8"):
        train(config, data=shards, output=tmp_path / "run")


@pytest.mark.parametrize(
    "wrong",
    [
        {"wandb_project": "x"},
        {"evaluation": PeriodicEvaluationConfig(every_steps=4, suite="quiz")},
        {"parallel": ParallelConfig(accumulate=9)},
        {"batch_size": 41},
        {"device": "cuda:99"},
    ],
    ids=str,
)
def test_what_is_refused_leaves_no_folder(wrong, config, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PowerclipError):
        train(dataclasses.replace(config, **wrong), data=shards, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_not_resumed(config, shards, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "model").write_text("mine")
    with pytest.raises(PowerclipError, match=r"holds no run \(no config.yaml\) and is not empty"):
        train(config, data=shards, output=tmp_path / "thesis", resume=True)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["model"]


def test_measures_are_those_of_logged_steps_and_change_nothing(config, shards, tmp_path, monkeypatch):
    asked, forward = [], PowerCLIPLoss.forward

    def seen(self, features, *, measure=False):
        asked.append(measure)
        return forward(self, features, measure=measure)

    monkeypatch.setattr(PowerCLIPLoss, "forward", seen)
    often = train(config, data=shards, output=tmp_path / "often").output
    assert asked == [True] * 8
    asked.clear()
    rarely = dataclasses.replace(config, log_every_steps=3)
    rare = train(rarely, data=shards, output=tmp_path / "rare").output
    assert asked == [False, False, True, False, False, True, False, True]
    changing = ("samples_per_s", "data_wait_s", "data_wait_share")
    lines = [
        {line["step"]: {name: value for name, value in line.items() if name not in changing} for line in found}
        for found in (read_metrics(run / "metrics.jsonl") for run in (often, rare))
    ]
    assert lines[1] == {step: lines[0][step] for step in (3, 6, 8)}


def test_a_scheduled_weight_goes_on_in_a_resumed_run(config, shards, tmp_path):
    scheduled = {"weight_start_step": 2, "weight_warmup_steps": 4, "gradient_ratio": 0.5, "gradient_cap": 0.6}
    objective = dataclasses.replace(config.objective, **scheduled)
    config = dataclasses.replace(config, objective=objective, checkpoint_every_steps=4)
    whole = train(config, data=shards, output=tmp_path / "whole").output
    curve, expected = read_metrics(whole / "metrics.jsonl"), weights(whole)
    assert [line["powerset_weight"] > 0 for line in curve] == [False, False] + 6 * [True]
    assert len({line["powerset_weight"] for line in curve}) == 7
    assert all(line["loss"] == line["loss_clip"] for line in curve[:2])
    shutil.rmtree(whole / "checkpoints" / "step-00000008")
    train(config, data=shards, output=whole, resume=True)
    names = ("step", "loss", "powerset_weight")
    again = read_metrics(whole / "metrics.jsonl")
    assert [[line[name] for name in names] for line in again] == [[line[name] for name in names] for line in curve]
    for name, value in weights(whole).items():
        assert torch.equal(value, expected[name]), name


def test_a_bad_step_leaves_what_is_calibrated_or_learned_alone(config, shards, tmp_path, monkeypatch):
    objective = dataclasses.replace(config.objective, zeta="calibrated", zero="learned")
    config = dataclasses.replace(config, objective=objective)
    forward, calls = PowerCLIPLoss.forward, []

    def poisoned(self, features, **options):
        calls.append(1)
        if len(calls) == 4:
            features = dataclasses.replace(features, regions=features.regions * float("nan"))
        return forward(self, features, **options)

    monkeypatch.setattr(PowerCLIPLoss, "forward", poisoned)
    lines = read_metrics(train(config, data=shards, output=tmp_path / "run").output / "metrics.jsonl")
    assert [line["bad_steps"] for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert lines[3]["loss"] is None
    assert lines[3]["zeta"] == lines[2]["zeta"]
    assert lines[3]["zero"] == lines[2]["zero"] != lines[4]["zero"]


def test_a_finished_run_without_checkpoints_is_kept_and_one_that_reached_none_starts_again(
    config, shards, tmp_path, monkeypatch, capsys
):
    short = changed(config, steps=2)

    def dies(*_):
        raise RuntimeError("out of power")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", dies)
        with pytest.raises(RuntimeError, match="out of power"):
            train(short, data=shards, output=tmp_path / "run")
    run = RunFolder(train(short, data=shards, output=tmp_path / "run", resume=True).output)
    assert "run stopped before its first checkpoint, so its run starts again" in capsys.readouterr().err
    shutil.rmtree(run.checkpoints)
    before = run.metrics_file.read_text(), run.status_file.read_text()
    with pytest.raises(PowerclipError, match="holds a run that did 2 steps but no checkpoint"):
        train(short, data=shards, output=run.path, resume=True)
    assert (run.metrics_file.read_text(), run.status_file.read_text()) == before


def test_resuming_with_other_settings_is_refused(config, shards, tmp_path):
    train(config, data=shards, output=tmp_path / "run")
    with pytest.raises(PowerclipError, match="other settings .*seed: was 0, now 7"):
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


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_with_a_smaller_model(name, config, shards, tmp_path):
    base = recipe(name)
    pretrained = None
    if base.model.pretrained is not None:
        torch.manual_seed(1)
        torch.save(open_clip.CLIP(**TINY).state_dict(), pretrained := str(tmp_path / "theirs.pt"))
    shrunken = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, name=config.model.name, pretrained=pretrained),
        data=dataclasses.replace(base.data, workers=0),
        batch_size=8,
        steps=2,
        epochs=None,
        log_every_steps=1,
        device="cpu",
    )
    run = train(shrunken, data=shards, output=tmp_path / "run").output
    assert all(math.isfinite(loss) for loss in losses(run))
    assert len(losses(run)) == 2


def test_pieces_of_a_batch_train_the_same_model(config, shards, tmp_path):
    whole = train(config, data=shards, output=tmp_path / "whole").output
    pieces = dataclasses.replace(config, parallel=ParallelConfig(accumulate=3, activation_checkpointing=True))
    run = train(pieces, data=shards, output=tmp_path / "pieces").output
    # 8 steps of AdamW at 1e-3: where a gradient is mere rounding, its sign, and so a step, may differ
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses(run), losses(whole), rtol=1e-4, atol=1e-5)


def test_the_average_of_the_weights_is_saved_and_resumed(config, shards, tmp_path):
    config = dataclasses.replace(config, ema_decay=0.5)
    whole = train(config, data=shards, output=tmp_path / "whole").output
    cut = train(dataclasses.replace(config, checkpoint_every_steps=4), data=shards, output=tmp_path / "cut").output
    for name in ("step-00000008", "step-00000006"):
        shutil.rmtree(cut / "checkpoints" / name, ignore_errors=True)
    train(config, data=shards, output=cut, resume=True)
    averages = [powerclip.load(run / "model_ema")[0].state_dict() for run in (whole, cut)]
    for name, value in averages[0].items():
        assert torch.equal(value, averages[1][name]), name
    assert any(not torch.equal(value, weights(whole)[name]) for name, value in averages[0].items())


def test_lora_leaves_all_but_the_linear_layers_and_is_resumed(config, shards, tmp_path, capsys):
    model = dataclasses.replace(config.model, pretrained=write_start(tmp_path), lora_rank=2)
    config = dataclasses.replace(config, model=model, ema_decay=0.5, checkpoint_every_steps=4)
    run = train(config, data=shards, output=tmp_path / "run").output
    said = capsys.readouterr().err
    assert "LoRA of rank 2 in 8 layers" in said
    assert re.search(r"0\.8 M parameters, 0\.00\d+ M of them trained", said)
    start = weights(tmp_path / "start")
    changed = {
        name.removeprefix("backbone.") for name, value in weights(run).items() if not torch.equal(value, start[name])
    }
    layers = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    blocks = ("visual.transformer.resblocks.0", "transformer.resblocks.0")
    assert changed == {f"{block}.{layer}" for block in blocks for layer in layers} | {"logit_scale"}
    expected = [powerclip.load(run / name)[0].state_dict() for name in ("model", "model_ema")]
    curve = losses(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    train(config, data=shards, output=run, resume=True)
    assert losses(run) == curve
    for name, before in zip(("model", "model_ema"), expected, strict=True):
        again = powerclip.load(run / name)[0].state_dict()
        assert all(torch.equal(value, before[key]) for key, value in again.items())


def test_a_calibrated_zeta_is_part_of_the_checkpoint(config, shards, tmp_path):
    objective = dataclasses.replace(config.objective, zeta="calibrated")
    config = dataclasses.replace(config, objective=objective, checkpoint_every_steps=4)
    whole = train(config, data=shards, output=tmp_path / "whole").output
    curve = read_metrics(whole / "metrics.jsonl")
    assert 0 <= curve[-1]["zeta"] <= 1
    assert powerclip.load(whole)[0].scoring == dataclasses.replace(objective.scoring, zeta=curve[-1]["zeta"])
    shutil.rmtree(whole / "checkpoints" / "step-00000008")
    train(config, data=shards, output=whole, resume=True)
    again = read_metrics(whole / "metrics.jsonl")
    assert [(line["loss"], line["zeta"]) for line in again] == [(line["loss"], line["zeta"]) for line in curve]


@pytest.mark.parametrize("zero", ["midpoint", "matched", "learned", "centred"])
def test_the_zero_is_trained_saved_with_the_model_and_part_of_the_checkpoint(zero, config, shards, tmp_path):
    objective = dataclasses.replace(config.objective, zero=zero, powerset_weight=1.0)
    config = dataclasses.replace(config, objective=objective, checkpoint_every_steps=4, log_every_steps=1)
    run = train(config, data=shards, output=tmp_path / "whole").output
    curve, whole = read_metrics(run / "metrics.jsonl"), weights(run)
    model = powerclip.load(run)[0]
    if zero == "centred":
        assert model.scoring.zero == "centred"
        assert (model.vector_means.norm(dim=1) > 0).all()
        assert all("zero" not in line for line in curve)
    else:
        assert len({line["zero"] for line in curve}) == 8
        assert model.scoring.zero == curve[-1]["zero"] != 0
        assert model.vector_means is None
    if zero == "learned":  # AdamW's steps are as long as the learning rate
        moves = [abs(line["zero"] - before["zero"]) for before, line in itertools.pairwise(curve)]
        assert max(moves) < 1.1 * config.optim.learning_rate
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    train(config, data=shards, output=run, resume=True)
    again = read_metrics(run / "metrics.jsonl")
    assert [(line["loss"], line.get("zero")) for line in again] == [(line["loss"], line.get("zero")) for line in curve]
    for name, value in weights(run).items():
        assert torch.equal(value, whole[name]), name


def test_a_frozen_tower_stays_and_the_other_moves(config, shards, tmp_path):
    for tower, prefix in (("image", "backbone.visual."), ("text", "backbone.t")):
        frozen = dataclasses.replace(config, steps=2, optim=dataclasses.replace(config.optim, freeze=tower))
        run = train(frozen, data=shards, output=tmp_path / tower).output
        torch.manual_seed(config.seed)
        fresh = build_model(config).state_dict()
        moved = {name for name, value in weights(run).items() if not torch.equal(value, fresh[name])}
        assert moved
        assert not any(name.startswith(prefix) for name in moved)


def test_evaluation_while_training_keeps_the_best_and_changes_nothing(config, shards, tmp_path):
    plain = train(config, data=shards, output=tmp_path / "plain").output
    evaluation = PeriodicEvaluationConfig(every_steps=4, size=8)
    config = dataclasses.replace(config, evaluation=evaluation)
    console = Console(file=io.StringIO(), width=200)
    run = train(config, data=shards, output=tmp_path / "run", console=console).output
    lines = read_metrics(run / "metrics.jsonl")
    evaluated = [line for line in lines if "eval/mean" in line]
    mean = f"{evaluated[0]['eval/mean']:.1%} in the evaluation after step 4"
    said = {line.split(" steps, ")[0].split()[-1]: line for line in console.file.getvalue().splitlines()}
    assert mean not in said["3/8"]
    assert all(mean in said[f"{step}/8"] for step in (5, 6, 7))
    assert [line["step"] for line in evaluated] == [4, 8]
    assert 0 <= evaluated[0]["eval/scenes-retrieval/i2t_R@1"] <= 1
    best = json.loads((run / "model_best" / "evaluation.json").read_text())
    assert best["mean"] == max(line["eval/mean"] for line in evaluated)
    powerclip.load(run / "model_best")
    for name, value in weights(plain).items():
        assert torch.equal(weights(run)[name], value), name
    with pytest.raises(PowerclipError, match="unknown suite 'quiz'"):
        train(
            dataclasses.replace(config, evaluation=PeriodicEvaluationConfig(every_steps=4, suite="quiz")),
            data=shards,
            output=tmp_path / "other",
        )


def test_the_best_model_of_another_evaluation_or_a_later_step_does_not_count(config, tmp_path):
    def evaluator(**evaluation):
        setup = changed(config, evaluation=PeriodicEvaluationConfig(every_steps=2, size=4, **evaluation))
        return Evaluator(setup, Engine(setup, build_model(setup), device=torch.device("cpu"), steps=8, output=tmp_path))

    first = evaluator()
    assert first.resume(0) == ""
    mean = first.evaluate(4)["eval/mean"]
    same = evaluator()
    assert same.resume(4) == ""
    assert same.best == mean
    early, other = evaluator(), evaluator(suite="scenes-segmentation")
    assert "model_best is of step 4, and this continues from step 2: the next evaluation" in early.resume(2)
    assert "of another evaluation ({'suite': 'scenes', 'data': None, 'size': 4}): the next" in other.resume(4)
    assert early.best < 0 > other.best


def test_a_missing_tracker_is_named(config, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PowerclipError, match=r"pip install 'powerclip\[wandb\]'"):
        train(dataclasses.replace(config, wandb_project="x"), data=shards, output=tmp_path / "run")


@pytest.mark.slow  # compiles the blocks of both towers, forward and backward
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the compiler's own
def test_compiled_blocks_train_the_same_model(config, shards, tmp_path):
    whole = train(dataclasses.replace(config, steps=3), data=shards, output=tmp_path / "plain").output
    compiled = dataclasses.replace(config, steps=3, parallel=ParallelConfig(compile=True))
    run = train(compiled, data=shards, output=tmp_path / "compiled").output
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    expected = weights(whole)
    assert weights(run).keys() == expected.keys()


def test_a_disk_that_is_full_costs_no_earlier_checkpoint(config, shards, tmp_path, monkeypatch):
    real, saves = checkpoint.save_distributed, []

    def full_at_the_second(state, checkpoint_id):
        saves.append(checkpoint_id)
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard) if len(saves) == 2 else limits)
            return real(state, checkpoint_id=checkpoint_id)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(checkpoint, "save_distributed", full_at_the_second)
    config = dataclasses.replace(config, checkpoint_every_steps=2)
    with pytest.raises(RunFailedError, match="step-00000004 could not be written: .*File too large"):
        train(config, data=shards, output=tmp_path / "run")
    assert [path.name for path in all_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002"]
    assert train(config, data=shards, output=tmp_path / "run", resume=True).steps == 8
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_the_estimate_is_printed_before_the_first_step(config, shards, tmp_path, capsys):
    train(dataclasses.replace(config, steps=1), data=shards, output=tmp_path / "run")
    assert re.search(
        r"0\.8 M parameters, .* 8 pairs at a time .* GiB for pairs and activations", capsys.readouterr().err
    )
