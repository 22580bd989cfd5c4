import pytest

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.imagenet import read_imagenet, read_objectnet
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.datasets.prompts import imagenet_classes, imagenet_label_of_synset, imagenet_templates
from tests.support.layouts import picture, write_json


def test_the_published_names_and_prompts():
    assert (len(imagenet_classes()), len(imagenet_templates()), len(imagenet_label_of_synset())) == (1000, 80, 1000)
    assert imagenet_classes()[0] == "tench"
    assert imagenet_label_of_synset()["n01440764"] == 0
    assert imagenet_templates()[0] == "a bad photo of a {c}."


def test_numeric_folders_are_numbers(tmp_path):
    for label in range(12):
        picture(tmp_path / "imagenetv2-matched-frequency-format-val" / str(label) / "x.png", "red")
    picture(tmp_path / "imagenetv2-matched-frequency-format-val" / "2" / "y.png", "blue")
    (task,) = read_imagenet(tmp_path, "v2", classes=12)
    assert list(task.labels) == [0, 1, 2, 2, *range(3, 12)]
    assert list(task.class_names) == imagenet_classes()[:12]
    assert open_picture(task.images[3]).getpixel((0, 0)) == (0, 0, 255)


def test_class_folders_are_the_mask(tmp_path):
    synsets = {label: synset for synset, label in imagenet_label_of_synset().items()}
    for label in (999, 6, 207):
        picture(tmp_path / synsets[label] / "a.png", "red")
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / synsets[6] / "._a.png").write_bytes(b"macOS")
    (tmp_path / "__MACOSX").mkdir()
    (task,) = read_imagenet(tmp_path, "imagenet-a", classes=3)
    assert list(task.class_names) == [imagenet_classes()[label] for label in (6, 207, 999)]
    assert list(task.labels) == [0, 1, 2]
    with pytest.raises(PowerclipError, match="has 3 class folders; the release has 200"):
        read_imagenet(tmp_path, "imagenet-a", classes=200)


def test_images_of_every_kind_are_read_and_what_else_is_there_is_named(tmp_path):
    suffixes = ("jpg", "PNG", "gif", "bmp", "tif", "jfif")
    for number, suffix in enumerate(suffixes):
        (tmp_path / "0").mkdir(exist_ok=True)
        (tmp_path / "0" / f"{number}.{suffix}").write_bytes(b"")
    (tmp_path / "1" / "more").mkdir(parents=True)
    (tmp_path / "1" / "a.svg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"not read as images: 1 \.svg, 1 folder$"):
        (task,) = read_imagenet(tmp_path, "v2", classes=2)
    assert [image.path.name for image in task.images] == [f"{n}.{suffix}" for n, suffix in enumerate(suffixes)]


def test_prompts_in_the_folder_have_no_effect_and_that_is_said(tmp_path):
    picture(tmp_path / "val" / "0" / "x.png", "red")
    (tmp_path / "classnames.txt").write_text("n01440764 tench\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    with pytest.warns(
        UserWarning, match=r"^classnames.txt and zeroshot_classification_templates.txt of .* have no effect"
    ):
        (task,) = read_imagenet(tmp_path, "imagenet1k", classes=1)
    assert (task.class_names, task.templates) == (["tench"], imagenet_templates())


V2 = (
    "imagenetv2-matched-frequency-format-val",
    "imagenetv2-threshold0.7-format-val",
    "imagenetv2-top-images-format-val",
)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (V2, V2[0]),
        (("train", "val"), "val"),
        (("__MACOSX", "photos"), "photos"),
        (
            V2[1:],
            "has classes in imagenetv2-threshold0.7-format-val, imagenetv2-top-images-format-val; expected one folder",
        ),
        (V2[2:], "has classes in imagenetv2-top-images-format-val; expected one folder"),
        (("a", "b"), "has classes in a, b; expected one folder, or val"),
    ],
)
def test_one_of_several_releases_is_evaluated_or_none(folders, expected, tmp_path):
    for folder in folders:
        for label in range(3):
            picture(tmp_path / folder / str(label) / "x.png", "red")
    if expected in folders:
        (task,) = read_imagenet(tmp_path, "imagenet", classes=3)
        assert {image.path.parents[1].name for image in task.images} == {expected}
        return
    with pytest.raises(PowerclipError, match=expected):
        read_imagenet(tmp_path, "imagenet", classes=3)


def test_a_folder_without_classes_says_so(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(PowerclipError, match="no class folders named by WordNet ids"):
        read_imagenet(tmp_path, "imagenet-a", classes=200)


def test_objectnet_keeps_the_classes_that_imagenet_has(tmp_path):
    root = tmp_path / "objectnet-1.0"
    (tmp_path / "__MACOSX" / "objectnet-1.0" / "images").mkdir(parents=True)
    for folder, colour in (("air_freshener", "red"), ("alarm_clock", "green"), ("backpack", "blue")):
        picture(root / "images" / folder / "1.png", colour)
    labels = {"air_freshener": "Air freshener", "alarm_clock": "Alarm clock", "backpack": "Backpack"}
    write_json(root / "mappings" / "folder_to_objectnet_label.json", labels)
    write_json(root / "mappings" / "objectnet_to_imagenet_1k.json", {"Backpack": "backpack", "Alarm clock": "clock"})
    (task,) = read_objectnet(tmp_path, "objectnet")
    assert list(task.class_names) == ["alarm clock", "backpack"]
    assert [open_picture(p).getpixel((0, 0)).index(255) for p in task.images] == [1, 2]
    (root / "images" / "backpack" / "1.png").unlink()
    (root / "images" / "backpack").rmdir()
    with pytest.raises(PowerclipError, match="lacks 1 of 2 class folders: backpack"):
        read_objectnet(tmp_path, "objectnet")
