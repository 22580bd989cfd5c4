import json

import pytest
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets import releases
from powerclip.evaluate.datasets.images import open_picture
from tests.support.colours import ColourModel, preprocess, tokenizer
from tests.support.layouts import picture, write_json


def run(tasks):
    return evaluate_tasks(ColourModel(), preprocess, tokenizer, tasks, batch_size=2)


def test_sugarcrepe_s_seven_files(tmp_path):
    for number, kind in enumerate(releases.SUGARCREPE):
        picture(tmp_path / "val2017" / f"{number}.png", "red")
        right, wrong = ("a red", "a blue") if number else ("a blue", "a red")
        row = {"filename": f"{number}.png", "caption": right, "negative_caption": wrong}
        write_json(tmp_path / "data" / f"{kind}.json", {"7": row})
    found = run(releases.read_sugarcrepe(tmp_path, "sugarcrepe"))["sugarcrepe"]
    assert set(found) == {"micro", "macro", *releases.SUGARCREPE}
    assert (found["add_att"], found["swap_obj"]) == (0, 1)
    assert found["macro"] == pytest.approx(6 / 7)
    (tmp_path / "data" / "swap_obj.json").unlink()
    with pytest.raises(PowerclipError, match=r"lacks swap_obj\.json"):
        releases.read_sugarcrepe(tmp_path, "sugarcrepe")


def test_winoground_s_lines_name_images_without_a_suffix(tmp_path):
    picture(tmp_path / "images" / "ex_0_img_0.png", "red")
    picture(tmp_path / "images" / "ex_0_img_1.png", "blue")
    line = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "red", "caption_1": "blue"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(line) + "\n\n")
    assert run(releases.read_winoground(tmp_path, "w"))["w"] == {"text": 1.0, "image": 1.0, "group": 1.0}
    (tmp_path / "examples.jsonl").write_text('{"image_0": "ex_0_img_0"}\n')
    with pytest.raises(
        PowerclipError, match=r"examples\.jsonl does not have its release's format \(KeyError: 'image_1'\)"
    ):
        releases.read_winoground(tmp_path, "w")


def test_aro_cuts_images_to_the_box_and_averages_over_kinds(tmp_path):
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "1.png")
    box = {"image_path": "1.png", "bbox_x": 4, "bbox_y": 0, "bbox_w": 4, "bbox_h": 4}
    relations = [
        {**box, "true_caption": right, "false_caption": wrong, "relation_name": kind}
        for right, wrong, kind in [
            ("blue", "red", "on"),
            ("blue", "red", "on"),
            ("red", "blue", "behind"),
            ("red", "blue", "next to"),
        ]
    ]
    write_json(tmp_path / "visual_genome_relation.json", relations)
    attributes = [
        {**box, "true_caption": right, "false_caption": wrong, "attributes": pair}
        for right, wrong, pair, count in (("blue", "red", ["big", "old"], 25), ("red", "blue", ["red", "wet"], 24))
        for _ in range(count)
    ]
    write_json(tmp_path / "visual_genome_attribution.json", attributes)
    tasks = releases.read_aro(tmp_path, "aro")
    assert open_picture(tasks[0].items[0].image).size == (4, 4)
    found = run(tasks)
    relations = {"on": 1, "behind": 0, "next to": 0}
    # "next to" is symmetric
    assert found["aro-relation"] == pytest.approx(
        {"micro": 1 / 2, "macro": 1 / 2, "macro-all-kinds": 1 / 3, **relations}
    )
    # 24 items are too few
    assert found["aro-attribution"] == pytest.approx(
        {"micro": 25 / 49, "macro": 1, "macro-all-kinds": 1 / 2, "big_old": 1, "red_wet": 0}
    )


def test_the_symmetric_relations_are_those_of_the_release():
    assert len(releases.SYMMETRIC_RELATIONS) == 157
    kept = {"above", "behind", "in front of", "on top of", "to the left of", "under", "holding", "riding", "wearing"}
    assert not kept & releases.SYMMETRIC_RELATIONS


def test_valse_keeps_the_pairs_that_annotators_understood(tmp_path):
    picture(tmp_path / "images" / "coco" / "1.png", "red")
    rows = {
        str(votes): {"image_file": "1.png", "caption": "red", "foil": foil, "mturk": {"caption": votes}}
        for votes, foil in ((1, "red"), (2, "blue"), (3, "green"))
    }
    write_json(tmp_path / "data" / "existence.json", rows)
    (tmp_path / "data" / "._existence.json").write_bytes(b"macOS")
    (tmp_path / "__MACOSX" / "data").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "data" / "existence.json").write_bytes(b"macOS")
    found = run(releases.read_valse(tmp_path, "valse"))["valse"]
    assert found == {"micro": 1, "macro": 1, "existence": 1}


def test_karpathy_s_test_split(tmp_path):
    images = [
        {"filepath": "val2014", "filename": f"{colour}.png", "split": split, "sentences": [{"raw": colour}] * count}
        for colour, split, count in (("red", "test", 5), ("green", "train", 5), ("blue", "test", 7))
    ]
    write_json(tmp_path / "dataset_coco.json", {"images": images})
    for colour in ("red", "blue"):
        picture(tmp_path / "val2014" / f"{colour}.png", colour)
    five, every = releases.read_karpathy(tmp_path, "coco")
    assert [len(captions) for captions in five.captions] == [5, 5]
    assert [len(captions) for captions in every.captions] == [5, 7]
    assert set(run([five])["coco"].values()) == {1.0}
    (tmp_path / "val2014" / "blue.png").unlink()
    with pytest.raises(PowerclipError, match=r"1 of 2 images are not in .*blue\.png"):
        releases.read_karpathy(tmp_path, "coco")


def test_images_that_are_nowhere_are_named(tmp_path):
    write_json(tmp_path / "existence.json", {"0": {"image_file": "1.png", "mturk": {"caption": 3}}})
    with pytest.raises(PowerclipError, match=r"1\.png is not under"):
        releases.read_valse(tmp_path, "valse")
    (tmp_path / "existence.json").write_text("{")
    with pytest.raises(PowerclipError, match="cannot be read as JSON"):
        releases.read_valse(tmp_path, "valse")
