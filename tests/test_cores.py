import os

import pytest
import torch

from powerclip.cores import cores_left_to


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("workers", "threads"), [(0, 4), (1, 3), (2, 2), (3, 2), (9, 2)])
def test_torch_leaves_cores_to_the_processes_that_read(four_cores, workers, threads):
    with cores_left_to(workers):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 4


def test_threads_that_were_asked_for_stay(four_cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with cores_left_to(3):
        assert torch.get_num_threads() == 4


def test_fewer_threads_than_cores_are_not_made_more(four_cores):
    torch.set_num_threads(2)
    with cores_left_to(1):
        assert torch.get_num_threads() == 2
