"""Runs a function on several gloo processes and brings back what each returned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from powerclip.cli import main
from powerclip.evaluate import Estimate

# Processes fork from a server that has imported what takes seconds to import; each is otherwise a fresh one.
multiprocessing.get_context("forkserver").set_forkserver_preload(["powerclip.train", "torch.distributed.fsdp"])


def _say_to(path):
    """The server's output is not what pytest captures."""
    with path.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def launched(rank, size, **more):
    """The variables that a launcher sets on one machine."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **more}


def free_port():
    """A port at which processes can meet."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def _worker(rank, function, size, folder, arguments):
    _say_to(Path(folder) / f"said-{rank}")
    torch.set_num_threads(1)
    os.environ |= launched(rank, size)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(function(rank, size, *arguments), Path(folder) / f"result-{rank}.pt")
    finally:
        sys.stdout.flush()
        dist.destroy_process_group()


def run_on_processes(size, function, folder, *arguments):
    """[function(rank, size, *arguments) for each rank], run side by side; function must be a module's own.

    What they print is printed to this process's standard error once all have ended.
    """
    try:
        mp.start_processes(
            _worker, args=(function, size, str(folder), arguments), nprocs=size, start_method="forkserver"
        )
    finally:
        for path in sorted(Path(folder).glob("said-*")):
            print(path.read_text(), end="", file=sys.stderr)
            path.unlink()
    with torch.serialization.safe_globals([Estimate]):
        return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=True) for rank in range(size)]


class Command:
    """``powerclip`` in a process group of its own, in the manner of ``subprocess.Popen``, without seconds of imports.

    Where a test is of how Python starts or ends, it takes a ``subprocess``: this one leaves as multiprocessing does.
    """

    def __init__(self, arguments, log, **environment):
        self._log = Path(log)
        self._log.write_text("")
        command = (arguments, str(log), environment)
        self._process = multiprocessing.get_context("forkserver").Process(target=_command, args=command)
        self._process.start()
        self.pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            while os.getpgid(self.pid) != self.pid:  # else a signal to its group might find none
                time.sleep(0.001)

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        self._process.join(0)
        return self._process.exitcode

    def communicate(self, timeout=None):
        """(what it has said, None), once it has ended."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the process has not ended"
        return self._log.read_text(), None


def _command(arguments, log, environment):
    os.setsid()
    os.environ |= environment
    _say_to(Path(log))
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def children_of(process):
    """The numbers of the processes that one, given by its number, has started."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"PPid:\t{process}\n" in (entry / "status").read_text():
                found.append(int(entry.name))
    return found


def is_alive(process):
    """Whether a process runs."""
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False
