"""The experiments' driver on a study of seconds, and that the page says what the kept results say."""

import shutil
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp

from powerclip.config import EvaluateConfig
from powerclip.demo import training_scenes
from powerclip.evaluate import evaluate_model, light_suite
from powerclip.evaluate.asked import SCENES_SEED
from powerclip.files import read_json, write_json
from powerclip.recipes import scenes_superpixels, scenes_tiny
from powerclip.scenes import evaluation_tasks as scenes_tasks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import remeasure  # noqa: E402 (found by the line above)
import run as driver  # noqa: E402
import studies  # noqa: E402
import tables  # noqa: E402
import validate  # noqa: E402


def tiny_study():
    config = replace(scenes_tiny(), steps=3, batch_size=4, log_every_steps=1)
    return studies.Study(
        configs={"clip": config.with_objective("clip"), "powerclip": config},
        seeds=(0, 1),
        make_data=lambda output: training_scenes(output / "train", count=12),
        evaluate=lambda run: evaluate_model(str(run), EvaluateConfig(suite=("scenes",), size=3)),
        tasks=lambda _: scenes_tasks(seed=SCENES_SEED, size=3, image_size=48),
        validation=lambda _: light_suite("scenes", image_size=48, size=3),
        metrics=(("scenes-object", "acc@1"),),
        parts=(studies.Part(name="main", configs=("clip", "powerclip"), against=("clip",), drawn=("powerclip",)),),
    )


def test_a_run_leaves_its_result_once_and_refuses_another_setting(tmp_path, capsys):
    study, results = tiny_study(), tmp_path / "results"
    for name in study.configs:
        assert driver.run(study, name, seed=1, output=tmp_path / "runs", results=results)
    kept = read_json(results / "powerclip-seed-1.json")
    assert kept["config"]["seed"] == 1
    assert kept["curves"]["step"] == [1, 2, 3]
    assert set(kept["tasks"]) == set(kept["counts"]) >= {"scenes-object", "scenes-grounding"}
    shutil.rmtree(tmp_path / "runs")  # what is kept is enough
    assert driver.run(study, "clip", seed=1, output=tmp_path / "runs", results=results)
    assert not (tmp_path / "runs").exists()
    longer = replace(study, configs={"clip": replace(study.configs["clip"], steps=4)})
    with pytest.raises(SystemExit, match=r"clip-seed-1\.json is of other settings \(steps\); delete it"):
        driver.run(longer, "clip", seed=1, output=tmp_path / "runs", results=results)
    read = tables.read(study, results)
    assert [len(of_name) for of_name in read.values()] == [1, 1]
    table = tables.means(read, study.metrics)
    assert table.rows[0][2].mean == read_json(results / "clip-seed-1.json")["tasks"]["scenes-object"]["acc@1"]


def test_several_runs_at_a_time_are_calls_of_the_program(tmp_path, capsys):
    (tmp_path / "scenes" / ".data.lock").mkdir(parents=True)  # so that no data can be made
    assert driver.at_a_time(2, [("clip", 0), ("clip", 99)], study="scenes", output=tmp_path) == 1  # one result is kept
    done, failed = sorted(capsys.readouterr().out.splitlines())
    assert done == "clip, seed 0: done"
    assert failed.startswith("clip, seed 99: failed, see ")
    assert "Is a directory" in (tmp_path / "scenes" / "clip-seed-99.log").read_text()


def test_a_run_is_validated_once_by_its_own_score_on_other_scenes(tmp_path):
    study, results, runs = tiny_study(), tmp_path / "results", tmp_path / "runs"
    for name in study.configs:
        assert driver.run(study, name, seed=0, output=runs, results=results)
    shutil.rmtree(runs / "clip-seed-0")
    said = list(validate.validate(study, output=runs, results=results))
    assert [line.split(":")[0] for line in said] == ["clip-seed-0", "powerclip-seed-0"]
    assert said[1] == "powerclip-seed-0: done"
    assert list(validate.validate(study, output=runs, results=results)) == said[:1]
    kept = read_json(results / "powerclip-seed-0.json")
    own = f"scenes-retrieval{studies.OWN_SCORE}", "i2t_R@1"
    expected = kept["validation"]["scenes-retrieval-powerset"]["i2t_R@1"]
    assert tables.value(kept, own, of="validation") == expected
    ((name, _, _, found, *_),) = tables.validation(study, tables.read(study, results)).rows
    assert (name, found) == ("powerclip", f"{100 * expected:.1f}")


def test_a_metric_that_did_not_exist_is_added_and_the_others_must_come_out_the_same(tmp_path):
    study, results, runs = tiny_study(), tmp_path / "results", tmp_path / "runs"
    assert driver.run(study, "clip", seed=0, output=runs, results=results)
    complete = read_json(place := results / "clip-seed-0.json")
    assert list(remeasure.remeasure(study, output=runs, results=results)) == []
    former = read_json(place)
    del former["tasks"]["scenes-grounding"]["patch_last"]
    write_json(place, former)
    (said,) = remeasure.remeasure(study, output=tmp_path, results=results)
    assert said == f"clip-seed-0: no run in {tmp_path / 'clip-seed-0'}, so it stays as it is"
    assert list(remeasure.remeasure(study, output=runs, results=results)) == ["clip-seed-0: done"]
    assert read_json(place) == complete
    former["tasks"]["scenes-grounding"]["patch"] += 0.1
    write_json(place, former)
    with pytest.raises(SystemExit, match=r"measures another scenes-grounding \(patch\)"):
        list(remeasure.remeasure(study, output=runs, results=results))


def test_a_setting_that_did_not_exist_is_no_difference():
    config = asdict(scenes_tiny())
    kept = {**config, "objective": dict(config["objective"])}
    del kept["objective"]["margin"], kept["ema_decay"]
    assert driver.differences(kept, config) == []
    kept["objective"]["tau"] = 0.5
    assert driver.differences(kept, config) == ["objective.tau"]


def test_a_run_is_read_by_the_score_that_its_loss_ranks_by():
    tasks = {"r": {"R@1": 0.1}, "r-powerset": {"R@1": 0.2}, "r-late": {"R@1": 0.3}}
    for objective, expected in (("clip", 0.1), ("powerclip", 0.2), ("filip", 0.3)):
        result = {"config": {"objective": {"name": objective}}, "tasks": tasks}
        assert tables.value(result, (f"r{studies.OWN_SCORE}", "R@1")) == expected
        assert tables.value(result, ("r", "R@1")) == 0.1
    without = {"config": {"objective": {"name": "filip"}}, "tasks": {"r": {"R@1": 0.1}}}
    assert tables.value(without, (f"r{studies.OWN_SCORE}", "R@1")) is None  # not that of global embeddings


def test_intervals_are_those_of_a_t_test():
    values = [1.0, 2.5, 1.5]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    mean = statistics.fmean(values)
    assert tables.interval(values) == f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" + ("*" if low > 0 else "")
    assert tables.interval([3.0, 3.1, 3.2]).endswith("*")
    assert tables.interval([2.0]) == "+2.0 (one seed)"
    assert tables.interval([2.0, 2.0]) == "+2.0 (two seeds)"


def test_a_difference_is_of_the_seeds_that_both_have_and_a_mean_of_all_or_none():
    runs = [{"config": {"objective": {"name": "clip"}}, "tasks": {"r": {"R@1": v}} if v else {}} for v in (0.5, 0, 0.7)]
    three, two = dict(enumerate(runs)), {0: runs[0], 2: runs[1]}
    assert tables.values(three, ("r", "R@1")) == {0: 0.5, 2: 0.7}
    assert tables.spread(three, ("r", "R@1")) is None
    assert tables.differences(three, two, ("r", "R@1")) == [0.0]


@pytest.mark.parametrize("name", studies.STUDIES)
def test_kept_results_are_of_the_studies_settings(name):
    study, found = studies.STUDIES[name], sorted((ROOT / "experiments" / "results" / name).glob("*.json"))
    for path in found:
        config, seed = path.stem.rsplit("-seed-", 1)
        new = asdict(replace(study.configs[config], seed=int(seed)))
        assert driver.differences(read_json(path)["config"], new) == [], path.name


def test_the_recipes_are_what_was_measured():
    for study in ("scenes", "emoji"):
        measured = studies.STUDIES[study].configs
        assert measured["patches"] == scenes_tiny()
        assert replace(measured["superpixels-32"], recipe="scenes_superpixels") == scenes_superpixels()


def test_the_rows_of_the_readme_are_rows_of_the_page():
    assert {row[0] for rows in tables.SUMMARY_ROWS.values() for row in rows} >= tables.IN_ANSWER


def test_the_pages_are_what_the_results_say(tmp_path):
    docs = ROOT / "docs"
    pages = {"evidence.md", *(study.page for study in studies.STUDIES.values())}
    for page in pages:
        shutil.copy(docs / page, tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path)
    tables.main(tmp_path, readme=tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), "run python experiments/tables.py"
    for page in pages:
        assert (tmp_path / page).read_text() == (docs / page).read_text(), "run python experiments/tables.py"
    drawn_otherwise = {path.name for path in docs.glob("evidence-*grounding.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == {
        p.name for p in docs.glob("evidence-*.png")
    } - drawn_otherwise
