import pytest
import torch
from PIL import Image

from powerclip.evaluate.encode import Encoder
from powerclip.report import examples
from powerclip.report.examples import Images, hard_negatives, retrieval, spaced
from powerclip.tasks import HardNegative, HardNegatives, Retrieval
from tests.support.colours import COLOURS, ColourModel, preprocess, square, tokenizer


class BlueBlind(ColourModel):
    """Sees nothing in blue images."""

    def encode_image(self, images, normalize=False):
        return super().encode_image(images) * torch.tensor([1.0, 1.0, 0.0])


def encoder(model=ColourModel):
    return Encoder(model().eval(), preprocess, tokenizer, device="cpu", batch_size=2)


def colours(*names):
    return [Image.new("RGB", (20, 10), COLOURS.get(name, name)) for name in names]


def test_retrieval_answers_are_the_best_first_and_a_tie_with_a_wrong_one_is_wrong():
    task = Retrieval(
        name="t", images=colours("red", "green", "blue", "#000"), captions=[["red"], ["green"], ["blue"], ["red green"]]
    )
    images = Images()
    to_image, to_text = retrieval(task, {"sees": encoder(), "blind": encoder(BlueBlind)}, images)
    assert (to_image.title, to_text.title) == ("Text to image", "Image to text")
    assert to_image.asked == to_text.asked == 4
    assert to_image.solved == {"sees": 3, "blind": 2}  # no image is red and green, and black is all zeros
    red, green, blue, _ = to_image.queries
    assert red.content == "red"
    first, *others = red.answers["sees"]
    assert (first.content, first.score, first.right) == (examples.Thumb(0, "red"), pytest.approx(1.0), True)
    assert len(others) == 3
    assert not any(answer.right or answer.score for answer in others)
    assert blue.solved == {"sees": True, "blind": False}
    assert [answer.right for answer in blue.answers["blind"]] == [False, False, False, True]  # all score 0
    assert to_text.queries[1].content == examples.Thumb(1, "green")
    assert [answer.content for answer in to_text.queries[1].answers["sees"]][:2] == ["green", "red green"]
    assert len(images.sources) == 4
    assert all(source.startswith("data:image/webp;base64,") for source in images.sources)


def test_a_copy_of_a_caption_is_right():
    task = Retrieval(name="t", images=colours("red", "red"), captions=[["red"], ["red"]])
    for direction in retrieval(task, {"one": encoder()}, Images()):
        assert direction.solved == {"one": 2}
        assert all(answer.right for query in direction.queries for answer in query.answers["one"])


def test_half_of_the_queries_are_spaced_evenly_and_half_are_wrong(monkeypatch):
    monkeypatch.setattr(examples, "QUERIES", 4)
    names = ["red"] * 9 + ["blue"]
    task = Retrieval(name="t", images=colours(*names), captions=[[name] for name in names])
    direction, _ = retrieval(task, {"blind": encoder(BlueBlind)}, Images())
    assert [query.content for query in direction.queries] == ["red", "red", "blue"]
    assert [query.solved["blind"] for query in direction.queries] == [True, True, False]


def test_hard_negatives_show_what_a_run_got_wrong_with_the_words_that_differ():
    (red,), (blue,) = colours("red"), colours("blue")
    items = [
        HardNegative(image=red, positive="a red box", negatives=["a blue box"], kind="easy"),
        HardNegative(image=blue, positive="a blue box", negatives=["a green box"], kind="hard"),
        HardNegative(image=red, positive="red box", negatives=["a green red box", "red red box"], kind="tied"),
        HardNegative(image="red", positive=red, negatives=[blue], kind="turned around"),
        HardNegative(image=red, positive="red", negatives=[], kind="without a wrong one"),
    ]
    task = HardNegatives(name="t", items=items)
    shown, wrong, asked = hard_negatives(task, {"sees": encoder(), "blind": encoder(BlueBlind)}, Images())
    assert (asked, wrong) == (3, {"sees": 1, "blind": 2})
    hard, tied = shown
    assert (hard.kind, hard.image.alt) == ("hard", "a blue box")
    assert hard.positive == [("a", False), ("blue", True), ("box", False)]
    assert hard.found["sees"].words == [("a", False), ("green", True), ("box", False)]
    assert (hard.found["sees"].right, hard.found["sees"].wrong) == pytest.approx((1.0, 0.0))
    assert (hard.found["blind"].right, hard.found["blind"].wrong) == (0.0, 0.0)
    assert tied.found["sees"].words == [("red", True), ("red", False), ("box", False)]  # the worse of the two
    assert tied.found["sees"].right == pytest.approx(tied.found["sees"].wrong)


def test_kinds_that_come_in_turn_are_all_shown(monkeypatch):
    monkeypatch.setattr(examples, "POOL", 6)
    (red,) = colours("red")
    items = [
        HardNegative(image=red, positive="green", negatives=["red"], kind=kind)
        for _ in range(6)
        for kind in ("a", "b", "c")
    ]
    shown, wrong, asked = hard_negatives(HardNegatives(name="t", items=items), {"one": encoder()}, Images())
    assert (asked, wrong) == (6, {"one": 6})
    assert [item.kind for item in shown] == ["a", "a", "b", "b", "c", "c"]


def test_equal_images_are_on_the_page_once_and_large_ones_are_made_small():
    images = Images()
    first, again = images.add(square("red"), "one"), images.add(square("red"), "two")
    assert (first, again) == ((0, "one"), (0, "two"))
    large = images.add(Image.effect_noise((4000, 2000), 90), "noise")
    assert len(images.sources[large.number]) < 20_000


def test_spacing():
    assert spaced(range(10), 3) == [0, 3, 6]
    assert spaced(range(2), 3) == [0, 1]
    assert spaced([], 3) == []
