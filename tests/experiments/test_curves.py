import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from powerclip.pixels import png
from powerclip.report.plots import INSTRUMENTS

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from curves import curves, smooth


def test_smoothing_is_a_mean_over_a_window():
    values = np.arange(60.0) ** 2
    found = smooth(values)
    assert len(found) == 60
    assert found[30] == pytest.approx(values[29:32].mean())
    assert smooth(np.ones(7)) == pytest.approx(np.ones(7))


def test_every_panel_shows_the_runs_that_log_its_metric():
    lines = [{"step": s, "loss_clip": 1.0 / s, "samples_per_s": 5.0, "logit_scale": 14.0} for s in range(1, 30)]
    figure = curves({"clip": lines, "powerclip": [{**line, "loss_powerset": 0.3} for line in lines], "none": []})
    drawn = {axes.get_title(): {line.get_color() for line in axes.lines} for axes in figure.axes}
    assert drawn == {
        "CLIP loss": {"C0", "C1"},
        "powerset alignment loss": {"C1"},
        "inverse temperature": {"C0", "C1"},
        "samples per second": {"C0", "C1"},
    }
    faint, smoothed = figure.axes[0].lines[:2]
    assert faint.get_xdata() == pytest.approx(range(1, 30))
    assert faint.get_ydata() == pytest.approx([1 / s for s in range(1, 30)])
    assert smoothed.get_ydata() == pytest.approx(smooth(faint.get_ydata()))
    assert Image.open(io.BytesIO(png(figure))).width > 800


def test_instruments_are_drawn_solid_and_dashed_and_ratios_on_a_logarithmic_axis():
    lines = [
        {"step": s, "matched_above_zero_share": 0.9, "unmatched_above_zero_share": 0.2, "gradient_ratio": s / 4}
        for s in range(9)
    ]
    panels = [panel for group in INSTRUMENTS.values() for panel in group if panel.in_any({"a": lines})]
    assert [panel.names[0] for panel in panels] == ["matched_above_zero_share", "gradient_ratio"]
    shares, ratio = curves({"a": lines}, panels).axes
    found = [(line.get_linestyle(), line.get_ydata().tolist()) for line in shares.lines]
    assert found == [("-", pytest.approx([0.9] * 9))] * 2 + [("--", pytest.approx([0.2] * 9))] * 2
    assert shares.get_ylim() == (-0.03, 1.03)
    assert ratio.get_yscale() == "log"
    assert ratio.lines[0].get_ydata().tolist() == [s / 4 for s in range(1, 9)]  # 0 has no logarithm
    (alone,) = curves({"a": [{"step": 1, "gradient_ratio": 0.0}]}, panels[1:]).axes
    assert not alone.lines
    assert png(alone.figure).startswith(b"\x89PNG")


def test_odd_names_and_values_are_no_obstacle():
    values = (None, "<script>", True, [1], 10**400)
    lines = [{"step": step, "loss_clip": value} for step, value in enumerate(values)]
    lines += [{"step": 9, "loss_clip": 1.0}, {"step": 10**400, "loss_clip": 1.0}]
    figure = curves({"_run": lines, r"$\frac$": [], "图\x1b": lines})
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines] == [[9]] * 4
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["_run", r"$\frac$", "图\ufffd"]
    assert png(figure).startswith(b"\x89PNG")  # without a warning of the glyph that the font lacks
