import csv
import io
import re

import pytest
from rich.console import Console

from powerclip.evaluate import Estimate, Evaluation, Origin
from powerclip.evaluate.averages import Average
from powerclip.report.tables import (
    Spread,
    Table,
    absent_note,
    metrics_table,
    printable,
    results_table,
    seeds_table,
    write_tables,
)


def evaluated(tasks, **averages):
    return Evaluation(suite="", tasks=tasks, averages=averages)


def mean(value, *tasks, expected=None):
    """The average of acc@1 over some tasks."""
    over = tuple((task, "acc@1") for task in tasks)
    return Average(value=value, measured=len(tasks), expected=expected or len(tasks), over=over)


CLIP = evaluated({"a": {"acc@1": 0.5, "acc@5": 0.9}, "b": {"macro": 0.25}})
POWERCLIP = evaluated({"a": {"acc@1": 0.625, "acc@5": 0.9}})
SEEDS = {
    "clip": [evaluated({"t": {"acc@1": 0.1, "acc@5": 0.5}}), evaluated({"t": {"acc@1": 0.3, "acc@5": 0.5}})],
    "powerclip": [evaluated({"t": {"acc@1": 0.4}}), evaluated({})],
}
EVIL = "<script>=1|\x1b[31m\u202e\r\n[red]**"


def terminal(table):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor")
    console.print(table.rich())
    return console.file.getvalue()


def test_the_best_is_bold_and_what_is_missing_is_a_dash():
    table = results_table({"clip": [CLIP], "powerclip": [POWERCLIP]})
    assert table.markdown().splitlines() == [
        "zero-shot, %.",
        "",
        "| task | metric | clip | powerclip |",
        "| --- | --- | ---: | ---: |",
        "| a | acc@1 | 50.0 | **62.5** |",
        "| b | macro | 25.0 | - |",
    ]
    shown = terminal(table)
    assert re.search(r"\x1b\[1m *62\.5", shown)
    assert not re.search(r"\x1b\[1m *50\.0", shown)
    assert "<strong>62.5</strong>" in table.html()
    assert table.html().count("<strong>") == 1
    assert table.csv() == "task,metric,clip,powerclip\na,acc@1,0.5,0.625\nb,macro,0.25,\n"


@pytest.mark.parametrize(
    ("numbers", "best"), [((0.1, 0.2), [1]), ((0.2, 0.2), []), ((0.1, None), []), ((0.2, 0.1, 0.2), [0, 2])]
)
def test_only_a_difference_is_marked(numbers, best):
    row = Table(columns=("x",) * len(numbers), rows=(numbers,)).markdown().splitlines()[-1]
    assert [i for i, cell in enumerate(row.strip("| ").split(" | ")) if cell.startswith("**")] == best


@pytest.mark.parametrize(("higher", "bold"), [((0.2, 0.3), False), ((0.3, 0.4), True)])
def test_what_is_within_the_error_is_not_marked(higher, bold):
    spreads = (Spread(values=(0.1, 0.2)), Spread(values=higher))  # deviations of 0.071, so 0.1 of the difference
    assert ("**" in Table(columns=("a", "b"), rows=(spreads,)).markdown()) == bold


def test_an_error_of_0_is_none():
    """A share of 0 or 1 of a few items, or classes of one image each."""
    low, high = (Spread(values=(Estimate(value, 20, 0.0),)) for value in (0.05, 0.35))
    assert Table(columns=("a", "b"), rows=((low, high),)).markdown().splitlines()[-1] == "| 5.0 | 35.0 |"
    sure = Spread(values=(Estimate(0.35, 20, 0.1),))
    assert "**" not in Table(columns=("a", "b"), rows=((low, sure),)).markdown()
    seeds = Spread(values=(0.35, 0.35))
    assert "**" not in Table(columns=("a", "b"), rows=((Spread(values=(0.1, 0.2)), seeds),)).markdown()


def test_long_names_stay_apart_in_a_narrow_terminal():
    names = ("scenes-colour-object", "scenes-colour-objects-other")
    table = Table(columns=("task", "metric", "b"), rows=tuple((name, "mean_per_class", 0.5) for name in names))
    console = Console(file=io.StringIO(), width=30)
    console.print(table.rich())
    shown = console.file.getvalue()
    column = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert column == "".join(names)
    assert "…" not in shown


def test_mean_and_sample_standard_deviation():
    spread = Spread(values=(0.1, 0.3))
    assert spread.mean == pytest.approx(0.2)
    assert spread.deviation == pytest.approx((2 * 0.1**2) ** 0.5)
    assert str(spread) == "20.0 ± 14.1"
    assert str(Spread(values=(0.25,))) == "25.0"


def test_one_seed_has_its_sampling_error_and_chance():
    one, other = Estimate(0.1, 400, 0.015, chance=0.02), Estimate(0.3, 400, 0.025, chance=0.04)
    table = results_table({"clip": [evaluated({"t": {"acc@1": one}})], "old": [evaluated({"t": {"acc@1": 0.1}})]})
    assert table.title == "zero-shot, % ± sampling error; in brackets: chance"
    assert "| t | acc@1 | 10.0 ± 1.5 (2.0) | 10.0 |" in table.markdown()
    seeds = {"clip": [evaluated({"t": {"acc@1": value}}) for value in (one, other)]}
    table = results_table(seeds)
    assert table.title.endswith("± standard deviation; sampling error of one seed up to 2.0; in brackets: chance")
    assert "| t | acc@1 | 20.0 ± 14.1 (3.0) |" in table.markdown()
    (line,) = csv.DictReader(io.StringIO(seeds_table(seeds).csv()))
    assert [float(line[name]) for name in ("n", "standard_error", "chance")] == pytest.approx([400, 0.02, 0.03])


def test_a_metric_that_a_seed_lacks_is_left_open():
    table = results_table(SEEDS)
    assert table.rows == (("t", "acc@1", Spread(values=(0.1, 0.3)), None),)
    assert "2 seeds each, mean ± standard deviation" in table.title
    assert "| t | acc@1 | 20.0 ± 14.1 | - |" in table.markdown()
    lines = list(csv.DictReader(io.StringIO(seeds_table(SEEDS).csv())))
    assert [(line["metric"], line["objective"], line["run_0"], line["run_1"]) for line in lines] == [
        ("acc@1", "clip", "0.1", "0.3"),
        ("acc@5", "clip", "0.5", "0.5"),
    ]
    assert float(lines[0]["mean"]) == pytest.approx(0.2)


def test_averages_share_a_row_only_if_they_are_over_the_same():
    two, one, other = mean(0.6, "x", "y"), mean(0.5, "x", expected=17), mean(0.4, "y", expected=17)
    models = {
        "a": [evaluated({}, own=two, suite=one)],
        "b": [evaluated({}, own=mean(0.7, "x", "y"), suite=other)],
    }
    assert results_table(models).markdown().splitlines()[4:] == [
        "| own | mean of 2 | 60.0 | **70.0** |",
        "| suite | mean of 1 of 17 | 50.0 | - |",
        "| suite | mean of 1 of 17 | - | 40.0 |",
    ]


def test_an_average_has_the_error_of_its_metrics_within_a_task_in_step_between_tasks_independent():
    tasks = {
        "x": {"i2t_R@1": Estimate(0.3, 10, 0.03), "t2i_R@1": Estimate(0.3, 10, 0.03)},
        "y": {"acc@1": Estimate(0.6, 10, 0.08)},
    }
    over = (("x", "i2t_R@1"), ("x", "t2i_R@1"), ("y", "acc@1"))
    average = Average(value=0.4, measured=3, expected=3, over=over)
    row = next(
        row
        for row in results_table({"a": [Evaluation(tasks=tasks, averages={"all": average})]}).rows
        if row[0] == "all"
    )
    assert row[2].standard_error == pytest.approx(0.1 / 3)  # hypot(0.03 + 0.03, 0.08) / 3
    tasks["y"] = {"acc@1": 0.6}
    row = next(
        row
        for row in results_table({"a": [Evaluation(tasks=tasks, averages={"all": average})]}).rows
        if row[0] == "all"
    )
    assert row[2].standard_error is None


def test_results_on_different_data_do_not_share_a_row():
    def on(fingerprint, value):
        origin = Origin(suite="pairs", data="/data/heldout", fingerprint=fingerprint, n=9)
        tasks = {"pairs": {"acc@1": value}}
        return Evaluation(tasks=tasks, averages={"own": mean(value, "pairs")}, measured_on={"pairs": origin})

    old = evaluated({"pairs": {"acc@1": 0.3}})  # of an earlier version, which did not record the data
    same, other = on("a" * 16, 0.6), on("b" * 16, 0.4)
    shared = results_table({"x": [on("a" * 16, 0.5)], "y": [same], "old": [old]}).markdown().splitlines()[4:]
    assert shared == ["| pairs | acc@1 | 50.0 | **60.0** | 30.0 |", "| own | mean of 1 | 50.0 | **60.0** | - |"]
    assert results_table({"x": [on("a" * 16, 0.5)], "y": [other]}).markdown().splitlines()[4:] == [
        "| pairs#aaaaaaaa | acc@1 | 50.0 | - |",
        "| pairs#bbbbbbbb | acc@1 | - | 40.0 |",
        "| own | mean of 1 | 50.0 | - |",
        "| own | mean of 1 | - | 40.0 |",
    ]


def test_an_average_of_nothing_has_no_row():
    nothing = Average(value=None, measured=0, expected=6)
    assert results_table({"a": [evaluated({}, robustness=nothing)]}).rows == ()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "  =", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_text_is_a_formula_in_a_spreadsheet(start):
    text = f'{start}cmd|"x"'
    cells = next(csv.reader([Table(columns=(text,), rows=()).csv()]))
    assert cells[0].startswith("'")
    rows = list(csv.reader(io.StringIO(Table(columns=("a",), rows=((text,),)).csv())))
    assert rows[1][0].startswith("'")
    assert rows[1][0].endswith('cmd|"x"')


def test_a_negative_number_stays_a_number_in_csv():
    row = Table(columns=("a", "b", "c"), rows=((-0.5, Spread(values=(-0.25,)), "-0.5"),)).csv().splitlines()[1]
    assert row == "-0.5,-0.25,'-0.5"


@pytest.mark.parametrize("as_name", [True, False])
def test_no_text_changes_the_form_of_a_table(as_name):
    columns, cell = (("x", EVIL), "y") if as_name else (("x", "z"), EVIL)
    table = Table(columns=columns, rows=((cell, 0.5),), title=EVIL)
    assert "\x1b[31m" not in terminal(table)
    assert "\u202e" not in terminal(table)
    assert "[red]**" in terminal(table)
    lines = table.markdown().splitlines()
    assert len(lines) == 5
    assert r"\<script>=1\|" in lines[2 if as_name else 4]
    assert "<script>" not in table.html()
    assert "&lt;script&gt;" in table.html()
    assert len(list(csv.reader(io.StringIO(table.csv())))) == 2
    for text in (table.markdown(), table.html(), table.csv()):
        assert not {"\x1b", "\r", "\u202e"} & set(text)


def test_backslashes_do_not_free_a_bar():
    assert Table(columns=("a\\|b",), rows=()).markdown().splitlines()[0] == r"| a\\\|b |"


def test_what_is_printable_stays():
    assert printable("café 图 👩‍🚀 [x]") == "café 图 👩‍🚀 [x]"
    assert printable("a\tb\nc\x00\x9b\ud800") == "a b c\ufffd\ufffd\ufffd"


def test_one_evaluation_is_written_as_markdown_and_csv(tmp_path):
    evaluation = Evaluation(
        suite="classification",
        tasks={"food101": {"acc@1": Estimate(0.5, n=100, standard_error=0.05), "acc@5": 0.75}},
        averages={"classification": mean(0.5, "food101", expected=17)},
        absent={"dtd\x1b": "https://x.org/dtd"},
    )
    write_tables(tmp_path, "model", evaluation)
    assert (tmp_path / "evaluation.md").read_text().endswith("\n\n- absent: dtd\ufffd: https://x.org/dtd\n")
    assert "| classification | mean of 1 of 17 | 50.0 ± 5.0 |" in (tmp_path / "evaluation.md").read_text()
    assert (tmp_path / "evaluation.csv").read_text() == metrics_table(evaluation).csv()
    assert metrics_table(evaluation).csv().splitlines() == [
        "task,metric,value,n,standard_error,chance",
        "food101,acc@1,0.5,100,0.05,",
        "food101,acc@5,0.75,,,",
        "classification,mean of 1 of 17,0.5,,,",
        "dtd\ufffd,absent,,,,",
    ]
    assert absent_note(CLIP) == ""
