"""What a step will take, against what tensors really take."""

import dataclasses

import pytest
import torch

from powerclip.train import estimate
from powerclip.train.build import build_model
from tests.support.runs import tiny_run


def test_bytes_at_the_highest_moment_are_counted():
    x = torch.zeros(1000)
    with estimate._Peak() as peak:
        y = x + 1  # 4000 bytes
        z = y + 1
        del y
        z.add_(1)  # in place
        w = z[10:] + 1  # a view takes nothing; 3960
    assert len(w) == 990
    assert peak.bytes == 8000


def test_a_pair_takes_its_activations_and_fewer_if_they_are_computed_again(tmp_path):
    config = tiny_run(tmp_path)
    again = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, activation_checkpointing=True))
    kept, dropped = (estimate.step_memory(c, build_model(c)) for c in (config, again))
    assert kept.pair > dropped.pair > 2 * 4 * 3 * 64 * 64  # two buffers of images
    assert estimate.step_memory(config, build_model(config), tokens=8).pair < kept.pair
    two = dataclasses.replace(config, data=dataclasses.replace(config.data, captions=2))
    assert estimate.step_memory(two, build_model(two)).pair > kept.pair
    patches = dataclasses.replace(config, model=dataclasses.replace(config.model, region_unit="patch"))
    assert estimate.step_memory(patches, build_model(patches)).vectors > kept.vectors  # N regions instead of M
    parameters = sum(p.nbytes for p in build_model(config).parameters())
    assert kept.state == 4 * parameters  # weights, gradients, two moments


@pytest.mark.parametrize("piece", [None, 4])
def test_the_largest_batch_fits_and_a_larger_one_does_not(piece, tmp_path):
    config = tiny_run(tmp_path)
    memory = estimate.step_memory(config, build_model(config))
    available = memory.step(40, piece=piece or 40)
    most = memory.most(available, piece=piece)
    assert most >= 40
    assert memory.step(most, piece=piece or most) <= available < memory.step(most + 1, piece=piece or most + 1)
    assert memory.most(memory.state) == 0
    assert memory.most(2 * available, piece=4) > memory.most(2 * available)
