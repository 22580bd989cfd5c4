"""The job with several workers, killed, interrupted, on a Ray cluster that loses a node."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from powerclip.config import PrepareConfig
from powerclip.data.shards import index_shard, read_shards
from powerclip.errors import PowerclipError
from powerclip.prepare import prepare
from powerclip.prepare.workers import run_local


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(48):
        Image.new("RGB", (200, 150), (i * 5, 0, 0)).save(folder / f"{i:02d}.jpg")
        (folder / f"{i:02d}.txt").write_text(f"a dog with {i} spots rides a horse")
    return folder


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def command(photos, out, *options):
    return [
        sys.executable,
        "-m",
        "powerclip.cli",
        "prepare",
        str(photos),
        str(out),
        "--samples-per-shard",
        "2",
        *options,
    ]


def test_workers_change_nothing(photos, tmp_path):
    alone = prepare(photos, tmp_path / "one", PrepareConfig(samples_per_shard=5))
    assert prepare(photos, tmp_path / "two", PrepareConfig(samples_per_shard=5, workers=2)) == alone
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    assert not list((tmp_path / "two").glob(".*.tmp"))


def heed_interrupts():
    """Shells start background jobs with SIGINT ignored, which their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_killed_goes_on_and_loses_nothing(sign, photos, tmp_path):
    complete, out = tmp_path / "complete", tmp_path / "out"
    report = prepare(photos, complete, PrepareConfig(samples_per_shard=2))
    job = subprocess.Popen(
        command(photos, out, "--workers", "2"), stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    while not list(out.glob("*.tar")) and job.poll() is None:
        time.sleep(0.005)
    workers = children(job.pid)
    job.send_signal(sign)
    errors = job.communicate(timeout=60)[1]
    made = shards(out)
    assert 0 < len(made) < 24, errors
    for path in out.glob("*.tar"):
        assert len(index_shard(path)) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers outlive the job"
    if sign == signal.SIGINT:
        assert job.returncode == 130
        assert "shards are complete; the same command continues" in errors
    assert prepare(photos, out, PrepareConfig(samples_per_shard=2)) == report
    assert shards(out) == shards(complete)
    assert not list(out.glob(".*.tmp"))


def nap(seconds):
    time.sleep(seconds)
    return seconds


def test_a_job_that_is_left_ends_its_own_workers_only():
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())  # whatever other tests have left
    other = context.Process(target=nap, args=(600,))
    other.start()
    try:
        begun = time.monotonic()
        with closing(run_local(nap, [0.01, 600, 600, 600], workers=2)) as results:
            assert next(results) == (0.01, 0.01)
        while set(multiprocessing.active_children()) - before != {other}:
            assert time.monotonic() - begun < 100
            time.sleep(0.05)
    finally:
        other.terminate()
        other.join()


def hears_interrupts(_):
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_ctrl_c_is_the_first_process_s_alone():
    assert [heard for _, heard in run_local(hears_interrupts, [0, 1], workers=2)] == [False, False]
    assert hears_interrupts(None)


def test_two_jobs_do_not_write_to_one_folder(photos, tmp_path):
    from filelock import FileLock

    prepare(photos, tmp_path / "out", PrepareConfig(parser="none"))
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(PowerclipError, match="another job is writing to"):
        prepare(photos, tmp_path / "out", PrepareConfig(parser="none"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_that_loses_a_node_loses_nothing(photos, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    report = prepare(photos, tmp_path / "one", PrepareConfig(samples_per_shard=1))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    lost = []

    def kill():
        while len(list((tmp_path / "ray").glob("*.tar"))) < 3:
            time.sleep(0.01)
        cluster.remove_node(other, allow_graceful=False)
        lost.append(len(list((tmp_path / "ray").glob("*.tar"))))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        made = prepare(photos, tmp_path / "ray", PrepareConfig(samples_per_shard=1, ray=cluster.address))
    finally:
        ray.shutdown()
        cluster.shutdown()
    killer.join(timeout=60)
    assert lost and lost[0] < 48
    assert made == report
    assert shards(tmp_path / "ray") == shards(tmp_path / "one")
    assert not list((tmp_path / "ray").glob("*.tmp"))
    keys = [sample.key for sample in read_shards(tmp_path / "ray")]
    assert len(keys) == len(set(keys)) == 48
