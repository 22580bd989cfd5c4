import re

import pytest
from PIL import Image

from powerclip import create_model
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.prompts import prompts_of
from powerclip.model import make_tokenizer, make_transforms
from powerclip.tasks import Classification, MultiLabel, Segmentation

IMAGE = Image.new("RGB", (64, 64))
OF_KIND = {
    Classification: {"labels": [0]},
    MultiLabel: {"targets": [[1, 0]]},
    Segmentation: {"truths": [lambda: [[0] * 64] * 64]},
}


def task(kind, **options):
    names = [["red", "scarlet"], ["blue"]] if kind is Segmentation else ["red", "blue"]
    options = {"class_names": names, "templates": ["a {c}", "{c}"], **OF_KIND[kind], **options}
    return kind(name="t", images=[IMAGE], **options)


def test_the_prompts_of_a_name_follow_each_other():
    assert prompts_of(task(Classification)) == ["a red", "red", "a blue", "blue"]
    assert prompts_of(task(Segmentation)) == ["a red", "red", "a scarlet", "scarlet", "a blue", "blue"]


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ["a {c}", "a picture"]}, "template 'a picture' of task t has no {c} for the class name; add it"),
        ({"templates": "a {c}"}, "templates of task t has the text 'a {c}', not a list; give ['a {c}']"),
        ({"templates": []}, "templates of task t has an empty list; give at least one text"),
        ({"class_names": "cat"}, "class_names of task t has the text 'cat', not a list; give ['cat']"),
        ({"class_names": []}, "class_names of task t has an empty list; give at least one text"),
    ],
)
def test_prompts_that_cannot_be_made_are_named(kind, options, message):
    model = create_model("tiny")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), [task(kind, **options)])


@pytest.mark.parametrize("names", ["cat", []])
def test_each_class_to_segment_has_a_list_of_names(names):
    with pytest.raises(ValueError, match="class_names of task t has"):
        prompts_of(task(Segmentation, class_names=[["dog"], names]))
