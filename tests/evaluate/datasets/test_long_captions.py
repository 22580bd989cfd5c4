import json

import pytest

from powerclip import create_model
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets.long_captions import read_long_captions
from powerclip.evaluate.results import Evaluation, origin_of
from powerclip.model import make_tokenizer, make_transforms
from powerclip.report.tables import notes
from powerclip.tasks import Retrieval
from tests.support.colours import NAMES, ColourModel, preprocess, square, tokenizer
from tests.support.layouts import picture, write_json


def urban(folder):
    for colour in NAMES:
        picture(folder / "image" / f"{colour}.jpg", colour)
        (folder / "caption").mkdir(exist_ok=True)
        (folder / "caption" / f"{colour}.txt").write_text(f"a long one, {colour}\n")


def flair(folder):
    rows = [
        {"image_id": i, "image": f"{name}.jpg", "caption": f"{name} {k}"}
        for i, name in enumerate(NAMES)
        for k in "abcdef"
    ]
    write_json(folder / "annotations" / "annotations.json", {"annotations": rows})
    for colour in NAMES:
        picture(folder / "images" / f"{colour}.jpg", colour)


def docci(folder):
    rows = [{"split": "test", "image_file": f"{c}.jpg", "description": c, "example_id": c} for c in NAMES]
    rows.append({"split": "train", "image_file": "no.jpg", "description": "no", "example_id": "no"})
    (folder / "docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, rows)))
    for colour in NAMES:
        picture(folder / "images" / f"{colour}.jpg", colour)


def sharegpt4v(folder):
    rows = [
        {"image": f"sam/images/{c}.jpg", "conversations": [{"value": "<image>\nDescribe"}, {"value": f"{c} one"}]}
        for c in NAMES
    ]
    write_json(folder / "share-captioner_coco_lcs_sam_1246k_1107.json", rows)
    for colour in NAMES:
        picture(folder / "sa_000000" / f"{colour}.jpg", colour)


def dci(folder):
    for colour in NAMES:
        row = {"image": f"{colour}.jpg", "short_caption": "a thing", "extra_caption": colour}
        write_json(folder / "annotations" / f"{colour}-data.json", row)
        picture(folder / "photos" / f"{colour}.jpg", colour)
    write_json(folder / "splits.json", {"test": []})


@pytest.mark.parametrize(("make", "captions"), [(urban, 1), (flair, 6), (docci, 1), (sharegpt4v, 1), (dci, 1)])
def test_each_form_has_an_image_s_captions(make, captions, tmp_path):
    make(tmp_path)
    (task,) = read_long_captions(tmp_path, "long")
    assert [len(of_image) for of_image in task.captions] == [captions] * 3
    assert all(of_image[0] for of_image in task.captions)
    assert set(evaluate_tasks(ColourModel(), preprocess, tokenizer, [task])["long"].values()) == {1.0}
    (first,) = read_long_captions(tmp_path, "long", first=2)
    assert origin_of(first, suite="s", data="d").n == 2


def test_captions_of_no_image_and_folders_of_another_form_are_named(tmp_path):
    with pytest.raises(PowerclipError, match=r"holds no captions; expected one of \*-data\.json, share\*\.json"):
        read_long_captions(tmp_path, "urban1k")
    urban(tmp_path)
    (tmp_path / "image" / "red.jpg").unlink()
    with pytest.raises(PowerclipError, match=r"red\.txt is the caption of 0 images red\.\*; expected one"):
        read_long_captions(tmp_path, "urban1k")
    write_json(tmp_path / "annotations.json", [{"image": "a"}])
    with pytest.raises(PowerclipError, match=r"annotations\.json does not have its release's format"):
        read_long_captions(tmp_path, "urban1k")


@pytest.mark.parametrize(("make", "file"), [(urban, "caption/red.txt"), (flair, "annotations/annotations.json")])
def test_captions_that_are_not_utf_8_are_named(make, file, tmp_path):
    make(tmp_path)
    (tmp_path / file).write_bytes(b"caf\xe9")
    with pytest.raises(PowerclipError, match=rf"{file} is not UTF-8 \(.* byte 0xe9 .*\); save it as UTF-8"):
        read_long_captions(tmp_path, "long")


@pytest.mark.parametrize("stem", ["p[1]", "p*", "p?", "[!p]", "p1.b"])
def test_names_are_not_patterns(stem, tmp_path):
    for name in (stem, "p1"):
        picture(tmp_path / "image" / f"{name}.jpg", "red")
        (tmp_path / "image" / f"{name}.txt").write_text(name)
    (task,) = read_long_captions(tmp_path, "urban1k")
    assert {image.path.stem: list(of_image) for image, of_image in zip(task.images, task.captions, strict=True)} == {
        stem: [stem],
        "p1": ["p1"],
    }


def test_captions_that_are_cut_are_counted_and_said():
    model = create_model("tiny", context_length=8)
    fits, longer = "a b c d e f", "a b c d e f g"  # six words with the tokens of start and end
    task = Retrieval(name="r", images=[square(name) for name in NAMES], captions=[["short"], [fits], [longer]])
    found = evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), [task])
    assert found["r"]["captions_cut"] == pytest.approx(1 / 3, abs=1e-9)
    assert notes(Evaluation(tasks=found)) == "cut: r: 33.3% of the captions are longer than the context\n"
    whole = evaluate_tasks(*(lambda m: (m, make_transforms(m)[1], make_tokenizer(m)))(create_model("tiny")), [task])
    assert "captions_cut" not in whole["r"]
    assert notes(Evaluation(tasks=whole)) == ""


def test_second_copies_of_annotations_are_refused(tmp_path):
    sharegpt4v(tmp_path)
    (name,) = tmp_path.glob("share*.json")
    (tmp_path / f"{name.stem} (1).json").write_bytes(name.read_bytes())
    with pytest.raises(PowerclipError, match="have the same content; keep one of them"):
        read_long_captions(tmp_path, "sharegpt4v-1k")
