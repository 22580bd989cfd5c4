import numpy as np
import pytest
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.segmentation import SETS, read_segmentation
from powerclip.tasks import IGNORED
from tests.support.layouts import picture

PLACES = {
    "voc20": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "ImageSets/Segmentation/val.txt"),
    "voc21": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "ImageSets/Segmentation/val.txt"),
    "context59": ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png", "ImageSets/SegmentationContext/val.txt"),
    "context60": ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png", "ImageSets/SegmentationContext/val.txt"),
    "coco_object": ("images/val2017/{}.jpg", "annotations/val2017/{}_instanceTrainIds.png", None),
    "coco_stuff": ("images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png", None),
    "ade20k": ("images/validation/{}.jpg", "annotations/validation/{}.png", None),
    "city_scapes": ("leftImg8bit/val/lindau/{}_leftImg8bit.png", "gtFine/val/lindau/{}_gtFine_labelTrainIds.png", None),
}


def write(folder, name, values=(0, 1, 2, 255)):
    image, label, listed = PLACES[name]
    for stem in ("b", "a", "train_only"):
        picture(folder / image.format(stem), "red")
        place = label.format(stem)
        if stem == "train_only" and listed is None:
            place = place.replace("val2017", "train2017").replace("validation", "training").replace("/val/", "/train/")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([values], np.uint8)).save(folder / place)
    if listed:
        (folder / listed).parent.mkdir(parents=True)
        (folder / listed).write_text("b\na\n")
    lines = [f"class {c}, thing {c}" if c == 1 else f"class {c}" for c in range(SETS[name].classes)]
    (folder / f"cls_{name}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("above", ["data", "val/validation/val2017"])
@pytest.mark.parametrize("name", SETS)
def test_each_set_has_its_images_labels_and_names(name, above, tmp_path):
    write(tmp_path / above, name)
    (task,) = read_segmentation(tmp_path / above, name)
    stems = {image.path.name.split("_left")[0].removesuffix(".jpg") for image in task.images}
    assert stems == {"a", "b"}
    assert [image.path.name[0] for image in task.images] == [truth.path.name[0] for truth in task.truths]
    without_background = name in ("voc20", "context59", "ade20k")
    expected = [IGNORED, 0, 1, IGNORED] if without_background else [0, 1, 2, IGNORED]
    assert task.truths[0]().tolist() == [expected]
    assert list(task.class_names[1]) == ["class 1", "thing 1"]
    assert len(task.class_names) == SETS[name].classes


def test_the_settings_are_those_of_the_release():
    scales = {name: form.logit_scale for name, form in SETS.items() if form.logit_scale != 40}
    assert scales == {"voc21": 65, "context60": 50, "coco_object": 50}
    assert {name for name, form in SETS.items() if form.least_probability == 0.1} == {
        "voc21",
        "context60",
        "coco_object",
    }
    assert {name: form.least_area for name, form in SETS.items() if form.least_area} == {"voc21": 0.1}
    sides = {name: form.short_side for name, form in SETS.items() if form.short_side != 336}
    assert sides == {"coco_stuff": 448, "city_scapes": 560}


@pytest.mark.parametrize("file", ["cls_voc20.txt", "ImageSets/Segmentation/val.txt"])
def test_lists_that_are_not_utf_8_are_named(file, tmp_path):
    write(tmp_path, "voc20")
    (tmp_path / file).write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(PowerclipError, match=rf"{file} is not UTF-8 \(.* byte 0xe9 .*\); save it as UTF-8"):
        read_segmentation(tmp_path, "voc20")


def test_a_byte_order_mark_is_not_part_of_the_first_class(tmp_path):
    write(tmp_path, "voc20")
    names = tmp_path / "cls_voc20.txt"
    names.write_text(names.read_text(), encoding="utf-8-sig")
    (task,) = read_segmentation(tmp_path, "voc20")
    assert task.class_names[0] == ["class 0"]


def test_other_forms_are_named(tmp_path):
    write(tmp_path, "voc20", values=(0, 21))
    (task,) = read_segmentation(tmp_path, "voc20")
    with pytest.raises(
        PowerclipError, match=r"b\.png has shape \(1, 2\) and labels up to 255; expected \(H, W\) and 20"
    ):
        task.truths[0]()
    (tmp_path / "SegmentationClass" / "b.png").write_bytes(b"no image")
    with pytest.raises(PowerclipError, match=r"b\.png cannot be read"):
        task.truths[0]()
    (tmp_path / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(PowerclipError, match=r"lacks SegmentationClass/b\.png of the release"):
        read_segmentation(tmp_path, "voc20")
    (tmp_path / "cls_voc20.txt").write_text("one\ntwo\n")
    with pytest.raises(PowerclipError, match=r"cls_voc20\.txt has 2 lines; expected the names of 20 classes"):
        read_segmentation(tmp_path, "voc20")
    (tmp_path / "cls_ade20k.txt").write_text("\n".join(f"c{i}" for i in range(150)))
    with pytest.raises(PowerclipError, match=r"holds no labels \*\.png in a folder validation"):
        read_segmentation(tmp_path, "ade20k")
