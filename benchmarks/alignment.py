"""Time and memory of the powerset alignment loss, forward and backward, compared with the obvious implementation.

    python benchmarks/alignment.py                       # growth with C, then with M and K; about ten minutes
    python benchmarks/alignment.py --pairs 128 512       # these batch sizes only
    python benchmarks/alignment.py --parts --pairs 512         # what the time is spent on, on one thread
    python benchmarks/alignment.py --plot docs/alignment.png   # exact 2^M against nla M, as a plot

Times are medians of interleaved repetitions in one process. Memory is the highest resident size of a separate
process while it computes, less what it held before, so it does not include the inputs. "dense" is the straightforward
implementation: s of all pairs as one (C, C, M, K) tensor, under autograd.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from powerclip.alignment import similarity
from powerclip.alignment.scoring import TILE_BYTES, Scoring
from powerclip.alignment.search import Candidates, hardest_negatives
from powerclip.alignment.similarity import validate
from powerclip.alignment.tiled import IMAGES_PER_TILE
from powerclip.loss import PowersetAlignmentLoss, triplet_loss

TAU, ZETA, MARGIN = 1e-3, 0.75, 0.2
DENSE_UP_TO = 1024
"""Pairs; at 2048 its tables alone would take about 20 GB."""


def dense_loss(regions: Tensor, phrases: Tensor) -> Tensor:
    """The straightforward implementation of the loss."""
    s = torch.einsum("imd,jkd->ijmk", regions, phrases)
    t1 = (TAU * F.softplus(s / TAU)).sum(dim=2).mean(dim=2)
    x = s / (2 * TAU)
    log_cosh = x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2)
    t2 = TAU * torch.logsumexp((x + ZETA * log_cosh).sum(dim=2), dim=2)
    scores = t1 + t2
    return triplet_loss(scores, margin=MARGIN) + triplet_loss(scores.T, margin=MARGIN)


WAYS = {
    "dense": dense_loss,
    "ours": PowersetAlignmentLoss(margin=MARGIN, tau=TAU, zeta=ZETA),
}


def make_inputs(C: int, M: int, K: int, D: int) -> tuple[Tensor, Tensor]:
    """Unit regions, and phrases that are sums of two unit words; unrelated, so that every hinge is open."""
    g = torch.Generator().manual_seed(0)
    regions = F.normalize(torch.randn(C, M, D, generator=g), dim=-1)
    phrases = F.normalize(torch.randn(2, C, K, D, generator=g), dim=-1).sum(dim=0)
    return regions.requires_grad_(), phrases.requires_grad_()


def step(way: str, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Forward and backward; the gradients stay in the inputs."""
    for x in inputs:
        x.grad = None
    loss = WAYS[way](*inputs)
    loss.backward()
    return loss.detach()


def check_parity(ways: list[str], inputs: tuple[Tensor, Tensor]) -> None:
    """All ways give the same loss and gradient before any is timed."""
    found = []
    for way in ways:
        loss = step(way, inputs)
        found.append((loss, *(x.grad.clone() for x in inputs)))
    for way, other in zip(ways[1:], found[1:], strict=True):
        for mine, theirs in zip(found[0], other, strict=True):
            error = (mine - theirs).norm() / mine.norm()
            # A float32 score of norm 20 is off by about 1e-6, which may swap two hardest negatives within that.
            assert error < 1e-2, f"{way} differs from {ways[0]} by {float(error):.1e}"


def times(ways: list[str], inputs: tuple[Tensor, Tensor], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every way, interleaved at random."""
    order = ways * repetitions
    random.Random(0).shuffle(order)
    for way in ways:
        step(way, inputs)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for way in order:
        start = time.perf_counter()
        step(way, inputs)
        found[way].append(time.perf_counter() - start)
    return found


def peak_bytes(way: str, shape: tuple[int, int, int, int]) -> int:
    """Highest resident bytes beyond the inputs, in a separate process."""
    command = [sys.executable, __file__, "--measure", way, *map(str, shape)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(answer.stdout.splitlines()[-1]))


def measure(way: str, shape: tuple[int, int, int, int]) -> None:
    """What ``peak_bytes`` runs: Linux's own high-water mark of the resident size, reset before the step."""
    step(way, make_inputs(16, *shape[1:]))  # libraries, threads and compiled code are not what is measured
    inputs = make_inputs(*shape)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(way, inputs)
    print(json.dumps(resident("VmHWM") - before))


def resident(name: str) -> int:
    """A field of this process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))


def compare(console: Console, title: str, shapes: list[tuple[int, int, int, int]], repetitions: int) -> None:
    """Print a table of all ways at some shapes."""
    table = Table(title=title)
    for heading in (
        "C",
        "M",
        "K",
        "way",
        "median s",
        "spread s",
        "times faster",
        "peak MB",
        "of dense",
        "share of GEMM",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for shape in shapes:
        C, M, K, _ = shape
        ways = [way for way in WAYS if way != "dense" or C <= DENSE_UP_TO]
        inputs = make_inputs(*shape)
        check_parity(ways, inputs)
        found = times(ways, inputs, repetitions)
        gemm = product_seconds(inputs)
        memory = {way: peak_bytes(way, shape) for way in ways}
        for way in ways:
            median = statistics.median(found[way])
            table.add_row(
                *(str(n) for n in (C, M, K)),
                way,
                f"{median:.3f}",
                f"{min(found[way]):.3f}-{max(found[way]):.3f}",
                f"{statistics.median(found['dense']) / median:.1f}" if "dense" in found else "",
                f"{memory[way] / 1e6:.0f}",
                f"1/{memory['dense'] / max(memory[way], 1):.0f}" if "dense" in memory else "",
                f"{gemm / median:.0%}",
            )
    console.print(table)


def product_seconds(inputs: tuple[Tensor, Tensor], repetitions: int = 3) -> float:
    """The floor: the matrix product of all regions and phrases alone, in row blocks, without keeping s."""
    a, b = (x.detach().flatten(0, 1) for x in inputs)
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for rows in a.split(512):
            _ = rows @ b.T
        found.append(time.perf_counter() - start)
    return min(found)


def parts(console: Console, shape: tuple[int, int, int, int], repetitions: int) -> None:
    """Print the CPU time of one thread that each part takes: the lowest of some runs, as others use the machine too."""
    torch.set_num_threads(1)
    inputs = make_inputs(*shape)
    r, p = validate(*(x.detach() for x in inputs), None, None)
    ids = torch.arange(shape[0])
    candidates = Candidates(image_id=ids, caption_id=ids, image_valid=ids >= 0, caption_valid=ids >= 0)
    scoring = Scoring(tau=TAU, zeta=ZETA)

    def products() -> None:
        by_region, columns = r.values.transpose(0, 1).contiguous(), p.values.flatten(0, 1)
        tile = TILE_BYTES["cpu"] // (16 * IMAGES_PER_TILE)
        for images in by_region.split(IMAGES_PER_TILE, dim=1):
            for part in columns.split(tile):
                buffer = torch.empty(images.shape[1], len(part))
                for region in images:
                    torch.mm(region, part.T, out=buffer)

    def whole() -> None:
        step("ours", inputs)

    def search() -> None:
        hardest_negatives(r, p, candidates=candidates, scoring=scoring)

    def product() -> None:
        product_seconds(inputs, repetitions=1)

    found = {}
    for function in (product, products, search, whole):
        runs = []
        for _ in range(repetitions + 1):
            start = time.thread_time()
            function()
            runs.append(time.thread_time() - start)
        found[function.__name__] = min(runs[1:])
    table = Table(title=f"CPU time of one thread, C, M, K, D = {shape}")
    for heading in ("part", "ms", "of all"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name, seconds in {
        "one product of all regions and phrases": found["product"],
        "products of the search's tiles": found["products"],
        "the rest of the search": found["search"] - found["products"],
        "pairs scored with gradient": found["whole"] - found["search"],
        "all": found["whole"],
    }.items():
        table.add_row(name, f"{seconds * 1e3:.0f}", f"{seconds / found['whole']:.0%}")
    console.print(table)


def plot(path: Path, console: Console) -> None:
    """Time of the two methods over the number of regions, measured here, as a plot and a table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = {"exact": list(range(2, 15, 2)), "nla": [*range(2, 17, 2), 24, 32, 48, 64]}
    found: dict[str, list[float]] = {}
    for method, counts in numbers.items():
        found[method] = []
        for M in counts:
            regions, phrases = (x.detach() for x in make_inputs(32, M, 8, 256))
            similarity(regions, phrases, method=method)
            runs = []
            for _ in range(5):
                start = time.perf_counter()
                similarity(regions, phrases, method=method)
                runs.append(time.perf_counter() - start)
            found[method].append(statistics.median(runs) * 1e3)
    console.print("similarity of 32 images and 32 captions, K = 8, D = 256: milliseconds", highlight=False)
    table = Table()
    for heading in ("M", *found):
        table.add_column(heading, justify="right")
    for M in numbers["nla"]:
        table.add_row(
            str(M),
            *(f"{found[name][numbers[name].index(M)]:.1f}" if M in numbers[name] else "" for name in found),
        )
    console.print(table)
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, label), marker in zip(
        {"exact": "exact: all $2^M$ subsets", "nla": "nla: linear in $M$"}.items(), "os", strict=True
    ):
        axes.plot(numbers[name], found[name], marker=marker, label=label)
    axes.set(xlabel="regions M", ylabel="milliseconds", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        C, M, K, D = map(int, arguments.measure[1:])
        measure(arguments.measure[0], (C, M, K, D))
        return
    console = Console(width=120)
    if arguments.plot:
        plot(arguments.plot, console)
        return
    if arguments.parts:
        for C in arguments.pairs:
            parts(console, (C, 10, 8, 256), arguments.repetitions)
        return
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32", highlight=False)
    compare(console, "growth with C", [(C, 10, 8, 256) for C in arguments.pairs], arguments.repetitions)
    if len(arguments.pairs) > 1:
        shapes = [(512, M, K, 256) for M, K in ((5, 8), (10, 4), (10, 8), (10, 16), (20, 8))]
        compare(console, "growth with M and K", shapes, arguments.repetitions)


if __name__ == "__main__":
    main()
