"""Many processes train what one process trains."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import powerclip
from powerclip.cli import main
from powerclip.config import DataConfig, ObjectiveConfig, ParallelConfig, PeriodicEvaluationConfig
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.runs import read_metrics
from powerclip.scenes import generate
from powerclip.train import train
from powerclip.train.step import Engine
from tests.support.models import write_start, write_tiny
from tests.support.processes import Command, children_of, free_port, is_alive, launched, run_on_processes
from tests.support.runs import losses, tiny_run, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_shards(generate("train", count=60, seed=0), folder, samples_per_shard=20)
    return folder


SETTINGS = {
    "ddp": {},
    "pieces": {"parallel": ParallelConfig(accumulate=2)},
    "fsdp": {"parallel": ParallelConfig(sharding="fsdp", accumulate=2), "ema_decay": 0.5},
    "two captions": {"data": DataConfig(captions=2), "parallel": ParallelConfig(accumulate=2)},
    "learned": {"objective": ObjectiveConfig(zero="learned", centre_scores="full")},
    "fsdp, learned": {
        "parallel": ParallelConfig(sharding="fsdp", accumulate=2),
        "objective": ObjectiveConfig(zero="learned", form="softmax"),
    },
    "fsdp, centred": {
        "parallel": ParallelConfig(sharding="fsdp"),
        "objective": ObjectiveConfig(zero="centred"),
    },
    "superclip": {"objective": ObjectiveConfig(name="superclip")},
    "fsdp, superclip": {
        "parallel": ParallelConfig(sharding="fsdp", accumulate=2),
        "objective": ObjectiveConfig(name="superclip"),
    },
    "by gradient": {"objective": ObjectiveConfig(gradient_ratio=0.5, gradient_cap=1.0, weight_warmup_steps=3)},
    "evaluated": {"evaluation": PeriodicEvaluationConfig(every_steps=3, size=6)},
    "fsdp, evaluated": {
        "parallel": ParallelConfig(sharding="fsdp"), "ema_decay": 0.5,
        "evaluation": PeriodicEvaluationConfig(every_steps=3, size=6),
    },
    "lora": {"ema_decay": 0.5},
    "fsdp, lora": {
        "parallel": ParallelConfig(sharding="fsdp", accumulate=2, activation_checkpointing=True), "ema_decay": 0.5,
    },
}  # fmt: skip


def small(folder, name="ddp"):
    config = tiny_run(folder, batch_size=12, steps=6, **SETTINGS[name])
    if "lora" in name:
        model = dataclasses.replace(config.model, pretrained=write_start(folder), lora_rank=2)
        config = dataclasses.replace(config, model=model)
    return config


def train_here(process, size, folder, data, name):
    config = small(folder, name)
    train(config, data=Path(data), output=Path(folder) / "many")
    return torch.zeros(())


def assert_same(many, one, steps=6):
    torch.testing.assert_close(losses(many), losses(one), rtol=1e-4, atol=1e-5)
    assert len(losses(many)) == steps
    # clipping and AdamW hide a gradient's scale, its norm does not
    norms = [
        torch.tensor([line["gradient_norm"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line])
        for run in (many, one)
    ]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-4)
    for folder in {path.name for path in one.glob("model*")} - {"model_best"}:  # the run's, and its average
        found, expected = (powerclip.load(run / folder)[0].state_dict() for run in (many, one))
        for name, value in expected.items():
            # AdamW turns the rounding of a gradient near 0 into a step of up to the learning rate
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.slow  # each starts processes that import everything
@pytest.mark.parametrize(
    ("size", "name"),
    [
        (2, "ddp"),
        (3, "ddp"),
        (2, "pieces"),
        (2, "two captions"),
        (2, "fsdp"),
        (2, "superclip"),
        (2, "fsdp, superclip"),
        (2, "by gradient"),
        (2, "evaluated"),
        (2, "fsdp, evaluated"),
        (2, "lora"),
        (2, "fsdp, lora"),
        (2, "learned"),
        (2, "fsdp, learned"),
        (2, "fsdp, centred"),
    ],
)
def test_many_processes_train_the_model_of_one(size, name, shards, tmp_path):
    config = small(tmp_path, name)
    run_on_processes(size, train_here, tmp_path, str(tmp_path), str(shards), name)
    one = train(config, data=shards, output=tmp_path / "one").output
    assert_same(tmp_path / "many", one)
    if "learned" in name:
        found, expected = (powerclip.load(run)[0].scoring.zero for run in (tmp_path / "many", one))
        assert found == pytest.approx(expected, rel=0.05) != 0  # AdamW divides a small gradient by itself
    if "evaluated" in name:
        found, expected = (
            [line for line in read_metrics(run / "metrics.jsonl") if "eval/mean" in line]
            for run in (tmp_path / "many", one)
        )
        assert [line["step"] for line in found] == [3, 6]
        assert found[0].keys() == expected[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "name"), [(2, 1, "ddp"), (1, 3, "ddp"), (2, 1, "fsdp"), (2, 1, "fsdp, lora")]
)
def test_a_run_goes_on_with_another_number_of_processes(before, after, name, shards, tmp_path, capsys):
    config = small(tmp_path, name)
    for size in (before, after):
        if size == before:  # as if it had been stopped after three of its six steps
            run_on_processes(size, train_until, tmp_path, str(tmp_path), str(shards), name, 3)
            assert max(line["step"] for line in read_metrics(tmp_path / "many" / "metrics.jsonl")) == 3
        else:
            run_on_processes(size, train_until, tmp_path, str(tmp_path), str(shards), name, None)
    said = capsys.readouterr().err
    assert "at step 3 of 6" in said
    assert f"It ran on {before} processes and continues on {after}" in said
    assert_same(tmp_path / "many", train(config, data=shards, output=tmp_path / "one").output)


def train_until(process, size, folder, data, name, stop_at):
    """Train in the folder's run, from where it is; ``stop_at`` raises a signal in the step before."""
    real = Engine.step

    def step(engine, pieces, number):
        if number + 1 == stop_at and process == 0:  # the others hear of it
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(engine, pieces, number)

    config = small(folder, name)
    try:
        Engine.step = step
        train(config, data=Path(data), output=Path(folder) / "many", resume=True)
    finally:
        Engine.step = real
    return torch.zeros(())


def in_own_folder(process, size, folder, data):
    try:
        train(small(folder), data=Path(data), output=Path(folder) / f"own-{process}")
    except PowerclipError as error:
        return str(error)


@pytest.mark.slow
def test_processes_that_do_not_share_the_run_folder_are_told(shards, tmp_path):
    for said in run_on_processes(2, in_own_folder, tmp_path, str(tmp_path), str(shards)):
        assert "is not the same folder on all nodes; name one that they share" in said


def torchrun(processes, arguments):
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "powerclip.cli"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_steps(process, run, steps):
    log = run / "metrics.jsonl"
    while not log.exists() or len(read_metrics(log)) < steps:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def arguments_of(folder, shards, output, *more):
    return [
        *("--recipe", "scenes_tiny", "--data", str(shards), "--output", str(output), "--device", "cpu"),
        *("--model.region-unit", "region"),  # random boxes
        *("--model.name", write_tiny(folder), "--optim.warmup-steps", "2", "--batch-size", "12"),
        *("--steps", "16", "--log-every-steps", "1", "--checkpoint-every-steps", "1", *more),
    ]


def command(process, size, arguments):
    assert main(["train", *arguments]) == 0
    return torch.zeros(())


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 1)])
def test_a_run_killed_at_any_moment_and_resumed_is_the_uninterrupted_one(processes, workers, shards, tmp_path):
    more = ("--data.workers", str(workers))
    run_on_processes(processes, command, tmp_path, arguments_of(tmp_path, shards, tmp_path / "whole", *more))
    cut = arguments_of(tmp_path, shards, tmp_path / "cut", "--resume", "auto", *more)
    at = random.Random().randrange(3, 14)
    print(f"killed after step {at}, wherever it is by then")

    def begin():
        variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
        return [
            Command(["train", *cut], tmp_path / f"log-{rank}", **variables | launched(rank, processes))
            for rank in range(processes)
        ]

    ranks = begin()
    wait_for_steps(ranks[0], tmp_path / "cut", at)
    for process in ranks:
        os.killpg(process.pid, signal.SIGKILL)
    for process in ranks:
        process.communicate()
    ranks = begin()
    output = "".join(process.communicate(timeout=300)[0] for process in ranks)
    assert [process.returncode for process in ranks] == [0] * processes, output
    assert "Resuming" in output
    assert output.count("Trained 16 steps") == 1
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "cut").items():
        assert torch.equal(value, expected[name]), name


def started(folder, shards, *more):
    """A run of one process some steps on."""
    arguments = arguments_of(folder, shards, folder / "run", "--steps", "100000", *more)
    process = Command(["train", *arguments], folder / "log")
    wait_for_steps(process, folder / "run", 3)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_ends_the_run_like_one_to_its_process(number, shards, tmp_path):
    process = started(tmp_path, shards, "--data.workers", "2", "--batch-size", "60")  # an epoch is a step
    os.killpg(process.pid, number)
    time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)  # a launcher passes it on
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "run the same command with --resume auto" in output
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.slow
def test_a_decoding_process_that_dies_is_named(shards, tmp_path):
    process = started(tmp_path, shards, "--data.workers", "2")
    while process.poll() is None:  # one that dies at the end of its epoch is not missed
        for worker in children_of(process.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.5)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    said = [line for line in output.splitlines() if line.startswith("powerclip: ")]
    assert len(said) == 1, output
    assert "a decoding process died: DataLoader worker" in said[0]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_a_message_within_a_minute(shards, tmp_path):
    process = torchrun(2, arguments_of(tmp_path, shards, tmp_path / "run", "--steps", "100000"))
    wait_for_steps(process, tmp_path / "run", 3)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    start = time.monotonic()
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert time.monotonic() - start < 60
    assert "Signal 9 (SIGKILL)" in output


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "training"])
def test_processes_whose_launcher_is_killed_end_within_a_minute(moment, shards, tmp_path):
    process = torchrun(2, arguments_of(tmp_path, shards, tmp_path / "run", "--steps", "100000"))
    while len(ranks := children_of(process.pid)) < 2:
        time.sleep(0.05)
    if moment == "training":
        wait_for_steps(process, tmp_path / "run", 3)
    else:
        time.sleep(3)  # they import, or look for one another
    process.kill()
    start = time.monotonic()
    while any(map(is_alive, ranks)):
        time.sleep(0.2)
        assert time.monotonic() - start < 60
    output = process.communicate()[0]
    said = output.count(f"torchrun (process {process.pid}) has died, so this ends too")
    # The stop of one is all processes', so that in training the other may have ended before it looks.
    assert said == 2 or (moment == "training" and said == 1)
    assert moment == "starting" or "run the same command with --resume auto to continue" in output


def refused(process, size, arguments):
    return main(["train", *arguments])


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_named(shards, tmp_path, capsys):
    arguments = arguments_of(tmp_path, shards, tmp_path / "run", "--batch-size", "13")
    assert 0 not in run_on_processes(2, refused, tmp_path, arguments)
    said = "powerclip [process 0]: batch_size is 13 and there are 2 processes; make it a multiple of 2"
    assert said in capsys.readouterr().err
