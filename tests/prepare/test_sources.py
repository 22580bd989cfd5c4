import pytest
from PIL import Image

from powerclip.data.shards import read_shards
from powerclip.errors import RunFailedError
from powerclip.prepare import prepare


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(folder / f"{i}.png")
    return folder


def rows(captions):
    return "path,caption\n" + "\n".join(f"{i}.png,{caption}" for i, caption in enumerate(captions))


def test_a_comma_that_is_not_quoted_costs_its_row_only(photos, tmp_path):
    (photos / "t.csv").write_text(rows(["a dog"] * 7 + ["a dog, running"] + ["a dog"] * 4))
    report = prepare(photos / "t.csv", tmp_path / "out", parser="none")
    (reason,) = report["skipped"]
    assert reason == "more fields than columns (quote captions that hold the separator)"
    assert report["examples"][reason] == ["row 8 (7.png)"]
    assert len(list(read_shards(tmp_path / "out"))) == report["samples"] == 11


def test_commas_that_are_not_quoted_everywhere_say_what_to_do(photos, tmp_path):
    (photos / "t.csv").write_text(rows(["a dog, running"] * 12))
    with pytest.raises(RunFailedError, match=r"12 of 12 .*quote captions that hold the separator.*e\.g\. row 1"):
        prepare(photos / "t.csv", tmp_path / "out", parser="none")


def test_a_path_that_the_system_refuses_is_a_bad_sample(photos, tmp_path):
    (photos / "t.csv").write_text(rows(["a dog"] * 12) + "\n" + "x" * 300 + ",a dog\n")
    report = prepare(photos / "t.csv", tmp_path / "out", parser="none")
    assert report["skipped"] == {"file cannot be read": 1}


def test_a_row_that_is_short_has_no_caption(photos, tmp_path):
    (photos / "t.csv").write_text(rows(["a dog"] * 11) + "\n11.png\n")
    assert prepare(photos / "t.csv", tmp_path / "out", parser="none")["skipped"] == {"empty caption": 1}
