import pytest

from powerclip.evaluate import Evaluation
from powerclip.report.plots import comparison_plot, instruments, png
from powerclip.report.tables import results_table


def test_each_instrument_says_how_to_read_it():
    for group in instruments({}, {}).values():
        assert all(panel.reading.endswith(".") and len(panel.names) <= 2 for panel in group)


def test_sets_of_regions_are_read_where_they_are_scored():
    metrics = {name: [{"step": 1, "matched_above_zero_share": 0.9}] for name in ("a", "b")} | {"clip": [{"step": 1}]}
    for subsets, sets, single in (({"a": "single"}, True, True), ({"a": "single", "b": "single"}, False, True)):
        reading = next(iter(instruments(metrics, subsets).values()))[0].reading
        assert ("Sets of regions choose" in reading, "the best region alone counts" in reading) == (sets, single)


def test_a_bar_stands_at_the_mean_of_the_seeds_and_none_for_what_is_missing():
    def of(value):
        return Evaluation(suite="", tasks={r"$\frac$": {"acc@1": value}})

    models = {"clip": [of(0.1), of(0.3)], "powerclip": [Evaluation(suite="", tasks={})], r"$\frac$": [of(0.5)]}
    figure = comparison_plot(results_table(models))
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([20, 50])
    dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    assert [list(seeds) for seeds in dots] == [pytest.approx([10, 30]), pytest.approx([50])]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(models)
    assert png(figure).startswith(b"\x89PNG")  # dollars are not formulas
