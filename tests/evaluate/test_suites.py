"""The table of docs/evaluation.md against the registry of data sets."""

import re
from pathlib import Path

import pytest

from powerclip.evaluate.asked import OWN_SUITES
from powerclip.evaluate.datasets.linear_probe import PROBE
from powerclip.evaluate.suites import BENCHMARKS, LINEAR_PROBE, SUITES

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
COLUMNS = ("suite", "sets", "files", "metrics", "chance", "definition", "differences")


def table():
    """The rows, each with its suite's name and its columns."""
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith("| suite | data sets"))
    rows, suite = [], ""
    for line in lines[start + 2 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != len(COLUMNS):
            break
        row = dict(zip(COLUMNS, cells, strict=True))
        suite = row["suite"] = row["suite"].strip("`") or suite
        rows.append(row)
    return rows


def counts(row):
    """The number of items of each task of a row; None where it is not known."""
    found = re.findall(r"`([^`]+)` ([\d,]+|\?)", row["sets"])
    return {name: None if n == "?" else int(n.replace(",", "")) for name, n in found}


def row_of(benchmark):
    found = [row for row in table() if re.search(rf"`{re.escape(benchmark.name)}`", row["sets"])]
    assert len(found) == 1, f"{benchmark.name} is in {len(found)} rows"
    return found[0]


def test_all_suites_are_there_in_order():
    suites = list(dict.fromkeys(row["suite"] for row in table()))
    assert set(suites) == {*OWN_SUITES, *SUITES}
    assert [suite for suite in suites if suite in SUITES] == list(SUITES)
    said = {name for row in table() for name in counts(row)}
    others = [benchmark for benchmark in BENCHMARKS.values() if not benchmark.name.endswith(PROBE)]
    assert said == {task for benchmark in others for task in benchmark.tasks or (benchmark.name,)}


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if not name.endswith(PROBE)])
def test_a_data_set_s_row_says_what_the_registry_says(name):
    benchmark = BENCHMARKS[name]
    row = row_of(benchmark)
    assert benchmark in SUITES[row["suite"]]
    assert {task: counts(row)[task] for task in benchmark.tasks or (name,)} == {
        task: benchmark.complete.get(task) for task in benchmark.tasks or (name,)
    }
    assert set(re.findall(r"\*\*([^*]+)\*\*", row["metrics"])) == set(benchmark.averaged)
    place = re.search(r"https?://[^\s,;)]+", benchmark.source)
    stated = re.findall(r"`(https?://[^`]+)`", row["files"])
    shared = {"as above": "https://huggingface.co/datasets/clip-benchmark"}
    stated += [url for words, url in shared.items() if row["files"].startswith(words)]
    assert place is None or any(place[0].startswith(url) for url in stated)
    assert row["chance"]
    assert row["definition"]


def test_linear_probes_are_of_the_sets_that_their_row_names():
    (row,) = [row for row in table() if row["suite"] == "linear-probe"]
    names = [benchmark.name for benchmark in (*SUITES["classification"], *SUITES["imagenet"])]
    assert [benchmark.name for benchmark in LINEAR_PROBE] == [f"{name}{PROBE}" for name in names]
    assert [benchmark.items for benchmark in LINEAR_PROBE] == [BENCHMARKS[name].items for name in names]
    assert f"`NAME{PROBE}` for the {len(SUITES['classification'])} data sets of" in row["sets"]
    assert row["metrics"].startswith("**acc@1**")
