"""The emoji example from end to end on a small made-up pair of packages, without a network."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from powerclip.data.shards import read_shards
from powerclip.recipes import recipe
from tests.support.images import one_colour
from tests.support.tars import write_tar

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import emoji

    base = recipe("emoji_tiny")
    small = dataclasses.replace(base, batch_size=4, optim=dataclasses.replace(base.optim, warmup_steps=1))
    monkeypatch.setattr(emoji, "recipe", lambda name: small)
    yield emoji
    for name in [name for name in sys.modules if name == "emoji"]:
        del sys.modules[name]


@pytest.fixture
def packages(tmp_path):
    """Tarballs of a cook and a pilot in all skin tones, and grapes."""
    tones = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
    entries = [
        {
            "name": name,
            "image": f"{stem}.png",
            "subcategory": "person-role",
            "skin_variations": {tone: {"image": f"{stem}-{tone.lower()}.png"} for tone in tones},
        }
        for name, stem in (("COOK", "1f373"), ("WOMAN PILOT", "1f469"))
    ]
    entries.append({"name": "GRAPES", "image": "1f347.png", "subcategory": "food-fruit"})
    given = tmp_path / "given"
    given.mkdir()
    for style in ("google", "twitter"):
        files = [("package/emoji.json", json.dumps(entries).encode())]
        for entry in entries:
            for value in [entry, *entry.get("skin_variations", {}).values()]:
                colour = (len(files) * 17, 90, 200 if style == "google" else 40, 200)
                image = one_colour(colour, size=(64, 64), mode="RGBA")
                files.append((f"package/img/{style}/64/{value['image']}", image))
        write_tar(given / f"emoji-datasource-{style}-16.0.0.tgz", files, mode="w:gz")
    return given


def test_from_packages_to_table(example, packages, tmp_path, capsys):
    output = tmp_path / "out"
    assert example.main(example.Options(output=output, packages=packages, steps=2, with_clip=True)) == 0

    with (output / "pairs" / "google" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = list(read_shards(output / "shards" / "google" / "train"))
    assert [sample.caption for sample in samples] == [row["caption"] for row in rows]
    assert all(sample.tree is not None and sample.tree.phrases for sample in samples)
    assert len(samples) == 13 - 2
    for style in ("google", "twitter"):
        held = [sample.caption for sample in read_shards(output / "shards" / style / "heldout")]
        assert len(held) == 2
        assert any("cook" in caption and "medium-light" in caption for caption in held)

    record = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert set(record["runs"]) == {"clip", "powerclip"}
    tasks = record["runs"]["powerclip"]
    assert {name.split("_", 1)[0] for name in tasks} == {"google", "twitter"}
    assert 0 <= tasks["twitter_heldout_combination"]["acc@1"] <= 1
    assert tasks["twitter_retrieval"]["i2t_R@10"] >= 0
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width == 1320
    assert (output / "powerclip" / "model").is_dir()
    assert "twitter_retrieval" in capsys.readouterr().out
