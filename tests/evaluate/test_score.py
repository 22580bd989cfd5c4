"""Running tasks: on a model that sees colours, and on a real one."""

import warnings
from contextlib import nullcontext

import pytest
import torch

from powerclip import create_model
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.score import highest_of, jobs_of, run_jobs
from powerclip.model import make_tokenizer, make_transforms
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Classification, HardNegative, HardNegatives, Picture, Quadruple, Quadruples, Retrieval, Task
from tests.support.colours import NAMES, ColourModel, preprocess, square, tokenizer


def tasks() -> list[Task]:
    images = [square(name) for name in NAMES]
    return [
        Classification(
            name="c", images=images, labels=[0, 1, 0], class_names=NAMES, templates=("a {c}", "some {c} thing")
        ),
        Retrieval(name="r", images=images, captions=[("red", "a red"), ("green",), ("blue", "so blue", "blue")]),
        HardNegatives(
            name="h",
            items=[
                HardNegative(image=images[0], positive="red", negatives=["blue"], kind="replace_att"),
                HardNegative(image=images[0], positive="red", negatives=["red"], kind="swap_att"),
            ],
        ),
        Quadruples(
            name="q",
            items=[
                Quadruple(images=(images[0], images[1]), captions=("red", "green")),
                Quadruple(images=(images[0], images[1]), captions=("green", "red")),
            ],
        ),
    ]


@pytest.mark.parametrize("training", [True, False])
def test_tasks_run_in_batches_and_leave_the_mode_alone(training: bool) -> None:
    model = ColourModel().train(training)
    found = evaluate_tasks(model, preprocess, tokenizer, tasks(), device="cpu", batch_size=2)
    assert found["c"] == pytest.approx({"acc@1": 2 / 3, "mean_per_class": 3 / 4})  # red: 1 of 2, green: 1 of 1
    # "red" and "a red" embed alike but belong to the same image: no wrong text ties.
    assert found["r"] == {f"{way}_R@{k}": 1.0 for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert found["h"] == {"micro": 0.5, "macro": 0.5, "replace_att": 1.0, "swap_att": 0.0}
    assert found["q"] == {"text": 0.5, "image": 0.5, "group": 0.5}
    assert list(found) == ["c", "r", "h", "q"]
    assert max(model.sizes) == 2
    assert model.training is training


def test_the_mode_is_restored_after_an_error() -> None:
    model = ColourModel().train()
    with pytest.raises(ValueError, match="no item"):
        evaluate_tasks(model, preprocess, tokenizer, [HardNegatives(name="h", items=[])], device="cpu", batch_size=2)
    assert model.training


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            Classification(name="c", images=[], labels=[], class_names=(), templates=("{c}",)),
            "class_names of task c has an empty list",
        ),
        (
            Classification(name="c", images=[], labels=[], class_names=("a",), templates=()),
            "templates of task c has an empty list",
        ),
        (Classification(name="c", images=[], labels=[], class_names=("a",), templates=("{c}",)), "no image"),
        (
            Classification(name="c", images=[], labels=[], class_names=("a",), templates=("a",)),
            "'a' of task c has no {c}",
        ),
        (Retrieval(name="r", images=[square("red")], captions=[]), "1 images and captions for 0"),
        (Retrieval(name="r", images=[], captions=[]), "0 images"),
        (Quadruples(name="q", items=[]), "no item"),
    ],
)
def test_unfit_tasks_say_so(task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(ColourModel(), preprocess, tokenizer, [task], device="cpu", batch_size=2)


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_that_open_images_change_nothing(workers: int) -> None:
    def opened(name: str) -> Picture:
        return lambda: square(name)

    shown = [NAMES[i % 3] for i in range(7)]
    task = Classification(
        name="c", images=[opened(n) for n in shown], labels=[0] * 7, class_names=NAMES, templates=("a {c}",)
    )
    found = evaluate_tasks(ColourModel(), preprocess, tokenizer, [task], batch_size=2, workers=workers)
    assert found["c"]["acc@1"] == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("positive", "wrong", "right"),
    [
        ("red", ("blue", "green"), 1),
        ("red", ("blue", "red"), 0),
        ("blue", ("red", "green"), 0),
        ("nothing", ("red",), 0),
    ],
)
def test_the_right_caption_must_beat_every_wrong_one(positive: str, wrong: tuple[str, ...], right: float) -> None:
    item = HardNegative(image=square("red"), positive=positive, negatives=wrong, kind="order")
    other = HardNegative(image=square("blue"), positive="blue", negatives=["red"], kind="order")
    task = HardNegatives(name="h", items=[other, item, other])
    assert evaluate_tasks(ColourModel(), preprocess, tokenizer, [task])["h"]["micro"] == pytest.approx((2 + right) / 3)


def test_an_item_without_a_wrong_caption_is_right() -> None:
    items = [
        HardNegative(image=square("red"), positive="blue", negatives=[], kind="order"),
        HardNegative(image=square("red"), positive="blue", negatives=["red"], kind="order"),
    ]
    for shown, expected in ((items, 0.5), (items[:1], 1.0)):
        found = evaluate_tasks(ColourModel(), preprocess, tokenizer, [HardNegatives(name="h", items=shown)])
        assert found["h"]["micro"] == expected


def test_a_wrong_caption_whose_score_is_no_number_is_no_win() -> None:
    highest = highest_of(torch.tensor([0.1, torch.nan, 0.3]), torch.tensor([0, 0, 1]), count=2)
    assert torch.isnan(highest[0])
    assert highest[1] == pytest.approx(0.3)


def test_the_batch_size_does_not_change_what_a_real_model_scores() -> None:
    torch.manual_seed(0)
    model = create_model("tiny")
    suite = evaluation_tasks(seed=3, size=6)
    results = [
        evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), suite, device="cpu", batch_size=size)
        for size in (3, 64)
    ]
    assert list(results[0]) == [task.name for task in suite]
    values = [value for metrics in results[0].values() for value in metrics.values()]
    assert all(0 <= value <= 1 for value in values)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (("red", "green"), ("a {c}", "many " * 80 + "{c}"), "'red' and 'green' are the same in the prompt 'many many"),
        (("red", "green", "Red"), ("a {c}",), "'red' and 'Red' are the same in the prompt 'a {c}'"),
        (("old " * 80 + "cat", "old " * 80 + "dog"), ("a {c}",), "cat' and 'old .*put {c} nearer to its start, or"),
        (("red", "green", "red"), ("a {c}",), None),
    ],
)
def test_classes_with_the_same_prompt_are_named(names, templates, message) -> None:
    model = create_model("tiny").eval()
    transform, words = make_transforms(model)[1], make_tokenizer(model)
    task = Classification(name="c", images=[square("red")], labels=[0], class_names=names, templates=templates)
    with pytest.warns(UserWarning, match=f"^c: .*{message}") if message else nullcontext():
        evaluate_tasks(model, transform, words, [task])


def test_classes_with_the_same_prompt_are_named_once_in_a_short_line_by_the_first_process(monkeypatch) -> None:
    model = create_model("tiny").eval()
    encoder = Encoder(model, make_transforms(model)[1], make_tokenizer(model), device=torch.device("cpu"), batch_size=4)
    names = [f"{'old ' * 200}{name}" for name in ("cat", "dog")]
    task = Classification(name="c", images=[square("red")], labels=[0], class_names=names, templates=["a {c}" * 200])
    for process in (0, 1):
        monkeypatch.setattr("powerclip.evaluate.score.rank", lambda process=process: process)
        with warnings.catch_warnings(record=True, action="always") as warned:
            assert len(list(run_jobs(encoder, jobs_of([task], ("global", "late"))))) == 2
        assert [len(str(w.message)) < 500 for w in warned] == [True] * (process == 0)
