import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from powerclip.errors import PowerclipError, RunFailedError
from powerclip.evaluate.encode import Encoder
from powerclip.explore import search
from powerclip.explore.search import ImageIndex
from powerclip.explore.subject import Subject
from tests.support.colours import NAMES, ColourModel, preprocess, tokenizer
from tests.support.images import one_colour
from tests.support.unreadable import unreadable


@pytest.fixture
def subject():
    model = ColourModel().eval()
    encoder = Encoder(model, preprocess, tokenizer, device="cpu", batch_size=2, pixels="training")
    return Subject(name="colours", encoder=encoder, aligned=False, pairs=[])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "images" / f"{name}.png").write_bytes(one_colour(name, size=(300, 20)))
    (tmp_path / "images" / "deep" / "Red.JPG").write_bytes(one_colour("red", "JPEG"))
    (tmp_path / "images" / ".hidden.png").write_bytes(one_colour("red"))
    (tmp_path / "images" / "notes.txt").write_text("red")
    return tmp_path / "images"


@pytest.fixture
def index(folder, subject):
    return ImageIndex.of(folder, subject, indexes=folder.parent / "indexes")


def states(index, subject):
    return [str(state) for state in index.update(subject)]


def names(hits):
    return [hit.name for hit in hits]


def test_images_are_found_by_text_and_by_an_image(index, subject):
    assert states(index, subject) == [f"{n} of 4 images are indexed" for n in (0, 2, 4)]
    assert names(index.search(subject.vector_of("something green"), count=1)) == ["green.png"]
    hits = index.search(b"red.png", count=3)
    assert sorted(names(hits)[:2]) == ["deep/Red.JPG", "red.png"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 1.0, 0.0], abs=0.01)
    assert next(hit for hit in hits if hit.name == "red.png").thumbnail.size == (256, 17)
    with pytest.raises(PowerclipError, match="no longer there"):
        index.search(b"gone.png", count=1)


def test_links_are_followed_without_loops(index, subject, folder, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "more.png").write_bytes(one_colour("green"))
    for name, target in (("linked", tmp_path / "album"), ("up", folder), ("also", folder / "deep")):
        (folder / name).symlink_to(target)
    assert states(index, subject)[-1] == "5 of 5 images are indexed"
    assert index.search(b"linked/more.png", count=1)[0].score == pytest.approx(1.0)


def test_only_what_is_new_or_changed_is_read(index, subject, folder, monkeypatch):
    states(index, subject)
    read = []
    real = search.open_image
    monkeypatch.setattr(search, "open_image", lambda path: read.append(path.name) or real(path))
    assert states(index, subject) == ["4 of 4 images are indexed"]
    assert read == []
    (folder / "green.png").write_bytes(one_colour("blue", size=(9, 9)))
    (folder / "blue.png").unlink()
    (folder / "new.png").write_bytes(one_colour("green"))
    assert states(index, subject)[-1] == "4 of 4 images are indexed"
    assert sorted(read) == ["green.png", "new.png"]
    assert names(index.search(subject.vector_of("green"), count=1)) == ["new.png"]
    assert names(index.search(subject.vector_of("blue"), count=1)) == ["green.png"]


@pytest.mark.parametrize("away", ["renamed", "a file", "unmounted", "unreadable"])
def test_the_index_of_a_folder_that_is_away_is_kept(away, index, subject, folder, monkeypatch):
    states(index, subject)
    if away == "unreadable":
        unreadable(folder, monkeypatch)
    else:
        folder.rename(folder.with_name("elsewhere"))
    if away == "a file":
        folder.write_text("")
    if away == "unmounted":
        folder.mkdir()
    with pytest.raises(
        RunFailedError, match=r"images (cannot be read \(.*\); the index is kept|has no image any more)"
    ):
        states(index, subject)
    assert len(index.search(subject.vector_of("red"), count=9)) == 4


def test_what_is_below_a_folder_that_cannot_be_read_is_kept(index, subject, folder, monkeypatch):
    states(index, subject)
    (folder / "green.png").unlink()
    with monkeypatch.context() as patch:
        unreadable(folder / "deep", patch)
        assert states(index, subject) == ["3 of 3 images are indexed; cannot be read, so kept as before: deep"]
    (folder / "deep" / "Red.JPG").unlink()
    assert states(index, subject) == ["2 of 2 images are indexed"]


def test_an_image_that_could_not_be_read_is_tried_again(index, subject, folder, monkeypatch):
    def away(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(search, "open_image", away)
        assert states(index, subject)[-1].startswith(
            "0 of 4 images are indexed; skipped: 4 Permission denied (blue.png"
        )
    assert states(index, subject)[-1] == "4 of 4 images are indexed"


def test_what_another_process_does_to_the_file_is_noticed(index, subject, folder):
    states(index, subject)
    index.search(subject.vector_of("red"), count=9)
    other = ImageIndex.of(folder, subject, indexes=index.file.parent)
    (folder / "blue.png").unlink()
    states(other, subject)
    assert len(index.search(subject.vector_of("red"), count=9)) == 3
    index.file.unlink()
    with pytest.raises(PowerclipError, match="no image is indexed yet"):
        index.search(subject.vector_of("red"), count=9)


def test_what_was_done_before_a_stop_is_kept(index, subject, folder):
    steps = index.update(subject)
    next(steps), next(steps)
    steps.close()  # as when the process ends between two batches
    again = ImageIndex.of(folder, subject, indexes=index.file.parent)
    encoded = subject.encoder.model.sizes[:]
    assert states(again, subject) == ["2 of 4 images are indexed", "4 of 4 images are indexed"]
    assert subject.encoder.model.sizes[len(encoded) :] == [2]


def test_every_step_may_be_taken_in_another_thread(index, subject):
    steps, found = index.update(subject), []
    for _ in range(3):
        with ThreadPoolExecutor(1) as thread:
            found.append(str(thread.submit(next, steps).result()))
    assert found == [f"{n} of 4 images are indexed" for n in (0, 2, 4)]


def test_images_that_cannot_be_used_are_counted_with_their_reason(index, subject, folder, monkeypatch):
    (folder / "broken.png").write_bytes(one_colour("red")[:40])
    (folder / "words.png").write_text("words")
    monkeypatch.setattr("powerclip.explore.subject.MAX_MEMBER_BYTES", 2**20)
    (folder / "huge.bmp").write_bytes(b"BM" + bytes(2**20))
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    (folder / "drawing.png").write_text("<svg/>")
    assert states(index, subject)[-1] == (
        "4 of 8 images are indexed; skipped: 2 image format not read (drawing.png, ...), "
        "1 corrupt image (broken.png), 1 file of more than 1 MiB (huge.bmp)"
    )
    assert len(index.search(subject.vector_of("red"), count=9)) == 4


def test_names_in_any_bytes_are_kept(index, subject, folder):
    (folder / os.fsdecode(b"\xff<b>.png")).write_bytes(one_colour("red"))
    states(index, subject)
    assert "\ufffd<b>.png" in names(index.search(subject.vector_of("red"), count=3))
    assert index.search(b"\xff<b>.png", count=1)[0].score == pytest.approx(1.0)


def test_another_model_or_folder_has_another_index(index, subject, folder, tmp_path):
    other = ColourModel().eval()
    other.register_buffer("more", torch.zeros(1))
    changed = Subject(
        name="other",
        encoder=Encoder(other, preprocess, tokenizer, device="cpu", batch_size=2),
        aligned=False,
        pairs=[],
    )
    files = {
        ImageIndex.of(place, one, indexes=tmp_path).file.name
        for place in (folder, folder / "deep")
        for one in (subject, changed)
    }
    assert len(files) == 4
    with pytest.raises(PowerclipError, match="there is no folder .*nowhere; give --images"):
        ImageIndex.of(folder / "nowhere", subject, indexes=tmp_path)


def test_a_damaged_index_is_named(index, subject):
    index.file.write_bytes(b"not a database" * 100)
    with pytest.raises(RunFailedError, match=r"the index .*\.sqlite cannot be used .*; remove it"):
        states(index, subject)


def test_nobody_is_told_to_remove_an_index_that_is_not_damaged(index, subject):
    index.file.mkdir()  # cannot be opened
    with pytest.raises(RunFailedError, match=r"cannot be used \(unable to open database file\)$"):
        states(index, subject)


def test_an_empty_index_finds_nothing(index, subject):
    with pytest.raises(PowerclipError, match="no image is indexed yet"):
        index.search(torch.zeros(3), count=1)
    with sqlite3.connect(index.file) as database:
        assert database.execute("SELECT COUNT(*) FROM images").fetchone() == (0,)
