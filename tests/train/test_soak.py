"""A training that is killed, damaged and resumed again and again is the uninterrupted one;
``make soak`` does it for hours."""

import os
import random
import signal
import time

import pytest
import torch

from powerclip.cli import main
from powerclip.data.shards import write_shards
from powerclip.runs import RunFolder, all_checkpoints, read_metrics
from powerclip.scenes import generate
from tests.support.models import write_tiny
from tests.support.processes import Command
from tests.support.runs import losses, weights

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
"""How long runs follow one another; there is one at least."""

STEPS = 24


def flip_a_bit(run, shards, draw):
    """In the newest checkpoint, if there is one before it: the next start refuses it, and it is deleted as it says."""
    if len(checkpoints := all_checkpoints(run.checkpoints)) > 1:
        path = draw.choice(sorted(checkpoints[-1].iterdir()))
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def cut_a_line(run, shards, draw):
    if run.metrics_file.exists():
        with run.metrics_file.open("a") as file:
            file.write('{"step": 99, "lo')


def leave_half_a_checkpoint(run, shards, draw):
    folder = run.checkpoints / f".step-{draw.randrange(STEPS):08d}.{draw.choice(['tmp', 'old'])}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "half").write_text("")


def cut_the_status(run, shards, draw):
    if run.status_file.exists():
        run.status_file.write_text("{")


def cut_an_index(run, shards, draw):
    for path in (shards / ".index").glob("*.npz"):
        os.truncate(path, draw.randrange(path.stat().st_size))


FAULTS = (flip_a_bit, cut_a_line, leave_half_a_checkpoint, cut_the_status, cut_an_index)


@pytest.mark.slow
def test_faults_at_random_change_nothing(tmp_path):
    shards = tmp_path / "scenes"
    write_shards(generate("train", count=60, seed=0), shards, samples_per_shard=20)
    usual = ["--recipe", "scenes_tiny", "--data", str(shards), "--device", "cpu", "--model.name", write_tiny(tmp_path)]
    usual += ["--optim.warmup-steps", "2", "--batch-size", "12", "--steps", str(STEPS), "--log-every-steps", "1"]
    usual += ["--checkpoint-every-steps", "1", "--data.workers", "1", "--resume", "auto"]
    assert main(["train", *usual, "--output", str(tmp_path / "whole")]) == 0
    until = time.monotonic() + 60 * MINUTES
    for number in range(10**6):
        print(f"run {number}")
        run = RunFolder(tmp_path / f"run-{number}")
        _train_through_faults([*usual, "--output", str(run.path)], run, shards, random.Random(number + int(until)))
        assert losses(run.path) == losses(tmp_path / "whole")
        expected = weights(tmp_path / "whole")
        assert all(torch.equal(value, expected[name]) for name, value in weights(run.path).items())
        if time.monotonic() > until:
            break


def _train_through_faults(arguments, run, shards, draw):
    at = 0
    while not run.is_finished():
        at += draw.randrange(4, 10)
        process = Command(["train", *arguments], run.path.with_suffix(".log"))
        while process.poll() is None and (at < STEPS) and len(read_metrics(run.metrics_file)) < at:
            time.sleep(0.01)
        how = draw.choice([signal.SIGKILL, signal.SIGTERM])
        if at < STEPS and process.poll() is None:
            os.killpg(process.pid, how)
        output = process.communicate(timeout=600)[0]
        assert "Traceback" not in output, output
        if " is damaged (" in output:
            damaged = all_checkpoints(run.checkpoints)[-1]
            assert f"checkpoint {damaged} is damaged (" in output, output
            for path in damaged.iterdir():
                path.unlink()
            damaged.rmdir()
            continue
        assert process.returncode in (0, -how), output
        if not run.is_finished():
            fault = draw.choice(FAULTS)
            print(f"{how.name} after step {at}, then {fault.__name__}")
            fault(run, shards, draw)
