import pytest
import torch

from powerclip.distributed import gather_rows, max_over_processes, rank, sum_over_processes, world_size
from tests.support.processes import run_on_processes

ROWS = {2: (3, 1), 3: (2, 4, 1)}


def rows_of(process, size):
    """A process's rows of (B, K, 2), B and K of its own, with distinct values."""
    B, K = ROWS[size][process], process + 1
    return torch.arange(B * K * 2, dtype=torch.float64).view(B, K, 2) + 100 * process + 1


def gather(process, size):
    x = rows_of(process, size).requires_grad_()
    everyone, start = gather_rows(x)
    weight = torch.arange(everyone.numel(), dtype=torch.float64).view_as(everyone)
    (everyone * weight * (process + 1)).sum().backward()
    booleans, _ = gather_rows(rows_of(process, size)[..., 0] % 2 == 1)
    total = sum_over_processes(torch.tensor(float(process + 1)))
    highest = max_over_processes(torch.tensor([process, -process]))
    return everyone.detach(), start, x.grad, booleans, total, highest


def test_one_process_is_left_alone():
    x = torch.ones(2, 3, requires_grad=True)
    everyone, start = gather_rows(x)
    assert everyone is x
    assert (start, rank(), world_size()) == (0, 0, 1)
    assert sum_over_processes(x).equal(x)
    assert max_over_processes(x).equal(x)
    assert not sum_over_processes(x).requires_grad


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_gets_all_rows_and_the_summed_gradient_of_its_own(size, tmp_path):
    results = run_on_processes(size, gather, tmp_path)
    widest = size
    padded = [torch.nn.functional.pad(rows_of(p, size), (0, 0, 0, widest - (p + 1))) for p in range(size)]
    expected = torch.cat(padded)
    weight = torch.arange(expected.numel(), dtype=torch.float64).view_as(expected)
    start = 0
    for process, (everyone, first, grad, booleans, total, highest) in enumerate(results):
        assert torch.equal(everyone, expected)
        assert torch.equal(booleans, expected[..., 0] % 2 == 1)
        assert first == start
        stop = start + ROWS[size][process]
        assert torch.equal(grad, weight[start:stop, : process + 1] * sum(range(1, size + 1)))
        assert total == sum(range(1, size + 1))
        assert highest.tolist() == [size - 1, 0]
        start = stop
