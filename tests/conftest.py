"""Settings of every test: few threads, no colour, a bounded hypothesis."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("COLUMNS", "200")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

from powerclip import silence

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read when triton is imported

torch.set_num_threads(1)
silence.AFTER_S = float("inf")  # what a command prints must not depend on how busy the machine is
hypothesis.settings.register_profile("powerclip", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "500")))
hypothesis.settings.load_profile("powerclip")


@pytest.fixture(autouse=True)
def threads_are_put_back():
    """A test that leaves another number of threads changes the last digits of all that follow it in its process."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="session")
def tower():
    """What a loader needs of the tiny model."""
    from tests.support.models import tiny_tower

    return tiny_tower()


@pytest.fixture(scope="session")
def tokenizer(tower):
    """The tiny model's tokenizer."""
    return tower.tokenizer
