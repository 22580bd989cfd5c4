import json

import pytest
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets import releases
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.datasets.release import Release
from powerclip.tasks import Retrieval
from tests.support.colours import ColourModel, preprocess, square, tokenizer
from tests.support.layouts import picture, write_json
from tests.support.unreadable import unreadable


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
        PowerclipError, match=r"examples\.jsonl is a list of 1 rows such as: image_0 \(str\); expected .* image_1"
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


def valse(folder, *, votes=(1, 2, 3)):
    """All pieces as released, each with pairs of an image in COCO's train2014 or val2014."""
    rows = {
        str(number): {
            "image_file": f"COCO_{split}_{number}.png",
            "caption": "red",
            "foil": foil,
            "mturk": {"caption": n},
        }
        for number, (n, foil, split) in enumerate(
            zip(votes, ("red", "blue", "green"), ("train", "val", "val"), strict=True)
        )
    }
    for piece in releases.VALSE:
        write_json(folder / "data" / f"{piece}.json", rows)
    picture(folder / "images" / "train2014" / "COCO_train_0.png", "red")
    for number in (1, 2):
        picture(folder / "images" / "val2014" / f"COCO_val_{number}.png", "red")


def test_valse_keeps_the_pairs_that_annotators_understood_from_any_folder_of_images(tmp_path):
    valse(tmp_path, votes=(3, 2, 1))
    (tmp_path / "data" / "._existence.json").write_bytes(b"macOS")
    (tmp_path / "__MACOSX" / "data").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "data" / "existence.json").write_bytes(b"macOS")
    write_json(tmp_path / "annotations" / "instances_val2014.json", {"images": []})  # not a piece
    found = run(releases.read_valse(tmp_path, "valse"))["valse"]
    # The first pair has the caption as its foil; the third is not valid.
    assert found == dict.fromkeys(("micro", "macro", *releases.VALSE), 1 / 2)
    (tmp_path / "data" / "plurals.json").unlink()
    with pytest.raises(PowerclipError, match=r"lacks plurals\.json of the release"):
        releases.read_valse(tmp_path, "valse")


def karpathy_file(folder, form):
    """One of the three forms of the same split: a red image with five captions, a blue one with seven."""
    counts = {"red": 5, "blue": 7}
    if form == "blip":
        rows = [{"image": f"val2014/{colour}.png", "caption": [colour] * count} for colour, count in counts.items()]
        write_json(folder / "coco_karpathy_test.json", rows)
    elif form == "coco":
        images = [{"id": number, "file_name": f"{colour}.png"} for number, colour in enumerate(counts)]
        rows = [{"image_id": i, "caption": colour} for i, colour in enumerate(counts) for _ in range(counts[colour])]
        write_json(folder / "coco_test_karpathy.json", {"images": images, "annotations": rows})
    else:
        rows = [
            {"filepath": "val2014", "filename": f"{colour}.png", "split": split, "sentences": [{"raw": colour}] * count}
            for colour, split, count in (("red", "test", 5), ("green", "train", 5), ("blue", "test", 7))
        ]
        write_json(folder / "dataset_coco.json", {"images": rows})
        write_json(folder / "dataset_flickr8k.json", {"images": []})  # comes in the same archive


@pytest.mark.parametrize("images", ["val2014", "flat"])
@pytest.mark.parametrize("form", ["karpathy", "blip", "coco"])
def test_karpathy_s_test_split_in_each_form(form, images, tmp_path):
    karpathy_file(tmp_path, form)
    for colour in ("red", "blue"):
        picture(tmp_path / images / f"{colour}.png", colour)
    every, five = releases.read_karpathy(tmp_path, "mscoco_captions")
    assert [len(captions) for captions in every.captions] == [5, 7]
    assert [len(captions) for captions in five.captions] == [5, 5]
    assert set(run([every])["mscoco_captions"].values()) == {1.0}
    (tmp_path / images / "blue.png").unlink()
    with pytest.raises(PowerclipError, match=r"1 of 2 images are not under .*blue\.png"):
        releases.read_karpathy(tmp_path, "mscoco_captions")


def test_clip_benchmark_s_lines_of_flickr(tmp_path):
    lines = "image,caption\n1.jpg,a red, bright thing\n1.jpg,red\n2.jpg,blue\n"
    (tmp_path / "flickr8k_test_karpathy.txt").write_text(lines)
    for name, colour in (("1.jpg", "red"), ("2.jpg", "blue")):
        picture(tmp_path / "Images" / name, colour)
    (task,) = releases.read_karpathy(tmp_path, "flickr8k")
    assert task.captions == [["a red, bright thing", "red"], ["blue"]]
    (tmp_path / "flickr8k_test_karpathy.txt").write_text("image,caption\nno image\n")
    with pytest.raises(PowerclipError, match=r"line 2 of .*karpathy\.txt is 'no image'; expected IMAGE\.jpg,CAPTION"):
        releases.read_karpathy(tmp_path, "flickr8k")
    (tmp_path / "flickr8k_test_karpathy.txt").write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(PowerclipError, match=r"karpathy\.txt is not UTF-8 .*; save it as UTF-8"):
        releases.read_karpathy(tmp_path, "flickr8k")
    (tmp_path / "flickr8k_test_karpathy.txt").unlink()
    with pytest.raises(PowerclipError, match=r"must hold one of dataset_\*\.json, .*; found: none"):
        releases.read_karpathy(tmp_path, "flickr8k")


def test_captions_that_the_tokenizer_cannot_tell_apart_are_the_same():
    images, captions = [square("red"), square("red")], [["red", "a RED one"], ["red again"]]

    def by_name(texts):
        return tokenizer([text.lower() for text in texts])

    task = Retrieval(name="r", images=images, captions=captions)
    found = evaluate_tasks(ColourModel(), preprocess, by_name, [task], batch_size=2)["r"]
    assert found["i2t_R@1"] == found["t2i_R@1"] == 1


def test_images_that_are_nowhere_or_at_two_places_are_named(tmp_path):
    valse(tmp_path)
    picture(tmp_path / "copy" / "val2014" / "COCO_val_1.png", "red")
    with pytest.raises(PowerclipError, match=r"COCO_val_1\.png is at .*copy.* and .*images.*; keep one of them"):
        releases.read_valse(tmp_path, "valse")
    (tmp_path / "copy" / "val2014" / "COCO_val_1.png").unlink()
    (tmp_path / "images" / "val2014" / "COCO_val_1.png").unlink()
    with pytest.raises(PowerclipError, match=r"1 of 2 images are not under .*: COCO_val_1\.png; add them"):
        releases.read_valse(tmp_path, "valse")
    (tmp_path / "data" / "existence.json").write_text("{")
    with pytest.raises(PowerclipError, match=r"existence\.json cannot be read"):
        releases.read_valse(tmp_path, "valse")


def test_another_release_s_files_of_the_same_names_are_named(tmp_path):
    row = {"id": 1, "filename": "1.png", "caption": "red", "caption2": "a red", "negative_caption": "blue"}
    for kind in releases.SUGARCREPE:
        write_json(tmp_path / f"{kind}.json", [row])  # SugarCrepe++'s form
    with pytest.raises(
        PowerclipError,
        match=r"add_att\.json is a list of 1 rows such as: id \(int\), filename .*, caption2 .*; expected an object of "
        r"rows with filename, caption, negative_caption; is it another release's file\?",
    ):
        releases.read_sugarcrepe(tmp_path, "sugarcrepe")
    write_json(tmp_path / "add_att.json", {"0": {**row, "caption": None}})
    with pytest.raises(PowerclipError, match=r"add_att\.json is an object of 1 rows .*caption \(NoneType\)"):
        releases.read_sugarcrepe(tmp_path, "sugarcrepe")


def test_a_folder_of_a_release_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    picture(tmp_path / "images" / "a.png", "red")
    unreadable(tmp_path / "images", monkeypatch)
    with pytest.raises(PowerclipError, match=r"images cannot be read \(Permission denied\); make it readable"):
        Release(tmp_path).files("*.png")


def test_folders_that_are_linked_are_read_once(tmp_path):
    valse(tmp_path / "place")
    release = tmp_path / "valse"
    release.mkdir()
    for name in ("data", "images"):
        (release / name).symlink_to(tmp_path / "place" / name)
    (tmp_path / "place" / "images" / "again").symlink_to(tmp_path / "place")
    assert run(releases.read_valse(release, "valse"))["valse"]["micro"] == 1


def test_a_caption_is_a_text_or_a_list_and_an_image_may_have_several_rows(tmp_path):
    for colour in ("red", "blue"):
        picture(tmp_path / f"{colour}.png", colour)
    rows = [("red.png", "a red one"), ("blue.png", ["blue", "a blue one"]), ("red.png", ["red"])]
    file = tmp_path / "flickr30k_test.json"
    write_json(file, [{"image": image, "caption": caption} for image, caption in rows])
    (task,) = releases.read_karpathy(tmp_path, "flickr30k")
    assert task.captions == [["a red one", "red"], ["blue", "a blue one"]]
    write_json(file, [{"image": "red.png", "caption": {"raw": "red"}}])
    with pytest.raises(
        PowerclipError, match=r"flickr30k_test\.json does not have .*a text or a list of texts expected"
    ):
        releases.read_karpathy(tmp_path, "flickr30k")
    file.unlink()
    sentences = [{"raw": "red"}]
    rows = [{"filename": "red.png", "split": "test", "sentences": sentences}] * 2
    write_json(tmp_path / "dataset_flickr30k.json", {"images": rows})
    (task,) = releases.read_karpathy(tmp_path, "flickr30k")
    assert task.captions == [["red", "red"]]


def test_a_list_of_flickr_without_names_of_columns_is_complete(tmp_path):
    (tmp_path / "flickr30k_test_karpathy.txt").write_text("1.jpg,red\n1.jpg,a red one\n")
    picture(tmp_path / "1.jpg", "red")
    (task,) = releases.read_karpathy(tmp_path, "flickr30k")
    assert task.captions == [["red", "a red one"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_w": 0}, "a finite box of 1 x 1 or more expected"),
        ({"bbox_h": -2}, "a finite box of 1 x 1 or more expected"),
        ({"bbox_x": float("inf")}, "OverflowError"),
        ({"bbox_y": float("nan")}, "ValueError"),
        ({"attributes": [1, 2]}, "a text or a list of texts expected"),
    ],
)
def test_rows_of_aro_that_cannot_be_are_named(change, message, tmp_path):
    picture(tmp_path / "1.png", "red")
    row = {"image_path": "1.png", "bbox_x": 0, "bbox_y": 0, "bbox_w": 1, "bbox_h": 1, "relation_name": "on"}
    row |= {"true_caption": "a", "false_caption": "b", "attributes": ["a", "b"]}
    write_json(tmp_path / "visual_genome_relation.json", [row])
    write_json(tmp_path / "visual_genome_attribution.json", [row | change])
    with pytest.raises(PowerclipError, match=rf"visual_genome_attribution\.json does not have .*{message}"):
        releases.read_aro(tmp_path, "aro")


def test_thousands_of_images_of_one_name_are_found_by_their_folders(tmp_path, monkeypatch):
    release = Release(tmp_path)
    release._index = {"0.png": [tmp_path / kind / str(i) / "0.png" for kind in "ab" for i in range(10**4)]}
    looked_at = []
    monkeypatch.setattr(
        "powerclip.evaluate.datasets.release.sorted", lambda x, key: _seen(x, key, looked_at), raising=False
    )
    for exact in (True, False):
        assert release.find("b/77/0.png", exact=exact) == tmp_path / "b" / "77" / "0.png"
    assert release.find("b/none/0.png", exact=True) is None
    assert len(looked_at) <= 4


def _seen(values, key, looked_at):
    values = list(values)
    looked_at += values
    return sorted(values, key=key)
