"""Training curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

PANELS = {
    "loss_clip": "CLIP loss",
    "loss_powerset": "powerset alignment loss",
    "logit_scale": "inverse temperature",
    "samples_per_s": "samples per second",
}


def curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """One panel a metric, one line a run, lightly smoothed over what is drawn faintly behind.

    Args:
        metrics: the lines of each run's ``metrics.jsonl``, by run.
    """
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for number, (_run, lines) in enumerate(metrics.items()):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if not points:
                continue
            steps, values = np.asarray(points, dtype=float).T
            axes.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values), color=f"C{number}", linewidth=1.6)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    keys = [Line2D([], [], color=f"C{number}") for number in range(len(metrics))]
    legend = panels[0].legend(keys, list(metrics), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def smooth(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over a window of a twentieth of the curve, shorter at its ends; as long as the curve."""
    width = max(1, len(values) // 20)
    ones = np.ones(width)
    total: np.ndarray[Any, np.dtype[np.float64]] = np.convolve(values, ones, "same")
    return total / np.convolve(np.ones(len(values)), ones, "same")


def png(figure: Figure, *, dots_per_inch: int = 130) -> bytes:
    """A figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()
