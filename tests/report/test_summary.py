import json
import math

import pytest

from powerclip.evaluate import Estimate, Evaluation, Origin
from powerclip.report.summary import facts, headlines, lead_of, suite_tables, verdicts, with_leads
from powerclip.report.tables import Spread, results_table
from powerclip.runs import RunFolder
from tests.support.runs import record_data


def origin(suite):
    return Origin(suite=suite, data="d", fingerprint="f" + suite, n=100)


def evaluation(first, second, *, error=0.01):
    tasks = {
        "food101": {"acc@1": Estimate(first, 100, error), "acc@5": Estimate(first, 100, error)},
        "mine": {"micro": Estimate(second, 100, error), "macro": Estimate(second, 100, error)},
    }
    found = Evaluation(tasks={})
    for name, suite in (("food101", "classification"), ("mine", "own")):
        found = found.with_result(name, tasks[name], origin(suite))
    return found


def spread(value, error=None):
    return Spread(values=(value if error is None else Estimate(value, 100, error),))


def test_who_is_ahead_and_whether_beyond_the_error():
    lead = lead_of({"a": spread(0.5, 0.03), "b": spread(0.7, 0.04), "c": spread(0.6, 0.03), "d": None})
    assert (lead.run, lead.difference, lead.error) == ("b", pytest.approx(0.1), pytest.approx(0.05))
    assert not lead.is_beyond
    assert str(lead) == "b +10.0 ± 5.0, within the error"
    assert lead_of({"a": spread(0.5, 0.03), "b": spread(0.61, 0.04)}).is_beyond
    unknown = lead_of({"a": spread(0.5), "b": spread(0.7, 0.04)})
    assert (str(unknown), unknown.is_beyond) == ("b +20.0", False)
    none = lead_of({"a": spread(0.0, 0.0), "b": spread(1 / 3, 0.14)})  # 0 and 4 of 12
    assert (str(none), none.is_beyond) == ("b +33.3", False)
    for row in ({"a": spread(0.5)}, {"a": spread(0.5), "b": spread(0.5)}, {"a": spread(math.nan), "b": spread(0.5)}):
        assert lead_of(row) is None


def test_verdicts_count_the_rows_of_the_headlines():
    results = {"a": [evaluation(0.5, 0.6)], "b": [evaluation(0.6, 0.59)]}
    assert verdicts(headlines(results)) == [
        "b is ahead in 2 of 3 headline results, in 2 of them beyond the sampling error.",
        "a is ahead in 1 of 3 headline results, in 0 of them beyond the sampling error.",
    ]
    assert verdicts(headlines({"a": results["a"]})) == []


def test_averages_over_other_tasks_are_not_beside_each_other():
    more = evaluation(0.5, 0.6).with_result("pets", {"acc@1": 0.9, "mean_per_class": 0.9}, origin("classification"))
    table = headlines({"a": [more], "b": [evaluation(0.6, 0.59)]})
    assert [row[:2] for row in table.rows] == [("food101", "acc@1"), ("mine", "macro"), ("pets", "acc@1")]
    assert verdicts(table)[0].startswith("a is ahead in 1 of 2 headline results")


def test_headlines_are_the_averages_with_their_error_and_what_is_in_none():
    table = with_leads(headlines({"a": [evaluation(0.5, 0.6)], "b": [evaluation(0.6, 0.59)]}))
    assert table.columns == ("task", "metric", "a", "b", "ahead")
    assert [row[:2] for row in table.rows] == [
        ("classification", "mean of 1 of 17"),
        ("classification, CLIP's metrics", "mean of 1 of 17"),
        ("mine", "macro"),
    ]
    assert ("food101", "acc@1") not in [row[:2] for row in table.rows]  # it is in the average
    assert table.rows[0][4] == "b +10.0 ± 1.4, beyond the error"
    alone = headlines({"a": [evaluation(0.5, 0.6)]})
    assert alone.columns == ("task", "metric", "a")


def test_each_suite_has_a_table_of_every_metric():
    tables = suite_tables({"a": [evaluation(0.5, 0.6)], "b": [evaluation(0.6, 0.59)]})
    assert list(tables) == ["classification", "own"]
    assert [row[:2] for row in tables["classification"].rows] == [("food101", "acc@1"), ("food101", "acc@5")]
    assert [row[:2] for row in tables["own"].rows] == [("mine", "micro"), ("mine", "macro")]
    old = suite_tables({"a": [Evaluation(tasks={"x": {"acc@1": 0.5}})]})
    assert list(old) == ["of an earlier version"]


def test_cut_captions_are_no_metric():
    metrics = {"i2t_R@1": Estimate(0.5, 100, 0.05), "captions_cut": 0.1}
    cut = Evaluation(tasks={}).with_result("retrieval", metrics, origin("pairs"))
    (table,) = suite_tables({"a": [cut], "b": [cut]}).values()
    assert [row[1] for row in table.rows] == ["i2t_R@1"]


def test_a_table_of_one_run_says_of_nobody_that_it_is_ahead():
    table = results_table({"a": [evaluation(0.5, 0.6)]})
    assert with_leads(table) == table


def test_facts_say_what_was_trained_on_what_and_how_long(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {name: ViT-B-16, pretrained: null}\nobjective: {name: powerclip}\n")
    record_data(run, "/data/photos")
    lines = [
        {"step": 10, "samples_seen": 300, "samples_per_s": 10.0, "loss": 2.0},
        {"step": 15, "eval/mean": 0.5},
        {"step": 20, "samples_seen": 600, "samples_per_s": 5.0, "loss": 1.5},
    ]
    table = facts({"r": run, "none": tmp_path}, {"r": lines}, {})
    found = {row[0]: row[1:] for row in table.rows}
    assert table.columns == ("run", "r", "none")
    assert found["model"] == ("ViT-B-16", "-")
    assert found["started from"] == ("scratch", "-")
    assert found["data"] == ("1 pairs: /data/photos", "-")
    assert found["steps"] == ("20", "-")
    assert found["samples seen"] == ("600, 600 times the data", "-")
    assert found["time in training steps"] == ("1.5 min", "-")  # 30 s and 60 s
    assert found["last loss"] == ("1.500", "-")
    (run / "bad_batches.jsonl").write_text('{"step": 3, "process": 0}\n{"step": 3, "process": 1}\n{"step": 4}\n')
    for finished, steps in ((False, "20 of 3,000: not finished"), (True, "20")):
        RunFolder(run).status_file.write_text(json.dumps({"step": 20, "steps": 3000, "finished": finished}))
        found = {row[0]: row[1:] for row in facts({"r": run, "none": tmp_path}, {"r": lines}, {}).rows}
        assert found["steps"] == (steps, "-")
        assert found["steps skipped, not finite"] == ("2", "-")
    hostile = [{"step": 1, "samples_seen": 1e299, "samples_per_s": 1e-299, "loss": "<b>"}, {"step": 2, "loss": 1.0}]
    assert "steps" in {row[0] for row in facts({"r": run}, {"r": hostile}, {}).rows}
