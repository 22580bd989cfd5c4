"""benchmarks/alignment_gpu.py, at sizes for Triton's interpreter."""

import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch on Linux only")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "alignment_gpu.py"


def test_every_way_is_checked_and_timed(monkeypatch, capsys):
    sizes = ["--pairs", "6", "--regions", "2", "--phrases", "3", "--dimension", "16", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *sizes])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "M = 2, K = 3, D = 16" in printed
    for task, ways in (
        ("search", ("gemm", "eager", "eager bfloat16", "torch", "triton")),
        ("loss", ("eager", "triton")),
    ):
        rows = printed[printed.index(f"{task}, C = 6") :]
        for way in ways:
            assert re.search(rf"│ {way} +│ +[0-9.]+ │ +[0-9.]+-[0-9.]+ │", rows), f"no row of {way} in {task}"


def test_a_way_that_finds_other_negatives_is_not_timed():
    script = runpy.run_path(str(SCRIPT))
    problem = script["Problem"].make(6, 2, 3, 16)
    right = script["torch_search"]

    def wrong(problem):
        caption, image = right(problem)
        others = (caption + 1) % 6
        return torch.where(others == torch.arange(6, device=others.device), (others + 1) % 6, others), image

    script["check_searches"]({"torch": right, "triton": script["triton_search"]}, problem)
    with pytest.raises(AssertionError, match="wrong misses a negative by"):
        script["check_searches"]({"torch": right, "wrong": wrong}, problem)
    fewer = replace(problem, phrases=replace(problem.phrases, values=problem.phrases.values * 2))
    losses = {"torch": script["LOSSES"]["torch"], "doubled": lambda _: script["LOSSES"]["torch"](fewer)}
    with pytest.raises(AssertionError, match="the loss of doubled"):
        script["check_losses"](losses, problem)


@pytest.mark.slow
def test_the_kernel_compiles_for_a_gpu_that_is_not_there():
    """With tensor cores' instructions, and as few registers as a thread has."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), "--registers", "90"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = [line.split("│")[1:-1] for line in answer.stdout.splitlines() if line.startswith("│")]
    assert {row[0].strip() for row in rows} == {"float16", "float32"}
    for row in rows:
        registers, spilled, shared = (int(cell) for cell in row[-3:])
        assert 0 < registers <= 255
        assert spilled == 0
        assert 0 < shared <= 227  # what a block may have on sm_90
