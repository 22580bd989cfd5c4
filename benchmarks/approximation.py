"""How far the linear-time similarities are from enumeration: the tables and the plot of docs/approximation.md.

    python benchmarks/approximation.py --model runs/demo/powerclip --plot docs/approximation.png

"random" are random unit regions (M = 10, D = 512) and phrases (K = 8); "trained" are the features of a trained model on
generated test scenes: ten random boxes per image, the phrases of the captions' parse trees. Every figure is over all
pairs of 96 images and 96 captions, in float64, compared with ``powerclip.alignment.similarity(method="exact")``.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import powerclip
from powerclip.alignment import similarity
from powerclip.alignment.calibration import choose_pairs, fit_zeta, measure_pairs
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.vectors import MaskedVectors
from powerclip.data.collate import EncodedSample, collate
from powerclip.phrases import encode_caption
from powerclip.regions import random_boxes
from powerclip.scenes import generate
from powerclip.types import Similarity

PAIRS, REGIONS = 96, 10
TAUS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ZETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SAMPLES = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Regions and phrases of a data set, in float64."""

    name: str
    regions: Tensor
    phrases: Tensor
    region_mask: Tensor
    phrase_mask: Tensor

    def score(self, **options: object) -> Similarity:
        """The similarity of all pairs."""
        return similarity(self.regions, self.phrases, self.region_mask, self.phrase_mask, **options)  # type: ignore[arg-type]

    def calibrated_zeta(self) -> float:
        """The zeta that ``similarity(zeta="calibrated")`` finds."""
        i, j = choose_pairs(PAIRS, PAIRS, shift=0)
        regions = MaskedVectors(values=self.regions, mask=self.region_mask)
        phrases = MaskedVectors(values=self.phrases, mask=self.phrase_mask)
        pairs = measure_pairs(regions[i], phrases[j], scoring=Scoring(tile_bytes=2**24))
        return float(fit_zeta(pairs, tau=Scoring().tau))

    def seconds(self, **options: object) -> float:
        """Median seconds of five calls in float32."""
        single = Vectors(
            name=self.name,
            regions=self.regions.float(),
            phrases=self.phrases.float(),
            region_mask=self.region_mask,
            phrase_mask=self.phrase_mask,
        )
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            single.score(**options)
            runs.append(time.perf_counter() - start)
        return statistics.median(runs)


def random_vectors() -> Vectors:
    """Unit vectors without any structure."""
    g = torch.Generator().manual_seed(0)
    regions = F.normalize(torch.randn(PAIRS, REGIONS, 512, generator=g, dtype=torch.float64), dim=-1)
    phrases = F.normalize(torch.randn(PAIRS, 8, 512, generator=g, dtype=torch.float64), dim=-1)
    present = torch.ones(PAIRS, REGIONS, dtype=torch.bool), torch.ones(PAIRS, 8, dtype=torch.bool)
    return Vectors(name="random", regions=regions, phrases=phrases, region_mask=present[0], phrase_mask=present[1])


@torch.no_grad()
def trained_vectors(path: str) -> Vectors:
    """The features of a model on test scenes."""
    model, preprocess, tokenizer = powerclip.load(path)
    samples, generator = [], torch.Generator().manual_seed(0)
    for sample in generate("test", count=PAIRS, seed=1, image_size=model.image_size[0]):
        assert sample.tree is not None
        caption = encode_caption(sample.caption, sample.tree, tokenizer, context_length=model.context_length)
        image = preprocess(Image.open(io.BytesIO(sample.image)))
        boxes = random_boxes(1, regions=REGIONS, grid=model.grid_size, generator=generator)[0]
        samples.append(EncodedSample(key=sample.key, image=image, captions=[caption], regions=boxes))
    features = model(collate(samples, patches=math.prod(model.grid_size), regions=REGIONS))
    return Vectors(
        name="trained",
        regions=features.regions.double(),
        phrases=features.phrases.double(),
        region_mask=features.region_mask,
        phrase_mask=features.phrase_mask,
    )


def errors(found: Tensor, exact: Tensor) -> tuple[float, float, float]:
    """Bias, spread of the error around it, and rank agreement: the share of images with the same best caption."""
    error = found - exact
    same = (found.argmax(dim=1) == exact.argmax(dim=1)).double().mean()
    return float(error.mean()), float(error.std()), float(same)


def study(vectors: Vectors, console: Console) -> dict[str, list[tuple[float, ...]]]:
    """Print the tables of one kind of vectors; return the curves of the plot."""
    exact = vectors.score(method="exact")
    M = vectors.regions.shape[1]
    curves: dict[str, list[tuple[float, ...]]] = {"t1": [], "t2": [], "calibrated": [], "sampled": []}
    console.print(
        f"\n{vectors.name}: mean exact T2R {exact.t2r.mean():.4f}, R2T {exact.r2t.mean():.4f}; on the pairs themselves "
        f"{exact.t2r.diagonal().mean():.4f}, {exact.r2t.diagonal().mean():.4f}",
        highlight=False,
    )

    table = Table(title=f"{vectors.name}: T1 - T2R")
    for heading in ("tau", "mean", "highest", "bound tau M log 2", "same best caption"):
        table.add_column(heading, justify="right")
    for tau in TAUS:
        t1 = vectors.score(tau=tau).t2r
        bias, _, same = errors(t1, exact.t2r)
        highest, bound = float((t1 - exact.t2r).max()), tau * M * math.log(2)
        curves["t1"].append((tau, bias, bound))
        table.add_row(f"{tau:g}", f"{bias:.2e}", f"{highest:.2e}", f"{bound:.2e}", f"{same:.0%}")
    console.print(table)

    table = Table(title=f"{vectors.name}: T2 - R2T at tau = 0.001")
    for heading in ("zeta", "bias", "spread", "same best caption", "bias on pairs"):
        table.add_column(heading, justify="right")
    for zeta in (*ZETAS, "calibrated"):
        t2 = vectors.score(zeta=zeta).r2t
        bias, spread, same = errors(t2, exact.r2t)
        on_pairs = float((t2 - exact.r2t).diagonal().mean())
        curves["calibrated" if zeta == "calibrated" else "t2"].append((zeta, bias, spread))  # type: ignore[arg-type]
        label = f"calibrated: {vectors.calibrated_zeta():.3f}" if zeta == "calibrated" else str(zeta)
        table.add_row(label, f"{bias:+.4f}", f"{spread:.4f}", f"{same:.0%}", f"{on_pairs:+.4f}")
    console.print(table)

    nla = vectors.seconds()
    table = Table(title=f"{vectors.name}: sampled R2T (of {2**M} subsets); nla takes {nla * 1e3:.0f} ms")
    for heading in ("subsets", "ms", "times nla", "spread of the error", "stated standard error", "same best caption"):
        table.add_column(heading, justify="right")
    for samples in SAMPLES:
        found = vectors.score(method="sampled", samples=samples, generator=torch.Generator().manual_seed(0))
        error, (_, _, same) = found.r2t - exact.r2t, errors(found.r2t, exact.r2t)
        spread = float(error.square().mean().sqrt())
        assert found.r2t_standard_error is not None
        stated = float(found.r2t_standard_error.square().mean().sqrt())
        seconds = vectors.seconds(method="sampled", samples=samples)
        curves["sampled"].append((seconds * 1e3, spread, samples))
        table.add_row(
            str(samples),
            f"{seconds * 1e3:.0f}",
            f"{seconds / nla:.1f}",
            f"{spread:.4f}",
            f"{stated:.4f}",
            f"{same:.0%}",
        )
    seconds = vectors.seconds(method="exact")
    table.add_row(f"all {2**M}", f"{seconds * 1e3:.0f}", f"{seconds / nla:.1f}", "0", "", "100%")
    console.print(table)
    curves["cost of nla"] = [(nla * 1e3,)]
    return curves


def plot(path: Path, found: dict[str, dict[str, list[tuple[float, ...]]]]) -> None:
    """Three panels: T1 over tau, T2 over zeta, sampling over cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (first, second, third) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for colour, (name, curves) in zip(("C0", "C1"), found.items(), strict=False):
        t1 = [row for row in curves["t1"] if row[0] > 0]
        first.loglog([row[0] for row in t1], [row[1] for row in t1], "o-", color=colour, label=name)
        t2 = curves["t2"]
        second.errorbar(
            [row[0] for row in t2], [row[1] for row in t2], [row[2] for row in t2], fmt="o-", color=colour, label=name
        )
        second.axhline(curves["calibrated"][0][1], color=colour, linestyle="--", label=f"{name}, calibrated")
        sampled = curves["sampled"]
        third.loglog(
            [row[0] for row in sampled], [row[1] for row in sampled], "o-", color=colour, label=f"{name}, sampled"
        )
        third.loglog(
            curves["cost of nla"][0][0],
            math.hypot(*curves["calibrated"][0][1:]),
            "*",
            color=colour,
            markersize=14,
            label=f"{name}, T2 calibrated",
        )
        fixed = next(row for row in t2 if row[0] == 0.75)
        third.loglog(
            curves["cost of nla"][0][0], math.hypot(*fixed[1:]), "x", color=colour, label=f"{name}, T2 at zeta 0.75"
        )
        if name == "random":
            first.loglog([row[0] for row in t1], [row[2] for row in t1], "k:", label="bound")
    first.set(xlabel="tau", ylabel="T1 - T2R, mean", title="NLA-T1")
    second.set(xlabel="zeta", ylabel="T2 - R2T, mean and spread", title="NLA-T2")
    third.set(xlabel="ms for all pairs", ylabel="error of R2T (rms)", title="sampling, and T2, over cost")
    for axes in (first, second, third):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="upper right" if axes is third else "upper left")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run or model folder; without it only random vectors are studied")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    console = Console(width=120)
    found = {"random": study(random_vectors(), console)}
    if arguments.model:
        found["trained"] = study(trained_vectors(arguments.model), console)
    if arguments.plot:
        plot(arguments.plot, found)


if __name__ == "__main__":
    main()
