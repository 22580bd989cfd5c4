import pytest

from powerclip.evaluate import Evaluation
from powerclip.pixels import png
from powerclip.report.plots import comparison_plot, instruments
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


@pytest.mark.parametrize(("metrics", "lines"), [(16, [16]), (17, [9, 8]), (40, [14, 14, 12])])
def test_more_bars_than_a_line_has_room_for_go_on_in_the_next(metrics, lines):
    tasks = {f"task-{number:02}": {"acc@1": 0.5} for number in range(metrics)}
    evaluation = Evaluation(suite="", tasks=tasks)
    figure = comparison_plot(results_table({name: [evaluation] for name in ("clip", "filip", "powerclip")}))
    assert [len(axes.patches) for axes in figure.axes] == [3 * count for count in lines]
    shown = [label.get_text().split("\n")[0] for axes in figure.axes for label in axes.get_xticklabels()]
    assert shown == list(tasks)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1  # bars of one width
    assert sum(axes.get_legend() is not None for axes in figure.axes) == 1
