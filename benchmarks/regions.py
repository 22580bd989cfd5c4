"""What the softmax form of the alignment loss takes with more regions, single ones and all subsets of them.

    python benchmarks/regions.py

Forward and backward on one CPU core: 64 pairs, 8 phrases, 96 dimensions. Medians of interleaved repetitions in one
process, and their ratio to ten single regions, which is what a machine that does other work distorts least.
"""

import statistics
import time

import torch
from torch.nn.functional import normalize

from powerclip.config import ContrastConfig
from powerclip.config.values import Subsets
from powerclip.loss import PowersetAlignmentLoss

PAIRS, PHRASES, DIMENSION, REPETITIONS = 64, 8, 96, 9
CASES: tuple[tuple[int, Subsets], ...] = (
    *((10, "single"), (36, "single"), (196, "single")),
    *((10, "all"), (36, "all"), (196, "all")),
)


def step(regions: int, subsets: Subsets) -> float:
    """Seconds of one forward and backward pass."""
    loss = PowersetAlignmentLoss(
        contrast=ContrastConfig(form="softmax"), subsets=subsets, normalise_by_regions=subsets == "all"
    )
    r = normalize(torch.randn(PAIRS, regions, DIMENSION), dim=-1).requires_grad_()
    p = normalize(torch.randn(PAIRS, PHRASES, DIMENSION), dim=-1).requires_grad_()
    start = time.perf_counter()
    loss(r, p).backward()
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each number of regions and kind of subsets."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    times: dict[tuple[int, Subsets], list[float]] = {case: [] for case in CASES}
    for _ in range(1 + REPETITIONS):
        for case, seconds in times.items():
            seconds.append(step(*case))
    medians = {case: statistics.median(seconds[1:]) for case, seconds in times.items()}  # the first warms up
    for (regions, subsets), median in medians.items():
        ratio = median / medians[CASES[0]]
        print(f"{regions:4d} regions, {subsets:6s} {1000 * median:7.1f} ms, {ratio:5.1f} times ten single regions")


if __name__ == "__main__":
    main()
