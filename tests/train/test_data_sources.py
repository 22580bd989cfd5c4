"""Training on several sources, on stored masks, and over a store that goes away."""

import dataclasses
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from powerclip.cli import main
from powerclip.config import load_config
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.recipes import recipe
from powerclip.scenes import generate
from powerclip.train import train
from tests.support.runs import losses


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_shards(generate("train", count=32, seed=0), folder / "a", samples_per_shard=16)
    write_shards(generate("train", count=16, seed=1), folder / "b", samples_per_shard=16)
    return folder


def tiny(**data):
    base = recipe("scenes_tiny")
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, region_unit="region"),  # random boxes
        batch_size=8,
        steps=3,
        log_every_steps=1,
        data=dataclasses.replace(base.data, **data),
    )


def test_the_command_takes_sources_with_weights(sources, tmp_path, capsys):
    arguments = [
        "train", "--recipe", "scenes_tiny", "--data", str(sources / "a"), str(sources / "b"), "--steps", "2",
        "--batch-size", "8", "--data.resample", "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main([*arguments, "--data.weights", "3", "1"]) == 0
    assert load_config(tmp_path / "run" / "config.yaml").data.weights == (3.0, 1.0)
    arguments[-1] = str(tmp_path / "other")
    assert main([*arguments, "--data.weights", "3"]) == 2
    assert "1 weights for 2 sources; give one weight per source" in capsys.readouterr().err
    assert main([*arguments, "--data.weights", "3", "-1"]) == 2
    assert not (tmp_path / "other").exists()


def test_weighted_runs_resume_exactly(sources, tmp_path):
    config = dataclasses.replace(tiny(weights=(1.0, 2.0)), checkpoint_every_steps=1, keep_checkpoints=9)
    data = [sources / "a", sources / "b"]
    train(config, data=data, output=tmp_path / "whole")
    train(config, data=data, output=tmp_path / "cut")
    for step in (2, 3):
        for file in (folder := tmp_path / "cut" / "checkpoints" / f"step-{step:08d}").iterdir():
            file.unlink()
        folder.rmdir()
    train(config, data=data, output=tmp_path / "cut", resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_stored_masks_train_and_differ_from_boxes(sources, tmp_path):
    boxes = tiny()
    stored = dataclasses.replace(boxes, objective=dataclasses.replace(boxes.objective, region_source="stored"))
    for name, config in {"boxes": boxes, "stored": stored, "again": stored}.items():
        train(config, data=sources / "a", output=tmp_path / name)
    assert losses(tmp_path / "stored") == losses(tmp_path / "again")
    assert losses(tmp_path / "stored") != losses(tmp_path / "boxes")
    assert torch.tensor(losses(tmp_path / "stored")).isfinite().all()


def test_data_are_opened_once(sources, tmp_path, monkeypatch):
    """One listing of a folder, one look at a shard's headers; none at those of a later run."""
    listed, headers, resolve, opened = [], [], Path.iterdir, tarfile.open
    monkeypatch.setattr(Path, "iterdir", lambda folder: listed.append(folder) or resolve(folder))

    def open_tar(*arguments, mode="r", **options):
        headers.append(Path(options["fileobj"].raw.name))
        return opened(*arguments, mode=mode, **options)

    for name in ("a", "b"):
        shutil.copytree(sources / name, tmp_path / name, ignore=lambda *_: [".index", "index.json"])
    monkeypatch.setattr(tarfile, "open", open_tar)
    data = [tmp_path / "a", tmp_path / "b"]
    train(tiny(), data=data, output=tmp_path / "first")
    shards = [
        tmp_path / "a" / "shard-000000.tar",
        tmp_path / "a" / "shard-000001.tar",
        tmp_path / "b" / "shard-000000.tar",
    ]
    assert headers == shards
    assert all(1 <= listed.count(folder) <= 2 for folder in data)  # to find the shards, and to publish their counts
    listed.clear()
    train(tiny(), data=data, output=tmp_path / "second")
    assert [listed.count(folder) for folder in data] == [1, 1]
    assert headers == shards


def test_a_run_is_resumed_on_the_same_content_only(sources, tmp_path):
    write_shards(generate("train", count=16, seed=2), tmp_path / "other", samples_per_shard=16)
    shutil.copytree(sources / "b", tmp_path / "moved")
    train(tiny(), data=sources / "b", output=tmp_path / "run")
    longer = dataclasses.replace(tiny(), steps=4)
    with pytest.raises(
        PowerclipError, match="16 samples in 1 shards, and these data are 16 in 1 with other names or content"
    ):
        train(longer, data=tmp_path / "other", output=tmp_path / "run", resume=True)
    assert train(longer, data=tmp_path / "moved", output=tmp_path / "run", resume=True).steps == 4
