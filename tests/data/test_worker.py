"""Decoding processes that die."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest

from powerclip.data.shards import write_shards
from powerclip.errors import RunFailedError
from powerclip.scenes import generate
from tests.support.loaders import epoch_of, loader_of
from tests.support.models import tiny_tower


@pytest.fixture
def workers():
    """Returns the processes that are there in addition to those that other tests may have left."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


def kill(worker):
    os.kill(worker.pid, signal.SIGKILL)
    while os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        time.sleep(0.01)


def fails(_image):
    raise RuntimeError("not the worker's end")


def test_an_error_within_a_worker_is_no_death(tmp_path, workers):
    write_shards(generate("train", count=4, seed=0), tmp_path)
    loader = loader_of(tmp_path, replace(tiny_tower(), transform=fails), batch_size=2, workers=1)
    with pytest.raises(RuntimeError, match="not the worker's end"):
        next(epoch_of(loader))
    assert not workers()


def test_a_death_is_reported_when_the_next_batch_is_asked_for_and_nowhere_else(tmp_path, workers):
    write_shards(generate("train", count=64, seed=0), tmp_path, samples_per_shard=64)
    loader = loader_of(tmp_path, batch_size=2, workers=2)
    outside = signal.getsignal(signal.SIGCHLD)
    batches = epoch_of(loader)
    next(batches)
    kill(workers().pop())
    assert signal.getsignal(signal.SIGCHLD) == outside
    for _ in range(100_000):  # a handler of the death would have run by now
        pass
    with pytest.raises(RunFailedError, match="a decoding process died: DataLoader worker .* Killed"):
        next(batches)
    assert signal.getsignal(signal.SIGCHLD) == outside
    assert not workers()
    assert len(list(epoch_of(loader, 1))) == 32
    batches = epoch_of(loader, 2)
    next(batches)
    assert len(workers()) == 2
    batches.close()
    assert not workers()
