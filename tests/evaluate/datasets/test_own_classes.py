import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from powerclip import create_model
from powerclip.config import EvaluateConfig
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_model, evaluate_tasks, read_evaluation, task_again
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.datasets.own_classes import classes_from_folder
from powerclip.model import save
from powerclip.tasks import MultiLabel
from tests.support.colours import NAMES, ColourModel, preprocess, tokenizer
from tests.support.layouts import picture, webdataset
from tests.support.tars import npy
from tests.support.unreadable import unreadable


def put(folder):
    for name in NAMES:
        picture(folder / f"bright_{name}" / "deep" / "a.png", name)
        picture(folder / f"bright_{name}" / "b.PNG", name)
    picture(folder / "bright_red" / "c.png", "blue")
    picture(folder / "bright_red" / ".hidden" / "d.png", "blue")
    (folder / "README.md").write_text("notes")
    (folder / "bright_red" / "notes.txt").write_text("notes")
    return folder


def test_a_class_is_a_folder_of_images_called_as_the_folder(tmp_path):
    task = classes_from_folder(put(tmp_path))
    assert task.class_names == ["bright blue", "bright green", "bright red"]
    assert list(task.templates) == ["a photo of a {c}."]
    assert task.labels == [0, 0, 1, 1, 2, 2, 2]
    found = evaluate_tasks(ColourModel(), preprocess, tokenizer, [task])["classes"]
    assert found["acc@1"] == pytest.approx(6 / 7)  # the blue image among the red ones
    assert found["mean_per_class"] == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_links_are_followed_without_loops_and_a_folder_may_be_called_like_an_image(tmp_path):
    data = put(tmp_path / "data")
    picture(tmp_path / "more" / "c.png", "green")
    (tmp_path / "more" / "back").symlink_to(tmp_path / "more")
    picture(data / "bright_green" / "album.jpg" / "d.png", "green")
    for name, target in (("linked", tmp_path / "more"), ("up", data), ("twice", data / "bright_green" / "deep")):
        (data / "bright_green" / name).symlink_to(target)
    picture(data / "bright_green" / ".store" / "part" / "e.png", "green")
    (data / "bright_green" / "part").symlink_to(data / "bright_green" / ".store" / "part")  # hidden but for this link
    task = classes_from_folder(data)
    assert task.labels == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    found = [str(picture.path.relative_to(data / "bright_green")) for picture in task.images[2:7]]
    assert found == ["album.jpg/d.png", "b.PNG", "deep/a.png", "linked/c.png", "part/e.png"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    put(tmp_path / "data")
    (tmp_path / "data" / "lost+found").mkdir()  # of a disk, and root's alone
    unreadable(tmp_path / "data" / "lost+found", monkeypatch)
    assert len(classes_from_folder(tmp_path / "data").class_names) == 3
    with monkeypatch.context() as patch:
        unreadable(tmp_path / "data" / "bright_red" / "deep", patch)
        with pytest.raises(PowerclipError, match=r"bright_red/deep cannot be read \(Permission denied\); make it"):
            classes_from_folder(tmp_path / "data")
    (tmp_path / "data" / "bright_white").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PowerclipError, match=r"bright_white cannot be read \(No such file or directory\)"):
        classes_from_folder(tmp_path / "data")


def test_names_and_prompts_are_those_of_the_files(tmp_path):
    put(tmp_path)
    (tmp_path / "classnames.txt").write_text("red\ngreen\nblue\n")  # wrong on purpose: blue comes first
    (tmp_path / "zeroshot_classification_templates.txt").write_text("all {}\nso {c}\n")
    task = classes_from_folder(tmp_path)
    assert (task.class_names, task.templates) == (["red", "green", "blue"], ["all {c}", "so {c}"])
    assert evaluate_tasks(ColourModel(), preprocess, tokenizer, [task])["classes"]["acc@1"] == pytest.approx(3 / 7)


def test_word_net_ids_are_called_as_in_imagenet(tmp_path):
    for synset in ("n01440764", "n02102040"):
        picture(tmp_path / synset / "a.png", "red")
    assert classes_from_folder(tmp_path).class_names == ["tench", "English Springer Spaniel"]
    picture(tmp_path / "dog" / "a.png", "red")
    assert classes_from_folder(tmp_path).class_names == ["dog", "n01440764", "n02102040"]


def test_images_are_seen_as_in_training(tmp_path):
    put(tmp_path)
    turned = Image.new("RGB", (8, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    (tmp_path / "bright_red" / "e.jpg").write_bytes(buffer.getvalue())
    assert open_picture(classes_from_folder(tmp_path).images[-1], "pil").size == (4, 8)


def test_clip_benchmark_s_layout_is_read_under_any_name(tmp_path):
    webdataset(tmp_path / "a", [(name, str(i).encode()) for i, name in enumerate(NAMES)], "cls")
    task = classes_from_folder(tmp_path / "a")
    assert (task.name, task.class_names) == ("classes", list(NAMES))
    webdataset(tmp_path / "b", [("red", npy([1, 0, 1]))], "npy", kind="multilabel")
    assert isinstance(classes_from_folder(tmp_path / "b"), MultiLabel)
    webdataset(tmp_path / "c", [("red", b"a cat")], "txt", kind="retrieval")
    with pytest.raises(PowerclipError, match="c holds captions, not classes; prepare it and evaluate its pairs"):
        classes_from_folder(tmp_path / "c")


def test_a_class_without_images_is_said(tmp_path):
    put(tmp_path)
    (tmp_path / "bright_yellow").mkdir()
    with pytest.warns(UserWarning, match="no image in bright_yellow of .*: classes to choose from alone"):
        task = classes_from_folder(tmp_path)
    assert (len(task.class_names), max(task.labels)) == (4, 2)


def test_what_holds_no_classes_says_what_is_expected(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            PowerclipError, match="0 folders, with 0 images; expected a folder of images for each class"
        ):
            classes_from_folder(folder)
    put(tmp_path / "train")
    with pytest.raises(PowerclipError, match=r"holds the parts train; name one: --data .*train$"):
        classes_from_folder(tmp_path)
    (tmp_path / "train" / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(PowerclipError, match=r"classnames\.txt has 2 lines for 3 folders; write one for each"):
        classes_from_folder(tmp_path / "train")
    (tmp_path / "train" / "classnames.txt").write_text("red\nred\nblue\n")
    with pytest.raises(PowerclipError, match=r"several classes in .*train are called 'red'; name them in classnames"):
        classes_from_folder(tmp_path / "train")


def test_the_suite_is_named_after_the_folder(tmp_path):
    torch.manual_seed(0)
    model = save(create_model("tiny"), tmp_path / "model")
    put(tmp_path / "flowers")
    found = evaluate_model(str(model), EvaluateConfig(suite=("classes",), data=tmp_path / "flowers"))
    assert list(found.tasks) == ["classes:flowers"]
    origin = found.measured_on["classes:flowers"]
    assert (origin.suite, origin.n) == ("classes", 7)
    assert len(task_again("classes:flowers", origin, size=3).images) == 7
    with pytest.raises(PowerclipError, match="the classes suite needs data; add --data DIR"):
        evaluate_model(str(model), EvaluateConfig(suite=("classes",)))


def test_folders_called_by_numbers_are_in_the_order_of_numbers(tmp_path):
    for number in range(11):
        picture(tmp_path / str(number) / "a.png", "red")
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {number}" for number in range(11)))
    task = classes_from_folder(tmp_path)
    named = {
        image.path.parent.name: task.class_names[label] for image, label in zip(task.images, task.labels, strict=True)
    }
    assert named == {str(number): f"name {number}" for number in range(11)}


def test_an_interrupted_evaluation_does_not_continue_with_other_images_of_the_same_names(tmp_path):
    torch.manual_seed(0)
    model = save(create_model("tiny"), tmp_path / "model")
    for place, colours in (("a", NAMES), ("b", NAMES[::-1])):
        for name, colour in zip(NAMES, colours, strict=True):
            picture(tmp_path / place / "flowers" / name / "0.png", colour)
    config = EvaluateConfig(suite=("classes", "scenes"), size=2, output=tmp_path / "out")

    def stop(task):
        if task.startswith("scenes"):
            raise KeyboardInterrupt

    for place in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            evaluate_model(str(model), replace(config, data=tmp_path / place / "flowers"), progress=stop)
    found = read_evaluation(tmp_path / "out")
    assert [name.split("#")[0] for name in found.tasks] == ["classes:flowers"] * 2
    assert [origin.data for origin in found.measured_on.values()] == [str(tmp_path / x / "flowers") for x in "ab"]


def test_files_that_are_not_read_as_images_are_counted(tmp_path, monkeypatch):
    put(tmp_path)
    for name in ("x.tga", "y.TGA", "deep/z.jxl", "raw", ".hidden.cr2"):
        (tmp_path / "bright_red" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"files in .* not read as images: 2 \.tga, 1 \.jxl, 1 no extension$"):
        assert len(classes_from_folder(tmp_path).images) == 7
    for number in range(99):
        (tmp_path / "bright_red" / f"x.kind{number}").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"not read as images: .{300}\.\.\.$"):
        classes_from_folder(tmp_path)
    monkeypatch.setattr("powerclip.evaluate.datasets.images.rank", lambda: 1)
    classes_from_folder(tmp_path)
