"""Whatever a file that is read holds: a value, or one line that names the file; never a traceback, never gigabytes."""

import json
import time
import tracemalloc

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import powerclip
from powerclip.config import TrainConfig, load_config, to_yaml
from powerclip.data.index import read_index, summarize
from powerclip.data.remote import Shard
from powerclip.errors import PowerclipError
from powerclip.evaluate import read_evaluation
from powerclip.evaluate.datasets.clip_benchmark import read_webdataset
from powerclip.evaluate.results import Evaluation, Origin
from powerclip.files import SUMS
from powerclip.model import save
from powerclip.report.plots import PANELS, series
from powerclip.report.tables import notes, results_table, seeds_table
from powerclip.runs import RunFolder, read_metrics
from tests.support.layouts import webdataset
from tests.support.tars import damaged

MOST_BYTES = 64 * 2**20
"""What reading a small file may take: a model of the tiny architecture takes a few of these."""

MOST_CPU_S = 10
"""CPU seconds that it may take while its memory is measured."""

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -1, 2**63, "\x1b[2J", "<script>", "=1+1", "9" * 5000, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw, content):
    """A JSON value with some of its parts, at any depth, replaced, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        content = draw(changed_once(content))
    return content


@st.composite
def changed_once(draw, content):
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    parts = dict(content) if isinstance(content, dict) else dict(enumerate(content))
    place = draw(st.sampled_from(sorted(parts)))
    action = draw(st.sampled_from(["change", "change", "change", "remove", "add"]))
    if action == "change":
        parts[place] = draw(changed_once(parts[place]))
    elif action == "remove":
        del parts[place]
    else:
        parts[draw(st.text(max_size=3)) if isinstance(content, dict) else len(parts)] = draw(VALUES)
    return parts if isinstance(content, dict) else list(parts.values())


@st.composite
def contents(draw, valid, dump):
    """Bytes of a file: of a changed value, or a valid one's with some bytes changed."""
    if draw(st.booleans()):
        return damaged(dump(valid).encode(), draw)
    return dump(draw(changed(valid))).encode("utf-8", "surrogatepass")


def is_read(read, path):
    """The value, or None after an error in one line that names the file; memory and CPU time are measured."""
    value, message = None, str(path)
    start = time.process_time()
    tracemalloc.start()
    try:
        value = read()
    except (PowerclipError, ValueError) as error:
        message = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 5000
    assert peak < MOST_BYTES
    assert time.process_time() - start < MOST_CPU_S
    return value


def as_json(value):
    return json.dumps(value)


ODD = ["9" * 5000, "0x" + "f" * 5000, "[0x" + "f" * 5000 + "]", "2001-99-99", "!!int ''", "!!int x", "!!bool x"]


@given(
    contents(yaml.safe_load(to_yaml(TrainConfig(steps=3))), lambda value: yaml.dump(value))
    | st.tuples(st.sampled_from(["steps", "seed", "data", "optim"]), st.sampled_from(ODD)).map(
        lambda setting: ": ".join(setting).encode()
    )
)
@example(b"steps: 0x" + b"f" * 5000)
@example(b"data: 2001-99-99")
@example(b"? '\n\n  '\n: null\n")
@example(b"? 0x" + b"f" * 5000 + b"\n: null\n")
@example(b"a" * 9000 + b": null")
@example(b"steps: !!int ''")
def test_a_config(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_bytes(content)
    config = is_read(lambda: load_config(path), path)
    assert config is None or load_config(path) == config


@given(contents({"sources": ["a"], "samples": 1, "shards": 1, "digest": "0"}, as_json), st.binary(max_size=40))
@example(as_json({"sources": ["a"], "samples": 1, "shards": 1, "digest": ["9" * 5000]}).encode(), b"")
def test_the_records_of_a_run(tmp_path_factory, data, status):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.data_file.write_bytes(data)
    run.status_file.write_bytes(status)
    is_read(run.data, run.data_file)
    assert run.is_finished() in (True, False)


LINE = {"step": 3, "samples_seen": 24, "loss": 2.5, "loss_clip": 2.0, "learning_rate": 1e-3, "samples_per_s": 9.0}


@given(st.lists(contents(LINE, as_json), max_size=4))
def test_metrics_and_their_curves(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" + json.dumps(LINE).encode() + b"\n")
    found = is_read(lambda: read_metrics(path), path)
    assert found[-1] == LINE
    json.dumps(series({"run": found}, PANELS), allow_nan=False)


EVALUATION = {
    "suite": "scenes",
    "tasks": {"scenes-object": {"top-1": 0.5, "i2t_R@1": 0.25}, "dtd": {"top-1": 0.3}},
    "measured_on": {"dtd": {"suite": "classification", "data": "/dtd", "fingerprint": "9b1f", "n": 3}},
    "estimates": {"dtd": {"top-1": {"n": 3, "standard_error": 0.1, "chance": None}}},
    "absent": {"cars": "https://x"},
    "pending": ["cars"],
    "model": "/m",
    "weights": "0",
}


@given(contents(EVALUATION, as_json))
@example(as_json({**EVALUATION, "measured_on": {"dtd": {**EVALUATION["measured_on"]["dtd"], "data": None}}}).encode())
@example(as_json({**EVALUATION, "tasks": {"dtd": {"top-1": 10**400}}}).encode())
def test_an_evaluation_and_its_tables(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    (folder / "evaluation.json").write_bytes(content)
    found = is_read(lambda: read_evaluation(folder), folder)
    if found is not None:
        for table in (results_table({"a": [found]}), seeds_table({"a": [found]})):
            for text in (table.markdown(), table.csv()):
                assert "\x1b" not in text
        notes(found)
        origin = Origin(suite="scenes", data="x", fingerprint="0", n=1)
        again: Evaluation = found.with_result("new", {"top-1": 0.5}, origin)
        again.write(folder)
        assert read_evaluation(folder) is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save(powerclip.create_model("tiny"), tmp_path_factory.mktemp("model") / "tiny")
    (folder / SUMS).unlink()
    return folder


@settings(max_examples=settings().max_examples * 3 // 5)  # each builds a model
@given(st.data())
def test_a_model_without_checksums(model, data):
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    valid = (model / name).read_bytes()
    if name == "config.json":
        content = data.draw(contents(json.loads(valid), as_json))
    else:
        head = int.from_bytes(valid[:8], "little") + 8
        content = damaged(valid[:head], data.draw) + valid[head:]
    (model / name).write_bytes(content)
    try:
        is_read(lambda: powerclip.load(model), model)
    finally:
        (model / name).write_bytes(valid)


@given(
    st.sampled_from(
        ["test/nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"]
    ),
    st.binary(max_size=30)
    | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.sampled_from(
        [b"3000000000", b"2" * 6000, b"{c:2000000000}", b"{0.__class__}", b"{c!r:>9999999}", b"{c}\n" * 5]
    ),
)
@example("dataset_type.txt", b"2" * 6000)
def test_the_texts_of_a_benchmark(tmp_path_factory, name, content):
    folder = webdataset(tmp_path_factory.mktemp("set") / "colours", [("red", b"0"), ("blue", b"1")], "cls")
    (folder / name).write_bytes(content)
    is_read(lambda: read_webdataset(folder, "colours"), folder)


@given(st.data())
def test_the_index_of_a_shard(tmp_path_factory, data):
    folder = (
        webdataset(tmp_path_factory.mktemp("set"), [("red", b"a"), ("blue", b"b")], "txt", kind="retrieval") / "test"
    )
    shard = folder / "0.tar"
    right = summarize([Shard(location=str(shard))])
    for path in (folder / ".index" / "0.tar.npz", folder / "index.json"):
        path.write_bytes(damaged(path.read_bytes(), data.draw))
    found = is_read(lambda: summarize([Shard(location=str(shard))]), shard)
    is_read(lambda: list(read_index(shard)), shard)
    assert found is not None
    assert right[0].samples == 2


@pytest.mark.parametrize(
    "change", [{"model": None}, {"preprocess": None}, {"model": {"text_cfg": None}}, {"scoring": 3}]
)
def test_a_part_of_a_model_s_config_that_is_something_else(model, change):
    valid = (model / "config.json").read_text()
    (model / "config.json").write_text(as_json({**json.loads(valid), **change}))
    try:
        assert is_read(lambda: powerclip.load(model), model) is None
    finally:
        (model / "config.json").write_text(valid)
