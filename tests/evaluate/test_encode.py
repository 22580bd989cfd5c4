"""What is encoded, and how often."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from powerclip import create_model
from powerclip.evaluate import evaluate_tasks, pairwise_scores
from powerclip.evaluate.datasets.aro_order import order_task
from powerclip.evaluate.datasets.clip_benchmark import read_webdataset
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.score import evaluating, jobs_of, run_jobs
from powerclip.model import make_tokenizer, make_transforms
from powerclip.tasks import Classification, HardNegative, HardNegatives, Quadruple, Quadruples, Retrieval
from tests.support.colours import NAMES, ColourModel, preprocess, square, tokenizer
from tests.support.layouts import webdataset

OPENED = Counter()


@pytest.fixture(autouse=True)
def nothing_opened():
    OPENED.clear()


@dataclass(frozen=True)
class Counted:
    """Opens a square of a colour; equal ones are the same image, as those of the readers are."""

    name: str

    def __call__(self):
        OPENED[self.name] += 1
        return square(self.name)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("tiny", image_size=32)


def tasks():
    """Five tasks of seventeen items on the same three images."""
    images = [Counted(name) for name in NAMES]
    negatives = [
        HardNegative(image=Counted(name), positive=name, negatives=[other], kind="swap")
        for name in NAMES
        for other in NAMES
        if other != name
    ]
    return [
        Classification(name="c", images=images, labels=[0, 1, 2], class_names=NAMES, templates=("a {c}", "{c}")),
        Retrieval(name="r", images=images, captions=[(name, f"a {name}") for name in NAMES]),
        HardNegatives(name="h", items=negatives),
        Retrieval(name="again", images=[Counted(name) for name in NAMES], captions=[(name,) for name in NAMES]),
        Quadruples(name="q", items=[Quadruple(images=(images[0], images[2]), captions=(NAMES[0], NAMES[2]))] * 2),
    ]


def test_an_image_is_opened_once_and_a_text_encoded_once():
    model = ColourModel()
    together = evaluate_tasks(model, preprocess, tokenizer, tasks(), batch_size=2)
    assert Counter(NAMES) == OPENED
    assert sum(model.sizes) == 3 + 6  # three images; "red", "a red" and those of the other colours
    alone = {}
    for task in tasks():
        alone |= evaluate_tasks(ColourModel(), preprocess, tokenizer, [task], batch_size=2)
    assert together == alone


def test_images_of_a_shard_are_opened_once_for_five_captions_all_captions_and_their_orders(tmp_path, monkeypatch):
    texts = "\n".join(f"a {colour} dog and a cat number {i}" for i, colour in enumerate([*NAMES, *NAMES]))
    samples = [(colour, texts.encode()) for colour in NAMES]
    folder = webdataset(tmp_path, samples, "txt", kind="retrieval")
    every, five = read_webdataset(folder, "coco")
    order = order_task("order", every)
    assert len(order.items) == 18
    opened = []

    def counting(image):
        opened.append(image.getpixel((0, 0)))
        return preprocess(image)

    evaluate_tasks(ColourModel(), counting, tokenizer, [five, every, order], batch_size=2)
    assert len(opened) == len(set(opened)) == 3


@pytest.mark.parametrize("score", ["powerset", "late"])
def test_both_scores_share_an_image_s_pass(model, score):
    shown = [task for task in tasks() if task.name != "again"]
    passes = []
    model.backbone.visual.conv1.register_forward_pre_hook(lambda module, images: passes.append(len(images[0])))
    arguments = (model, make_transforms(model)[1], make_tokenizer(model))
    encoder = Encoder(*arguments, device="cpu", batch_size=2)
    both = {job.name: metrics for job, metrics in run_jobs(encoder, jobs_of(shown, ("global", score)))}
    assert Counter(NAMES) == OPENED
    assert sum(passes) == 3
    assert not encoder.known
    apart = evaluate_tasks(*arguments, shown) | evaluate_tasks(*arguments, shown, score=score)
    assert both == apart


def test_with_a_retrieval_task_first_both_scores_open_an_image_once(model):
    encoder = Encoder(model, make_transforms(model)[1], make_tokenizer(model), device="cpu", batch_size=2)
    assert len(list(run_jobs(encoder, jobs_of(tasks()[1:], ("global", "powerset"))))) == 8
    assert Counter(NAMES) == OPENED


def test_texts_are_encoded_without_the_padding_that_all_have(model):
    tokenizer = make_tokenizer(model)
    encoder = Encoder(model, make_transforms(model)[1], tokenizer, device="cpu", batch_size=3)
    texts = ["a red cube", "!", "a blue ball on a green cone and a red cube above them"]
    widths = []
    model.backbone.token_embedding.register_forward_pre_hook(lambda _, ids: widths.append(ids[0].shape[1]))
    with evaluating(model), torch.inference_mode():
        found = encoder.texts(texts)
        expected = model.encode_text(tokenizer(texts), normalize=True)
    assert widths == [16, model.context_length]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", ["global", "powerset", "late"])
def test_a_model_in_half_precision_is_given_pixels_in_it(model, score):
    arguments = (make_transforms(model)[1], make_tokenizer(model), [square("red"), square("blue")], ["red", "blue"])
    expected = pairwise_scores(model, *arguments, score=score)
    found = pairwise_scores(model.bfloat16(), *arguments, score=score)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_open_images_are_told_apart_by_identity():
    red, blue = square("red"), square("blue")
    model = ColourModel()
    encoder = Encoder(model, preprocess, tokenizer, device="cpu", batch_size=8)
    with evaluating(model), torch.inference_mode():
        found = encoder.images([red, blue, red, square("red")])
    assert found.argmax(dim=1).tolist() == [0, 2, 0, 0]
    assert model.sizes == [3]


def test_embeddings_are_dropped_after_the_last_task_that_needs_them():
    model = ColourModel()
    encoder = Encoder(model, preprocess, tokenizer, device="cpu", batch_size=8)
    first = Retrieval(name="1", images=[Counted("red"), Counted("green")], captions=[("red",), ("green",)])
    second = Retrieval(name="2", images=[Counted("green"), Counted("blue")], captions=[("green",), ("blue",)])
    held = [list(encoder.known) for _ in run_jobs(encoder, jobs_of([first, second], ("global",)))]
    assert held == [[(Counted("green"), "image"), ("green", "text")], []]
    assert OPENED == {"red": 1, "green": 1, "blue": 1}


def test_embeddings_of_all_batches_are_in_one_block():
    """Kept one by one between larger tensors that are freed, they would split the heap and let memory creep."""
    encoder = Encoder(ColourModel().eval(), preprocess, tokenizer, device="cpu", batch_size=2)
    with torch.inference_mode():
        found = encoder.texts([f"{name} {number}" for number in range(3) for name in NAMES])
    assert found.tolist() == [[float(name == other) for other in NAMES] for _ in range(3) for name in NAMES]
    assert len({row.untyped_storage().data_ptr() for _, (row,) in encoder.known.values()}) == 1
