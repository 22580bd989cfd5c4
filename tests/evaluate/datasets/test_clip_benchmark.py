import pytest

from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets.clip_benchmark import is_webdataset, read_webdataset
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.datasets.prompts import benchmark_prompts
from powerclip.tasks import Classification, MultiLabel, Retrieval
from tests.support.colours import NAMES, ColourModel, png, preprocess, tokenizer
from tests.support.layouts import webdataset
from tests.support.tars import npy, write_tar


def templates_of(folder):
    return folder / "zeroshot_classification_templates.txt"


def run(tasks):
    return evaluate_tasks(ColourModel(), preprocess, tokenizer, tasks, batch_size=2)


def test_classification_is_read_from_all_shards_in_order(tmp_path):
    samples = [("red", b"0"), ("green", b"\xef\xbb\xbf1"), ("blue", b"1\n")]
    folder = webdataset(tmp_path, samples, "cls", templates=("a {c}", "some {c} thing"))
    assert is_webdataset(folder)
    (task,) = read_webdataset(folder, "colours")
    assert isinstance(task, Classification)
    assert (task.labels, task.class_names, task.templates) == ([0, 1, 1], list(NAMES), ["a {c}", "some {c} thing"])
    assert [open_picture(p).getpixel((0, 0)).index(255) for p in task.images] == [0, 1, 2]
    assert run([task])["colours"] == pytest.approx({"acc@1": 2 / 3, "mean_per_class": 3 / 4})


@pytest.mark.parametrize("label", [b"-1", b"1.0", b"red", b"\xff", b""])
def test_labels_that_are_not_class_numbers_are_named(label, tmp_path):
    folder = webdataset(tmp_path, [("red", b"0"), ("green", label)], "cls")
    with pytest.raises(
        PowerclipError, match=r"KEY\.cls of sample s01 in .*0\.tar is .*; expected a number from 0 to 2"
    ):
        read_webdataset(folder, "colours")


def test_texts_that_are_not_utf_8_are_named(tmp_path):
    folder = webdataset(tmp_path / "a", [("red", b"red"), ("green", b"caf\xe9")], "txt", kind="retrieval")
    with pytest.raises(PowerclipError, match=r"KEY\.txt of sample s01 in .*0\.tar is not UTF-8 .*; save it as UTF-8"):
        read_webdataset(folder, "colours")
    folder = webdataset(tmp_path / "b", [("red", b"0")], "cls")
    (folder / "classnames.txt").write_bytes(b"red\ncaf\xe9\n")
    with pytest.raises(PowerclipError, match=r"classnames\.txt is not UTF-8 .*; save it as UTF-8"):
        read_webdataset(folder, "colours")


def test_prompts_in_the_notation_of_clip_and_with_other_braces(tmp_path):
    folder = webdataset(tmp_path, [("red", b"0"), ("green", b"1")], "cls", templates=("a {}.", "{ {c} } {x}"))
    (task,) = read_webdataset(folder, "colours")
    assert task.templates == ["a {c}.", "{ {c} } {x}"]
    assert run([task])["colours"]["acc@1"] == 1


def test_multilabel_targets_are_arrays(tmp_path):
    samples = [("red", npy([1, 0, 1])), ("green", npy([0, 1, 0])), ("blue", npy([0, 0, 1]))]
    (task,) = read_webdataset(webdataset(tmp_path, samples, "npy", kind="multilabel"), "voc")
    assert isinstance(task, MultiLabel)
    assert task.targets == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    # Class blue: its image first, then red and green tie with a score of 0, where the wrong one counts first.
    assert run([task])["voc"]["mAP"] == pytest.approx((1 + 1 + (1 / 1 + 2 / 3) / 2) / 3)


def test_retrieval_has_all_captions_and_beside_it_five(tmp_path):
    many = "\n".join(["red one", "red two", "", "red three", "red four", "red five", "red six"])
    samples = [("red", many.encode()), ("blue", b"blue\n")]
    every, five = read_webdataset(webdataset(tmp_path, samples, "txt", kind="retrieval"), "coco")
    assert isinstance(five, Retrieval)
    assert (every.name, [len(c) for c in every.captions]) == ("coco", [6, 1])
    assert (five.name, [len(c) for c in five.captions]) == ("coco-five-captions", [5, 1])
    model = ColourModel()
    results = evaluate_tasks(model, preprocess, tokenizer, [every, five], batch_size=99)
    assert set(results["coco"].values()) == {1.0}
    assert model.sizes == [2, 7]  # images and captions once for both


def test_names_and_prompts_that_a_folder_lacks_are_clip_benchmark_s(tmp_path):
    folder = webdataset(tmp_path, [("red", b"0")], "cls")
    (folder / "classnames.txt").unlink()
    (folder / "zeroshot_classification_templates.txt").unlink()
    (task,) = read_webdataset(folder, "pets")
    classes, templates = benchmark_prompts("pets")
    assert (task.class_names, task.templates) == (classes, templates)
    assert len(classes) == 37
    with pytest.raises(PowerclipError, match=r"lacks classnames\.txt, and clip_benchmark does not know no-such-set"):
        read_webdataset(folder, "no-such-set")
    with pytest.raises(
        PowerclipError, match=r"lacks classnames\.txt, and there are two orders of Caltech-101's classes"
    ):
        read_webdataset(folder, "caltech101")


@pytest.mark.parametrize("target", [npy([1, 0]), npy([1, 0, 2]), npy([1, 0, -1]), b"not an array"])
def test_targets_outside_the_classes_are_named(target, tmp_path):
    folder = webdataset(tmp_path, [("red", npy([1, 0, 1])), ("green", target)], "npy", kind="multilabel")
    with pytest.raises(PowerclipError, match=r"KEY\.npy of sample s01 in .*0\.tar (has shape|cannot be read)"):
        read_webdataset(folder, "voc2007_multilabel")


def test_an_image_without_a_caption_is_named(tmp_path):
    folder = webdataset(tmp_path, [("red", b"red"), ("blue", b" \n")], "txt", kind="retrieval")
    with pytest.raises(PowerclipError, match=r"coco has no caption for 0\.tar s01"):
        read_webdataset(folder, "coco")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "test" / "1.tar").unlink(), "lacks 1.tar of its 2 shards"),
        (lambda f: (f / "test" / "nshards.txt").write_text("many"), "says 'many'; expected the number of shards"),
        (lambda f: (f / "test" / "nshards.txt").write_text("²"), "says '²'; expected the number of shards"),
        (lambda f: (f / "test" / "nshards.txt").write_text("9" * 5000), "says '9{40}'; expected the number of shards"),
        (lambda f: (f / "test" / "nshards.txt").write_text("3000000000"), "lacks 2.tar of its 3000000000 shards"),
        (lambda f: (f / "test" / "nshards.txt").write_text(""), "is empty"),
        (lambda f: (f / "dataset_type.txt").write_text("video"), "says 'video'; expected classification"),
        (lambda f: (f / "dataset_type.txt").write_text("retrieval"), "has cls, png; expected KEY.txt"),
        (
            lambda f: (f / "classnames.txt").write_text("red\n \ngreen\nblue\n"),
            "line 2 of .*classnames.txt is empty; write a class name in each line",
        ),
        (lambda f: templates_of(f).write_text("a photo."), "has the prompt 'a photo.' without a place for the class"),
        (
            lambda f: (f / "classnames.txt").write_text("red\ngreen"),
            "is '2'; expected a number from 0 to 1, as there are 2",
        ),
    ],
)
def test_a_folder_of_another_form_says_what_is_wrong(change, message, tmp_path):
    folder = webdataset(tmp_path, [("red", b"0"), ("green", b"1"), ("blue", b"2")], "cls")
    change(folder)
    with pytest.raises(PowerclipError, match=message):
        read_webdataset(folder, "colours")


def test_an_image_that_cannot_be_read_stops_the_evaluation(tmp_path):
    folder = webdataset(tmp_path, [("red", b"0"), ("green", b"1")], "cls")
    data = (folder / "test" / "0.tar").read_bytes().replace(b"\x89PNG", b"gone")
    (folder / "test" / "0.tar").write_bytes(data)
    with pytest.raises(PowerclipError, match="cannot be read .*image format not read"):
        run(read_webdataset(folder, "colours"))


def test_second_files_of_a_name_are_counted(tmp_path):
    folder = webdataset(tmp_path, [("red", b"0"), ("green", b"1")], "cls")
    members = [("a.png", png("red")), ("a.cls", b"0"), ("a.png", png("green")), ("a.cls", b"1")]
    write_tar(folder / "test" / "0.tar", members)
    with pytest.warns(UserWarning, match=r"test that are not read: .*second file of a name"):
        (task,) = read_webdataset(folder, "colours")
    assert task.labels == [0]
