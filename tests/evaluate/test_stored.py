import json

from PIL import Image

from powerclip.evaluate import Origin, read_evaluation
from powerclip.evaluate.stored import add_result, earlier_results, write_evaluation
from powerclip.tasks import Retrieval


def test_the_files_of_tasks_agree_with_all_results(tmp_path):
    def add(weights, name, data, value):
        origin = Origin(suite="pairs", data=data, fingerprint=f"fingerprint-{data}", n=2)
        before = earlier_results(tmp_path, f"hub/{weights}", weights, former="")
        after = before.with_result(name, {"acc@1": value}, origin)
        add_result(tmp_path, after, name, own={name}, former="")

    def agree():
        one = read_evaluation(tmp_path)
        files = [json.loads(path.read_text()) for path in (tmp_path / "evaluation").glob("*.json")]
        assert {file["task"]: (file["metrics"], file["weights"]) for file in files} == {
            task: (metrics, one.weights) for task, metrics in one.tasks.items()
        }
        return {file["task"]: file["metrics"]["acc@1"] for file in files}

    add("m", "retrieval:A", "A", 0.25)
    add("n", "retrieval:A", "A", 0.5)
    assert agree() == {"retrieval:A": 0.5}
    add("m", "retrieval:B", "B", 0.75)
    assert agree() == {"retrieval:A": 0.25, "retrieval:B": 0.75}
    add("n", "c", "C", 1.0)
    assert agree() == {"retrieval:A": 0.5, "c": 1.0}
    add("n", "c", "other", 0.0)
    assert agree() == {"retrieval:A": 0.5, "c#fingerpr": 1.0, "c": 0.0}
    (tmp_path / "evaluation" / "own.json").write_text("[]")
    earlier_results(tmp_path, "hub/o", "o", former="")  # which is then interrupted
    assert [path.name for path in (tmp_path / "evaluation").glob("*.json")] == ["own.json"]
    (tmp_path / "evaluation" / "own.json").unlink()
    add("o", "c", "C", 0.125)
    tasks = [Retrieval(name="mine", images=[Image.new("RGB", (8, 8))], captions=[["x"]])]
    write_evaluation(tmp_path, {"mine": {"acc@1": 0.5}}, tasks=tasks, suite="own")
    assert agree() == {"mine": 0.5}
