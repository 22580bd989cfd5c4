import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from powerclip import create_model
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets.prompts import imagenet_templates
from powerclip.evaluate.datasets.regions import FG_OVD, read_boxes, read_fg_ovd
from powerclip.evaluate.metrics import class_embeddings
from powerclip.evaluate.results import origin_of
from powerclip.model import make_tokenizer, make_transforms
from tests.support.images import encoded
from tests.support.layouts import write_json


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("tiny").eval()


def photos(folder, count, size=(128, 64)):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        (folder / f"{number:012}.jpg").write_bytes(encoded(image))


def box_vector(model, path, box):
    """The mean of the patches whose middle is in the box, of the squeezed image; boxes are on the patches' borders."""
    image = Image.open(path).convert("RGB")
    patches = model.encode_patches(make_transforms(model, crop="none")[0](image)[None])[0]
    rows, columns = model.grid_size
    inside = [
        row * columns + column
        for row in range(rows)
        for column in range(columns)
        if box[0] <= (column + 0.5) * image.width / columns < box[0] + box[2]
        and box[1] <= (row + 0.5) * image.height / rows < box[1] + box[3]
    ]
    return patches[inside].mean(dim=0)


def boxes(count):
    """(x, y, w, h) on the borders of patches, many of them in the same image."""
    random = np.random.default_rng(1)
    x, y = random.integers(0, 6, (2, count)) * 16, random.integers(0, 6, (2, count))[0] * 8
    return [[float(a), float(b), 32.0, 16.0] for a, b in zip(x[0] if x.ndim > 1 else x, y, strict=True)]


def test_fg_ovd_is_a_box_against_eleven_descriptions(model, tmp_path):
    photos(tmp_path / "val2017", 3)
    tokenizer, right = make_tokenizer(model), {}
    for kind, file in FG_OVD.items():
        lines = []
        for i, box in enumerate(boxes(20)):
            texts = [f"A {kind} thing number {i} of {k}." for k in range(11)]
            row = {"img_path": f"val2017/{i % 3:012}.jpg", "bbox": box, "pos_expression": texts[:1]}
            lines.append(json.dumps(row | {"neg_expression": texts[1:], "test_type": "1_attributes"}))
            with torch.inference_mode():
                vector = box_vector(model, tmp_path / row["img_path"], box)
                scores = cosine_similarity(vector, model.encode_text(tokenizer([text.lower() for text in texts])))
            right.setdefault(kind, []).append(int(scores.argmax()) == 0)
        (tmp_path / file).write_text("\n".join(lines))
    (task,) = read_fg_ovd(tmp_path, "fg-ovd")
    assert origin_of(task, suite="s", data="d").n == 80
    found = evaluate_tasks(model, make_transforms(model)[1], tokenizer, [task])["fg-ovd"]
    assert {kind: found[kind] for kind in right} == pytest.approx({k: sum(r) / 20 for k, r in right.items()})
    assert 0 < found["micro"] < 1
    assert found["micro"].chance == pytest.approx(1 / 11)
    (tmp_path / FG_OVD["easy"]).write_text(json.dumps({"img_path": "a"}))
    with pytest.raises(PowerclipError, match=r"e_attributes_llava\.jsonl is a list of 1 rows such as: img_path"):
        read_fg_ovd(tmp_path, "fg-ovd")


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_boxes_get_their_classes(form, model, tmp_path):
    photos(tmp_path / "val2017", 2)
    given = boxes(40)  # 20 of an image: more than are kept in a row
    images = [
        {"id": i, "file_name": f"{i:012}.jpg"}
        if form == "coco"
        else {"id": i, "coco_url": f"http://x/val2017/{i:012}.jpg"}
        for i in range(2)
    ]
    categories = [{"id": 3 * c + 1, "name": name} for c, name in enumerate(("cat", "hot_dog", "traffic light"))]
    rows = [{"image_id": i % 2, "category_id": 3 * (i % 3) + 1, "bbox": box} for i, box in enumerate(given)]
    write_json(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories})
    (task,) = read_boxes(tmp_path, "boxes", file="a.json")
    assert task.class_names == ["cat", "hot dog", "traffic light"]
    assert origin_of(task, suite="s", data="d").n == 40
    tokenizer = make_tokenizer(model)
    found = evaluate_tasks(model, make_transforms(model)[1], tokenizer, [task])["boxes"]
    with torch.inference_mode():
        prompts = [[t.replace("{c}", name) for t in imagenet_templates()] for name in task.class_names]
        texts = torch.stack([model.encode_text(tokenizer(of_class), normalize=True) for of_class in prompts])
        classes = class_embeddings(texts)
        right = [
            int((classes @ box_vector(model, tmp_path / "val2017" / f"{i % 2:012}.jpg", box)).argmax()) == i % 3
            for i, box in enumerate(given)
        ]
    assert found["acc@1"] == pytest.approx(sum(right) / 40)
    assert 0 < sum(right) < 40
    rows[0]["bbox"] = [1, 2, 3]
    write_json(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories})
    with pytest.raises(PowerclipError, match=r"a\.json does not .*\[x, y, width, height\] expected, \[1, 2, 3\]"):
        read_boxes(tmp_path, "boxes", file="a.json")


def test_boxes_that_are_none_and_items_without_a_wrong_text(tmp_path):
    photos(tmp_path / "val2017", 1)
    row = {"img_path": f"{0:012}.jpg", "bbox": [0, 0, 9, 9], "pos_expression": ["a"], "neg_expression": ["b"]}
    for file in FG_OVD.values():
        (tmp_path / file).write_text(json.dumps(row) + "\n" + json.dumps(row | {"neg_expression": []}))
    with pytest.warns(UserWarning, match="fg-ovd: 4 of 8 items have no wrong answer and are left out"):
        (task,) = read_fg_ovd(tmp_path, "fg-ovd")
    assert len(task.items) == 4
    for box in ([0, 0, -1, 9], [0, 0, 9, float("nan")], [0, float("inf"), 9, 9]):
        (tmp_path / FG_OVD["easy"]).write_text(json.dumps(row | {"bbox": box}))
        with pytest.raises(PowerclipError, match=r"e_attributes_llava\.jsonl does not have .*a finite box of 0 x 0"):
            read_fg_ovd(tmp_path, "fg-ovd")
