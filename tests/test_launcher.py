"""What torchrun started does not outlive it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.processes import children_of, is_alive

RANK = """
import signal, sys, time
from powerclip import launcher
launcher.LOOK_EVERY_S, launcher.LAST_STEP_S = 0.05, 0.5
if sys.argv[1] == "stops":
    signal.signal(signal.SIGTERM, lambda *_: (print("last step", flush=True), sys.exit(0)))
elif sys.argv[1] == "waits":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
launcher.end_with_launcher()
launcher.end_with_launcher()
print("ready", flush=True)
time.sleep(600)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def launched(kind, **variables):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK, kind],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **variables},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    (rank,) = children_of(process.pid)
    return process, rank


@pytest.mark.parametrize(("kind", "last"), [("starts", ""), ("stops", "last step\n"), ("waits", "")])
def test_a_rank_ends_when_its_launcher_is_killed(kind, last):
    process, _ = launched(kind, TORCHELASTIC_RUN_ID="1")
    with process:
        process.kill()
        said = f"powerclip: torchrun (process {process.pid}) has died, so this ends too\n"
        assert process.stdout.read() == said + last  # to its end: nobody has the pipe any more


def test_what_torchrun_did_not_start_outlives_its_parent():
    process, rank = launched("starts")
    with process:
        process.kill()
        time.sleep(1)
        assert is_alive(rank)
        os.kill(rank, signal.SIGKILL)
        assert process.stdout.read() == ""
