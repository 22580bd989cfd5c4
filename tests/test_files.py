import errno
import json
import math
import os
from pathlib import Path

import pytest

from powerclip.errors import PowerclipError
from powerclip.files import (
    MAX_JSON_BYTES,
    atomic_file,
    atomic_folder,
    atomic_write,
    make_folder,
    read_json,
    require_writable,
    write_json,
)
from tests.support.power import Disk


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("data", "stored"), [(b"\x00\xff", b"\x00\xff"), ("naïve\n", b"na\xc3\xafve\n")])
def test_a_file_is_replaced_and_nothing_else_is_left(data, stored, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    atomic_write(path, data)
    assert path.read_bytes() == stored
    assert names(tmp_path) == ["file"]


def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (True, False):
        require_writable(tmp_path / "new" / "deep" / "x", folder=folder)
        with pytest.raises(PowerclipError, match=r"output .*file/x cannot be written \(.*file: Not a directory\);"):
            require_writable(tmp_path / "file" / "x", folder=folder)
        with pytest.raises(PowerclipError, match=r"output /proc/x cannot be written \(/proc: .*\); name another f"):
            require_writable(Path("/proc/x"), folder=folder)
    require_writable(tmp_path / "file", folder=False)
    require_writable(tmp_path)
    with pytest.raises(PowerclipError, match="output .* is a folder; name a file"):
        require_writable(tmp_path, folder=False)
    assert names(tmp_path) == ["file"]


def test_an_error_while_writing_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic_file(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_error_of_the_system_names_what_was_written(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    for writer in (atomic_file, atomic_folder):
        with pytest.raises(OSError, match=r"No space left on device: '.*/mine'$"), writer(tmp_path / "mine"):
            raise full
        full.filename = None


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_content_and_name_are_on_disk_before_the_write_returns(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(Path(f"/proc/self/fd/{fd}").resolve()), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append("replace"), replace(self, to))[1])
    atomic_write(tmp_path / "file", b"content")
    assert [step if step == "replace" else step.name.startswith(".file.") for step in steps[:2]] == [True, "replace"]
    assert steps[2:] == [tmp_path.resolve()]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A function that makes a folder the disk, from now on."""
    made = []

    def watched(folder):
        made.append(Disk(folder, monkeypatch))
        return made[-1]

    yield watched
    for one in made:
        one.close()


def test_after_a_power_cut_a_file_is_the_old_one_or_the_new(tmp_path, disk):
    root = tmp_path / "disk"
    root.mkdir()
    (root / "a").write_bytes(b"old")
    watched = disk(root)
    before = len(watched.left)
    atomic_write(root / "a", b"new")
    make_folder(root / "deep" / "er")
    atomic_write(root / "deep" / "er" / "b", b"other")
    found = [
        {name: content for name, content in tree.items() if not name.startswith(".")} for tree in watched.left[before:]
    ]
    assert {tree["a"] for tree in found} == {b"old", b"new"}
    assert found[-1] == {"a": b"new", "deep": {"er": {"b": b"other"}}}
    assert all(tree.get("deep", {}).get("er", {}).get("b") in (None, b"other") for tree in found)


def test_after_a_power_cut_a_folder_is_the_old_one_or_the_new(tmp_path, disk):
    root = tmp_path / "disk"

    def write(content):
        with atomic_folder(root / "model") as temporary:
            (temporary / "weights").write_bytes(content)
            (temporary / "deep").mkdir()
            (temporary / "deep" / "config").write_bytes(content)
        return {"weights": content, "deep": {"config": content}}

    old, watched = write(b"old"), disk(root)
    before = len(watched.left) - 1
    new = write(b"new")
    assert watched.left[-1]["model"] == new
    assert all(tree["model"] in (old, new) for tree in watched.left[before:])


def test_a_folder_takes_the_place_of_another_when_it_is_complete(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / "weights").write_text(content)
            assert (target / "weights").exists() == (content == "two")
        assert (target / "weights").read_text() == content
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("old", ["model", ".model.old"])  # the second: a writer was killed between its two renames
def test_an_error_while_a_folder_is_filled_leaves_the_old_one(old, tmp_path):
    target = tmp_path / "model"
    (tmp_path / old).mkdir()
    (tmp_path / old / "weights").write_text("old")

    def fail():
        with atomic_folder(target) as folder:
            (folder / "weights").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert names(tmp_path) == ["model"]
    assert (target / "weights").read_text() == "old"


def test_json_is_valid_whatever_the_numbers_are(tmp_path):
    path = tmp_path / "value.json"
    value = {"nan": math.nan, "list": [1.5, (math.inf, -math.inf)], "path": Path("a/b"), "caption": "naïve", "no": None}
    write_json(path, value)
    expected = {"nan": None, "list": [1.5, [None, None]], "path": "a/b", "caption": "naïve", "no": None}
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == expected
    assert read_json(path) == expected
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_a_name_that_is_not_unicode_can_still_be_written(tmp_path):
    write_json(tmp_path / "value.json", {"file": os.fsdecode(b"caf\xe9.jpg")})
    assert read_json(tmp_path / "value.json") == {"file": "caf?.jpg"}


def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        write_json(path, {"a": {1}})
    assert read_json(path) == 1


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b" " * MAX_JSON_BYTES + b"1"])
def test_a_file_that_is_not_json_is_named(content, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON \(.*\); re-create it or remove it"):
        read_json(path)
