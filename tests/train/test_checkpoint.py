"""Checkpoints as files: damaged, of another model, or made to harm."""

import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import SUMS
from powerclip.train import checkpoint
from tests.support.memory import more_bytes
from tests.support.tars import damaged


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def parts(seed=0, width=3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.LayerNorm(width))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def extra(step=0, value=0.0):
    return {"step": step, "loss": {"zeta": torch.tensor(value)}, "counters": {"seen": 10 * step}}


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path, step=7, **parts(), extra=extra(7, 0.5))


def test_what_is_saved_comes_back(saved):
    assert saved.name == "step-00000007"
    other, expected = parts(seed=1), parts()
    found = checkpoint.load(saved, **other, extra=extra())
    assert found == extra(7, 0.5)
    for mine, theirs in zip(other["model"].parameters(), expected["model"].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert other["optimizer"].param_groups[0]["betas"] == (0.8, 0.9)
    state, theirs = (part["optimizer"].state_dict()["state"] for part in (other, expected))
    assert all(torch.equal(state[i][name], theirs[i][name]) for i in theirs for name in theirs[i])


def test_a_checkpoint_of_an_earlier_version_lacks_the_number_of_threads(saved):
    assert checkpoint.load(saved, **parts(seed=1), extra={**extra(), "threads": 3}) == extra(7, 0.5)


DAMAGES = {
    "metadata truncated": (".metadata", lambda data: data[: len(data) // 2]),
    "metadata empty": (".metadata", lambda data: b""),
    "metadata scrambled": (".metadata", lambda data: bytes(byte ^ 0x55 for byte in data)),
    "metadata of something else": (".metadata", lambda data: pickle.dumps([1, 2])),
    "data truncated": ("__0_0.distcp", lambda data: data[: len(data) // 2]),
    "data scrambled": ("__0_0.distcp", lambda data: bytes(byte ^ 0x55 for byte in data)),
}


@pytest.mark.parametrize("checksums", [True, False])  # earlier versions wrote none
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(damage, checksums, saved):
    name, change = DAMAGES[damage]
    if not checksums:
        (saved / SUMS).unlink()
    (saved / name).write_bytes(change((saved / name).read_bytes()))
    with pytest.raises(RunFailedError, match=r"step-00000007 is damaged \(.+\); there is none before it"):
        checkpoint.load(saved, **parts(), extra=extra())
    checkpoint.save(saved.parent, step=6, **parts(), extra=extra())
    with pytest.raises(RunFailedError, match=r"is damaged \(.+\); delete it, and --resume auto continues from the one"):
        checkpoint.load(saved, **parts(), extra=extra())


@given(st.sampled_from([".metadata", "__0_0.distcp"]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path_factory, name, place, bit):
    saved = checkpoint.save(tmp_path_factory.mktemp("run"), step=7, **parts(), extra=extra(7, 0.5))
    content = bytearray((saved / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (saved / name).write_bytes(content)
    with pytest.raises(
        RunFailedError, match=rf"step-00000007 is damaged \({name} is not as it was written: its checksum"
    ):
        checkpoint.load(saved, **parts(), extra=extra())


@pytest.fixture(scope="module")
def without_checksums(tmp_path_factory):
    saved = checkpoint.save(tmp_path_factory.mktemp("run"), step=7, **parts(), extra=extra(7, 0.5))
    (saved / SUMS).unlink()
    return saved


@given(st.sampled_from([".metadata", "__0_0.distcp"]), st.data())
def test_no_bytes_of_a_checkpoint_without_checksums_end_in_a_traceback(without_checksums, name, data):
    valid = (without_checksums / name).read_bytes()
    (without_checksums / name).write_bytes(damaged(valid, data.draw))
    found, message = {}, str(without_checksums)
    try:
        with more_bytes() as more:
            try:
                found = checkpoint.load(without_checksums, **parts(), extra=extra())
            except PowerclipError as error:
                message = str(error)
    finally:
        (without_checksums / name).write_bytes(valid)
    assert found.keys() <= extra().keys()
    assert str(without_checksums) in message
    assert "\n" not in message
    assert more[0] < 64 * 2**20


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_coreutils_reads_the_checksums(saved):
    command = ["sha256sum", "--check", "--strict", SUMS]
    checked = subprocess.run(command, cwd=saved, capture_output=True, text=True, check=True)
    assert checked.stdout.splitlines() == [".metadata: OK", "__0_0.distcp: OK"]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_missing_file_is_named(name, saved):
    (saved / name).unlink()
    with pytest.raises(RunFailedError, match=rf"is damaged \(.*No such file.*{name}"):
        checkpoint.load(saved, **parts(), extra=extra())


def test_a_checkpoint_of_another_model_is_no_damage(saved):
    with pytest.raises(PowerclipError, match="does not fit this config's model") as caught:
        checkpoint.load(saved, **parts(width=4), extra=extra())
    assert not isinstance(caught.value, RunFailedError)
    with pytest.raises(PowerclipError, match="does not fit .*extra.average"):
        checkpoint.load(saved, **parts(), extra={**extra(), "average": torch.zeros(2)})


def test_no_pickle_of_a_checkpoint_is_run(saved, tmp_path):
    mark = tmp_path / "mark"
    (saved / SUMS).unlink()
    (saved / ".metadata").write_bytes(pickle.dumps(Touch(mark)))
    with pytest.raises(RunFailedError, match=r"is damaged \(it names pathlib\.Path\.touch"):
        checkpoint.load(saved, **parts(), extra=extra())
    shutil.rmtree(saved)
    hostile = checkpoint.save(tmp_path, step=8, **parts(), extra={**extra(), "step": Touch(mark)})
    with pytest.raises(RunFailedError, match="is damaged"):
        checkpoint.load(hostile, **parts(), extra=extra())
    assert not mark.exists()


def test_the_newest_stay_and_leftovers_go_even_those_of_the_same_step(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step=step, **parts(), extra=extra(step))
    for leftover in (".step-00000001.old", ".step-00000004.tmp"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").write_text("")
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
