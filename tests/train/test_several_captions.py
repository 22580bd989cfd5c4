"""Training on images with several captions each."""

import dataclasses
import shutil

import pytest
import torch

from powerclip.config import DataConfig, ObjectiveConfig, ParallelConfig
from powerclip.data.sample import Caption
from powerclip.data.shards import write_shards
from powerclip.scenes import generate
from powerclip.train import train
from tests.support.runs import losses, tiny_run, weights

DRAW = DataConfig(captions=2, caption_weights={"txt": 1.0, "long": 2.0}, sentences=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Scenes with their own caption, and with one of two sentences that has no phrases."""
    folder = tmp_path_factory.mktemp("captions") / "train"
    samples = []
    for scene in generate("train", count=32, seed=0):
        long = Caption(text=f"A scene with shapes. There is {scene.caption}.", source="long")
        samples.append(scene.with_captions([*scene.captions, long]))
    write_shards(samples, folder, samples_per_shard=16)
    return folder


@pytest.fixture
def config(tmp_path):
    return tiny_run(tmp_path, steps=4, checkpoint_every_steps=1, keep_checkpoints=9, data=DRAW)


@pytest.mark.parametrize("name", ["clip", "siglip", "filip", "sparc", "superclip", "powerclip"])
def test_every_objective_trains_on_several_captions(name, config, shards, tmp_path):
    config = dataclasses.replace(config, objective=ObjectiveConfig(name=name), steps=2)
    one = dataclasses.replace(config, data=DataConfig())
    found = losses(train(config, data=shards, output=tmp_path / "n").output)
    assert len(found) == 2
    assert all(torch.isfinite(torch.tensor(found)))
    assert found != losses(train(one, data=shards, output=tmp_path / "one").output)


def test_a_resumed_run_draws_what_the_uninterrupted_one_drew(config, shards, tmp_path):
    whole = train(config, data=shards, output=tmp_path / "whole").output
    cut = train(config, data=shards, output=tmp_path / "cut").output
    for step in (3, 4):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:08d}")
    train(config, data=shards, output=cut, resume=True)
    assert losses(whole) == losses(cut)
    assert all(torch.equal(value, weights(cut)[name]) for name, value in weights(whole).items())


def test_pieces_of_a_batch_train_the_same_model(config, shards, tmp_path):
    pieces = dataclasses.replace(config, parallel=ParallelConfig(accumulate=3))
    one = train(config, data=shards, output=tmp_path / "one").output
    many = train(pieces, data=shards, output=tmp_path / "many").output
    torch.testing.assert_close(losses(many), losses(one), rtol=1e-4, atol=1e-5)
