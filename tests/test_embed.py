import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from rich.console import Console

import powerclip
from powerclip import cli, create_model, embed
from powerclip.config import EmbedConfig
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.model import save
from powerclip.scenes import generate, sample
from tests.support.images import one_colour
from tests.support.tars import write_tar

GUIDE = Path(__file__).parents[1] / "docs" / "embeddings.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return str(save(create_model("tiny"), tmp_path_factory.mktemp("run") / "model"))


def run(model, source, output, console=None, **options):
    options = {"rows_per_part": 4, "batch_size": 3, "device": "cpu", **options}
    return embed.embed(
        model, str(source), output, EmbedConfig(**options), console=console or Console(file=io.StringIO())
    )


def test_rows_are_the_pairs_in_order_with_the_model_s_unit_embeddings(model, tmp_path):
    output = tmp_path / "new" / "e.parquet"
    assert run(model, "scenes:test", output, count=10, seed=3) == 10
    table = parquet.read_table(output)
    assert table.column_names == ["key", "source", "caption", "image", "text", "thumbnail"]
    scenes = [sample("test", i, seed=3) for i in range(10)]
    assert table["caption"].to_pylist() == [scene.caption for scene in scenes]
    assert table["key"].to_pylist() == table["source"].to_pylist() == [scene.key for scene in scenes]
    loaded, preprocess, tokenizer = powerclip.load(model)
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(io.BytesIO(scene.image))) for scene in scenes])
        image = loaded.encode_image(images, normalize=True)
        text = loaded.encode_text(tokenizer([scene.caption for scene in scenes]), normalize=True)
    for name, expected in (("image", image), ("text", text)):
        found = np.stack(table[name].to_numpy())
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)
    assert Image.open(io.BytesIO(table["thumbnail"][0].as_py()["bytes"])).size == (64, 64)
    assert json.loads(table.schema.metadata[b"powerclip"])["model"] == model
    assert [path.name for path in output.parent.iterdir()] == ["e.parquet"]


def test_several_processes_write_the_same_rows(model, tmp_path):
    run(model, "scenes:test", tmp_path / "one", count=10)
    run(model, "scenes:test", tmp_path / "two", count=10, workers=2)
    one, two = (parquet.read_table(tmp_path / name) for name in ("one", "two"))
    for name in ("key", "caption", "thumbnail"):
        assert one[name] == two[name]
    for name in ("image", "text"):
        np.testing.assert_allclose(np.stack(one[name].to_numpy()), np.stack(two[name].to_numpy()), atol=1e-6)


def test_an_interrupted_job_continues_with_the_missing_parts(model, tmp_path, monkeypatch):
    made = []

    def interrupted(part, make=embed.embed_part):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(part.path.name)
        return make(part)

    monkeypatch.setattr(embed, "embed_part", interrupted)
    output = tmp_path / "e.parquet"
    with pytest.raises(KeyboardInterrupt):
        run(model, "scenes:test", output, count=10)
    assert not output.exists()
    first = (tmp_path / "e.parquet.parts" / "shard-000000.parquet").stat().st_mtime_ns
    with pytest.raises(PowerclipError, match=r"made with other settings \(thumbnail_pixels was 96, now 0\)"):
        run(model, "scenes:test", output, count=10, thumbnail_pixels=0)
    with pytest.raises(PowerclipError, match="the source has changed"):
        run(model, "scenes:test", output, count=11)
    assert (tmp_path / "e.parquet.parts" / "shard-000000.parquet").stat().st_mtime_ns == first
    made.clear()
    assert run(model, "scenes:test", output, count=10) == 10
    assert made == ["shard-000002.parquet"]
    assert parquet.read_table(output)["caption"].to_pylist() == [s.caption for s in generate("test", count=10, seed=0)]


def test_the_parts_of_other_weights_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "embed_part", lambda part: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, "scenes:test", tmp_path / "e.parquet", count=2)
    torch.manual_seed(1)
    other = str(save(create_model("tiny"), tmp_path / "other"))
    with pytest.raises(PowerclipError, match=r"made with other settings \(weights was \w+, now \w+\)"):
        run(other, "scenes:test", tmp_path / "e.parquet", count=2)


def test_a_folder_of_images_is_read_and_what_cannot_be_used_is_counted(model, tmp_path):
    for name, content in {"a": one_colour("red"), "b": b"no image", "c": one_colour("blue")}.items():
        (tmp_path / f"{name}.png").write_bytes(content)
        (tmp_path / f"{name}.txt").write_text(f"picture {name}")
    (tmp_path / "d.png").write_bytes(one_colour())
    said = Console(file=io.StringIO(), width=200)
    output = tmp_path / "out" / "e.parquet"
    assert run(model, tmp_path, output, said, thumbnail_pixels=0) == 2
    table = parquet.read_table(output)
    assert table["caption"].to_pylist() == ["picture a", "picture c"]
    assert table["source"].to_pylist() == ["a.png", "c.png"]
    assert table["thumbnail"].to_pylist() == [None, None]
    assert re.search(r"2 pairs in .*e.parquet; skipped: 1 [^,]+, 1 no caption", said.file.getvalue())


def test_names_that_are_not_utf_8_are_written_with_a_replacement(model, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{name}.png").write_bytes(one_colour())
    (tmp_path / "in" / f"{name}.txt").write_text("a dog")
    write_tar(tmp_path / "in.tar", [(f"{name}.png", one_colour()), (f"{name}.txt", b"a dog")])
    for source in ("in", "in.tar"):
        output = tmp_path / f"{source}.parquet"
        assert run(model, tmp_path / source, output) == 1
        assert "caf?" in parquet.read_table(output)["source"][0].as_py()


def test_a_truncated_tar_is_named(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / "in" / name, [("a.png", one_colour()), ("a.txt", b"a dog"), ("b.txt", b"x" * 1024)])
    with (tmp_path / "in" / "1.tar").open("r+b") as file:
        file.truncate(3 * 1024 + 200)
    said = Console(file=io.StringIO(), width=300)
    assert run(model, tmp_path / "in", tmp_path / "e.parquet", said) == 2
    assert "damaged or truncated: 1.tar" in said.file.getvalue()


def test_nothing_usable_is_an_error_and_no_file_is_left(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(PowerclipError, match="no pair of .* can be used: 1 "):
        run(model, tmp_path, tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_an_existing_file_is_not_replaced(model, tmp_path, capsys):
    output = tmp_path / "e.parquet"
    output.write_bytes(b"mine")
    assert cli.main(["embed", model, "scenes:test", "--output", str(output), "--count", "2"]) == 2
    assert "exists; remove it, or name another" in capsys.readouterr().err
    assert output.read_bytes() == b"mine"


def test_the_guide_s_programs_run_on_a_run_s_shards(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = list(generate("train", count=6, seed=0))
    write_shards(scenes, tmp_path / "data")
    arguments = ["embed", model, "data", "--output", "embeddings.parquet", "--workers", "1"]
    assert cli.main(arguments) == 0
    assert parquet.read_table("embeddings.parquet")["key"].to_pylist() == [scene.key for scene in scenes]
    with_faiss, with_duckdb = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    found = {}
    exec(with_faiss, found)
    scores = found["images"] @ found["texts"][0]
    assert found["rows"][0].tolist() == (-scores).argsort()[:5].tolist()
    word = scenes[2].caption
    exec(with_duckdb.replace("%dog%", word), found)
    same = found["images"] @ found["images"][2]
    order = [scenes[i].key for i in (-same).argsort() if i != 2]
    assert [key for key, _, _ in found["nearest"]] == order
