"""Rows of several processes: seen by all in a ring, and fetched with their gradient."""

import pytest
import torch

from powerclip.distributed import fetch_rows, request_rows, ring
from tests.support.processes import run_on_processes

ROWS = {2: (3, 1), 3: (2, 0, 4)}
WANTED = {2: ([3, 0, 3, 2], []), 3: ([5], [0, 0, 2], [4, 1, 0, 5, 5])}
"""Of all processes' rows, by each: own and others', several times, none."""


def rows_of(process, size):
    return torch.arange(ROWS[size][process] * 4, dtype=torch.float64).view(-1, 2, 2) + 100 * process + 1


def exchange(process, size):
    x = rows_of(process, size).requires_grad_()
    blocks = [(owner, block.clone()) for owner, block in ring(x, ROWS[size])]
    index = torch.tensor(WANTED[size][process], dtype=torch.int64)
    fetched = fetch_rows(x, request_rows(index, ROWS[size]))
    (fetched * torch.arange(1.0, fetched.numel() + 1).view_as(fetched) * (process + 1)).sum().backward()
    return blocks, fetched.detach(), x.grad


@pytest.mark.parametrize("size", [2, 3])
def test_rows_reach_who_wants_them_and_gradients_come_back(size, tmp_path):
    everyone = torch.cat([rows_of(process, size) for process in range(size)]).requires_grad_()
    results = run_on_processes(size, exchange, tmp_path)
    total = torch.zeros(())
    for process, (blocks, fetched, _) in enumerate(results):
        assert [owner for owner, _ in blocks] == [(process + step) % size for step in range(size)]
        for owner, block in blocks:
            assert torch.equal(block, rows_of(owner, size))
        expected = everyone[torch.tensor(WANTED[size][process], dtype=torch.int64)]
        assert torch.equal(fetched, expected)
        weight = torch.arange(1.0, expected.numel() + 1).view_as(expected)
        total = total + (expected * weight * (process + 1)).sum()
    total.backward()
    torch.testing.assert_close(torch.cat([grad for *_, grad in results]), everyone.grad, rtol=0, atol=0)
