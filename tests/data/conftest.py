"""Data that several modules read."""

import pytest

from powerclip.data.shards import write_shards
from powerclip.scenes import generate


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder with 50 scenes in three shards."""
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(generate("train", count=50, seed=0), folder, samples_per_shard=20)
    return folder
