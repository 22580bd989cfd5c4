"""Time and memory of the alignment's Triton kernel on a GPU, next to its floor and to what it replaces.

    python benchmarks/alignment_gpu.py                      # search, and loss with its gradient, at growing C
    python benchmarks/alignment_gpu.py --pairs 4096 --tiles # the kernel with other tiles
    python benchmarks/alignment_gpu.py --registers          # what the compiler makes of it for sm_90; needs no GPU
    TRITON_INTERPRET=1 python benchmarks/alignment_gpu.py --pairs 12 --regions 2 --phrases 3 --dimension 16
                                                            # toy, on a CPU

"search" is the pass without gradient that finds the hardest negative of each row and column;
"loss" is forward and backward. Ways:

- gemm: the bare product of all regions and present phrases in float16, in blocks of rows: the floor of any search;
- eager, eager bfloat16: the straightforward implementation, s of all pairs as one tensor;
- compiled: the same for blocks of images under torch.compile (max-autotune), products in float16;
- torch: ours in plain PyTorch, tile by tile, in float32;
- triton: the kernel.

Captions have K / 2 to K phrases. Before anything is timed, the negatives that each way finds are scored again in
float64, and none may be lower than the best way's by more than its arithmetic allows; the inputs are such that float16
and bfloat16 hold them exactly. Times are medians, with lowest and highest, of repetitions in random order, by events of
the device. TFLOP/s count phrases that are present.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from powerclip.alignment import fused, search
from powerclip.alignment.aggregators import aggregate
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.tiled import score_pairs
from powerclip.alignment.vectors import MaskedVectors
from powerclip.loss import PowersetAlignmentLoss, triplet_loss

TAU, ZETA, MARGIN = 1e-3, 0.75, 0.2
SCORING = Scoring(tau=TAU, zeta=ZETA)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILES = [
    fused.Tile(),
    fused.Tile(slots=8),
    fused.Tile(slots=16),
    fused.Tile(images=64, rows=128),
    fused.Tile(images=64, rows=64),
    fused.Tile(depth=32, stages=4),
    fused.Tile(stages=2),
    fused.Tile(stages=4),
    fused.Tile(group=8),
    fused.Tile(group=32, stages=4),
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Regions and phrases of C pairs that bfloat16 and float16 hold exactly."""

    regions: MaskedVectors
    phrases: MaskedVectors

    @classmethod
    def make(cls, C: int, M: int, K: int, D: int) -> Problem:
        """Random unit vectors; captions have K / 2 to K phrases."""
        g = torch.Generator().manual_seed(0)
        values = [F.normalize(torch.randn(C, n, D, generator=g), dim=-1).to(DEVICE) for n in (M, K)]
        # 7 bits, none below 2^-14: both types hold them.
        values = [(x * 2**10).round().div(2**10).bfloat16().float() for x in values]
        counts = torch.randint((K + 1) // 2, K + 1, (C,), generator=g)
        mask = (torch.arange(K) < counts[:, None]).to(DEVICE)
        return cls(
            regions=MaskedVectors(values=values[0], mask=torch.ones(C, M, dtype=torch.bool, device=DEVICE)),
            phrases=MaskedVectors(values=values[1] * mask[..., None], mask=mask),
        )

    @property
    def flop(self) -> int:
        """Multiplications and additions of all regions with all phrases that are present."""
        C, M, D = self.regions.values.shape
        return 2 * C * M * int(self.phrases.mask.sum()) * D

    @property
    def candidates(self) -> search.Candidates:
        """All but the pairs."""
        ids = torch.arange(len(self.regions), device=DEVICE)
        return search.Candidates(image_id=ids, caption_id=ids, image_valid=ids >= 0, caption_valid=ids >= 0)


Found = tuple[Tensor, Tensor]
"""(C,) the hardest caption of each image, and (C,) the hardest image of each caption."""


def scores_of(regions: Tensor, phrases: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(i, C) scores from s of all of regions (i, M, D) and phrases (C, K, D) at once, products of ``dtype``."""
    s = torch.einsum("imd,jkd->ijmk", regions.to(dtype), phrases.to(dtype)).float()
    present = torch.ones(1, 1, regions.shape[1], dtype=torch.bool, device=regions.device)
    t1, t2 = aggregate(s, present, mask[None], tau=TAU, zeta=ZETA)
    return t1 + t2


def without_pairs(scores: Tensor, start: int = 0) -> Tensor:
    """Scores (i, C) of the images from ``start``, with the pairs out of the way."""
    own = torch.arange(start, start + len(scores), device=scores.device)
    return scores.masked_fill(own[:, None] == torch.arange(scores.shape[1], device=scores.device), -math.inf)


def eager_search(problem: Problem, dtype: torch.dtype) -> Found:
    scores = without_pairs(scores_of(problem.regions.values, problem.phrases.values, problem.phrases.mask, dtype))
    return scores.argmax(dim=1), scores.argmax(dim=0)


def blocks_of(problem: Problem) -> list[slice]:
    """Blocks of images whose s has at most 2^28 elements."""
    C, M = problem.regions.mask.shape
    rows = max(1, min(C, 2**28 // (C * M * problem.phrases.mask.shape[1])))
    return [slice(start, start + rows) for start in range(0, C, rows)]


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def compiled_search(problem: Problem) -> Found:
    parts = [
        compiled(scores_of)(problem.regions.values[rows], problem.phrases.values, problem.phrases.mask, torch.float16)
        for rows in blocks_of(problem)
    ]
    scores = without_pairs(torch.cat(parts))
    return scores.argmax(dim=1), scores.argmax(dim=0)


def torch_search(problem: Problem) -> Found:
    found = search.hardest_negatives(
        problem.regions,
        problem.phrases,
        candidates=problem.candidates,
        scoring=SCORING,
    )
    return found.caption, found.image


def triton_search(problem: Problem, tile: fused.Tile | None = None) -> Found:
    found = fused.hardest_negatives(
        problem.regions, problem.phrases, candidates=problem.candidates, scoring=SCORING, tile=tile
    )
    return found.caption, found.image


def gemm(problem: Problem) -> None:
    a, b = problem.regions.values.flatten(0, 1).half(), problem.phrases.values[problem.phrases.mask].half()
    for rows in a.split(max(1, 2**28 // len(b))):
        torch.mm(rows, b.T)


def eager_loss(problem: Problem, dtype: torch.dtype) -> Tensor:
    scores = scores_of(problem.regions.values, problem.phrases.values, problem.phrases.mask, dtype)
    return triplet_loss(scores, margin=MARGIN) + triplet_loss(scores.T, margin=MARGIN)


OURS = {
    backend: PowersetAlignmentLoss(margin=MARGIN, tau=TAU, zeta=ZETA, backend=backend)
    for backend in ("torch", "triton")
}


def with_gradient(loss: Callable[[Problem], Tensor]) -> Callable[[Problem], Tensor]:
    """Forward and backward; gradients of both inputs."""

    def step(problem: Problem) -> Tensor:
        vectors = [x.values.detach().requires_grad_() for x in (problem.regions, problem.phrases)]
        value = loss(
            Problem(
                regions=replace(problem.regions, values=vectors[0]), phrases=replace(problem.phrases, values=vectors[1])
            )
        )
        torch.autograd.grad(value, vectors)
        return value.detach()

    return step


def ours(backend: str) -> Callable[[Problem], Tensor]:
    def loss(problem: Problem) -> Tensor:
        r, p = problem.regions, problem.phrases
        value: Tensor = OURS[backend](r.values, p.values, r.mask, p.mask)
        return value

    return loss


SEARCHES: dict[str, Callable[[Problem], Found]] = {
    "eager": lambda problem: eager_search(problem, torch.float32),
    "eager bfloat16": lambda problem: eager_search(problem, torch.bfloat16),
    "compiled": compiled_search,
    "torch": torch_search,
    "triton": triton_search,
}
LOSSES: dict[str, Callable[[Problem], Tensor]] = {
    "eager": with_gradient(lambda problem: eager_loss(problem, torch.float32)),
    "eager bfloat16": with_gradient(lambda problem: eager_loss(problem, torch.bfloat16)),
    "compiled": with_gradient(lambda problem: compiled(eager_loss)(problem, torch.float16)),
    "torch": with_gradient(ours("torch")),
    "triton": with_gradient(ours("triton")),
}


def rounding(way: str, problem: Problem) -> float:
    """How far a way's scores may be off: similarities are at most 1, and derivatives of a score by them too.

    D sums of a similarity and M of a score are rounded to float32, where tensor cores truncate to 2^-23; s of "eager
    bfloat16" is stored in bfloat16, that of "compiled" perhaps in float16.
    """
    M, D = problem.regions.values.shape[1:]
    stored = {"eager bfloat16": 2**-8, "compiled": 2**-11}.get(way, 0.0)
    return M * stored + (2 * M * D + 4 * M * M + 4 * M) * 2**-23 + M * 2**-21


def check_searches(ways: dict[str, Callable[[Problem], Found]], problem: Problem) -> None:
    """The negatives of all ways are equally hard, up to twice their rounding and that of the best of them."""
    exact = {}
    everyone = torch.arange(len(problem.regions), device=DEVICE)
    for way, found in ((way, function(problem)) for way, function in ways.items()):
        for side, (i, j) in enumerate(((everyone, found[0]), (found[1], everyone))):
            assert not (i == j).any(), f"{way} takes a pair for a negative"
            parts = []
            for rows in torch.arange(len(i), device=DEVICE).split(256):
                r, p = problem.regions[i[rows]], problem.phrases[j[rows]]
                r, p = replace(r, values=r.values.double()), replace(p, values=p.values.double())
                parts.append(SCORING.total(*score_pairs(r, p, scoring=SCORING), r.mask))
            exact[way, side] = torch.cat(parts)
    for side in (0, 1):
        best = torch.stack([exact[way, side] for way in ways]).amax(dim=0)
        for way in ways:
            gap = float((best - exact[way, side]).max())
            limit = 2 * rounding(way, problem)
            assert gap <= limit, f"{way} misses a negative by {gap:.1e}, more than the {limit:.1e} of its rounding"


def check_losses(ways: dict[str, Callable[[Problem], Tensor]], problem: Problem) -> None:
    """The losses are equal: two hinges, each of two scores."""
    values = {way: float(function(problem)) for way, function in ways.items()}
    for way, value in values.items():
        limit = 4 * (rounding(way, problem) + rounding("torch", problem))
        assert abs(value - values["torch"]) <= limit, f"the loss of {way} is {value}, that of torch {values['torch']}"


def seconds(function: Callable[[], object]) -> float:
    """Time of one run, by events of the device."""
    if DEVICE.type == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    function()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def measure(ways: dict[str, Callable[[Problem], object]], problem: Problem, repetitions: int) -> dict[str, list[float]]:
    """Seconds of every way, in random order, after one run of each."""
    for function in ways.values():
        function(problem)
    order = [way for way in ways for _ in range(repetitions)]
    random.Random(0).shuffle(order)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for way in order:
        function = ways[way]
        found[way].append(seconds(lambda function=function: function(problem)))
    return found


def peak_bytes(function: Callable[[Problem], object], problem: Problem) -> int | None:
    """Highest memory beyond the inputs; None on a CPU."""
    if DEVICE.type == "cpu":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function(problem)
    return torch.cuda.max_memory_allocated() - before


def usable(way: str, problem: Problem, task: str) -> bool:
    """Eager ways up to a fourth of the memory for s alone; torch.compile on a GPU, its dense loss as eager."""
    if way.startswith("eager") or (way == "compiled" and task == "loss"):
        (C, M), K = problem.regions.mask.shape, problem.phrases.mask.shape[1]
        memory = torch.cuda.mem_get_info()[1] if DEVICE.type == "cuda" else 2**32
        if 4 * C * C * M * K * (4 if task == "search" else 10) > memory:
            return False
    return way != "compiled" or DEVICE.type == "cuda"


def compare(console: Console, task: str, problem: Problem, repetitions: int) -> None:
    """Print a table of the ways of one task at one size."""
    ways: dict[str, Callable[[Problem], object]]
    if task == "search":
        searches = {way: function for way, function in SEARCHES.items() if usable(way, problem, task)}
        check_searches(searches, problem)
        ways = {"gemm": gemm, **searches}
    else:
        losses = {way: function for way, function in LOSSES.items() if usable(way, problem, task)}
        check_losses(losses, problem)
        ways = {**losses}
    print_times(console, f"{task}, C = {len(problem.regions)}", ways, problem, repetitions)


def print_times(
    console: Console, title: str, ways: dict[str, Callable[[Problem], object]], problem: Problem, repetitions: int
) -> None:
    table = Table(title=title)
    for heading in ("way", "median ms", "spread ms", "of triton", "useful TFLOP/s", "peak MB"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    found = measure(ways, problem, repetitions)
    reference = statistics.median(found["triton"])
    for way, times in found.items():
        median, memory = statistics.median(times), peak_bytes(ways[way], problem)
        table.add_row(
            way,
            f"{median * 1e3:.3f}",
            f"{min(times) * 1e3:.3f}-{max(times) * 1e3:.3f}",
            f"{median / reference:.2f}",
            f"{problem.flop / median / 1e12:.1f}",
            "" if memory is None else f"{memory / 1e6:.0f}",
        )
    console.print(table)


def sweep(console: Console, problem: Problem, repetitions: int) -> None:
    """Print the times of the search with other tiles, each checked first; "triton" is the default."""
    ways = {str(tile): (lambda problem, tile=tile: triton_search(problem, tile)) for tile in TILES[1:]}
    check_searches({"triton": triton_search, **ways}, problem)
    print_times(console, f"tiles, C = {len(problem.regions)}", {"triton": triton_search, **ways}, problem, repetitions)


def compile_for(architecture: int, dtype: torch.dtype, tile: fused.Tile) -> tuple[int, int, int]:
    """Registers of a thread, bytes that it spills, and bytes of shared memory of the search, as compiled for a GPU."""
    names = fused.align.arg_names
    floats = {torch.float16: "*fp16", torch.float32: "*fp32"}
    types = dict.fromkeys(names[: names.index("ROWS")], "*fp32")
    types |= dict.fromkeys(("phrases", "regions"), floats[dtype]) | dict.fromkeys("JIMD", "i32") | {"tau": "fp32"}
    types |= dict.fromkeys(("captions", "images", "caption_key", "image_key"), "*i64")
    constants = fused.constants(scoring=SCORING, regions=10, tile=tile, store=False)
    multiples = {name for name, kind in types.items() if kind.startswith("*")} | set("JID")
    source = ASTSource(
        fused.align,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=fused.options(tile))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", answer)}
    return used["REG"], used["STACK"], kernel.metadata.shared


def registers(console: Console, architecture: int, tiles: list[fused.Tile]) -> None:
    """Print what Triton and ptxas make of tiles: a thread has 255 registers, and what it spills costs time."""
    table = Table(title=f"compiled for sm_{architecture}, triton {triton.__version__}")
    for heading in (
        "products",
        "images",
        "rows",
        "slots",
        "depth",
        "stages",
        "registers",
        "spilled bytes",
        "shared KB",
    ):
        table.add_column(heading, justify="right")
    for dtype, tile in [*((torch.float16, tile) for tile in tiles), (torch.float32, fused.tile_for(torch.float32))]:
        used, spilled, shared = compile_for(architecture, dtype, tile)
        sizes = (tile.images, tile.rows, tile.slots, tile.depth, tile.stages, used, spilled, shared // 1000)
        table.add_row(str(dtype).removeprefix("torch."), *map(str, sizes))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[128, 512, 1024, 2048, 4096, 8192, 32768])
    parser.add_argument("--regions", type=int, default=10)
    parser.add_argument("--phrases", type=int, default=12)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--registers", nargs="?", type=int, const=90, metavar="ARCHITECTURE")
    arguments = parser.parse_args()
    console = Console(width=120)
    if arguments.registers:
        registers(console, arguments.registers, TILES if arguments.tiles else TILES[:1])
        return
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU, Triton's interpreter"
    M, K, D = arguments.regions, arguments.phrases, arguments.dimension
    versions = f"torch {torch.__version__}, triton {triton.__version__}, CUDA {torch.version.cuda}"
    console.print(f"{device}; {versions}; M = {M}, K = {K}, D = {D}", highlight=False)
    for C in arguments.pairs:
        problem = Problem.make(C, M, K, D)
        if arguments.tiles:
            sweep(console, problem, arguments.repetitions)
            continue
        for task in ("search", "loss"):
            compare(console, task, problem, arguments.repetitions)


if __name__ == "__main__":
    main()
