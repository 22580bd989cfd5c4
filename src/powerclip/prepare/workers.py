"""Where tasks run: in this process, in several, or on a Ray cluster; each finished one is reported as it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from powerclip.errors import PowerclipError, RunFailedError

Task = TypeVar("Task")
Result = TypeVar("Result")

RETRIES = 10
"""Times that Ray starts a task again whose node or process was lost."""


def run_local(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int = 1
) -> Generator[tuple[int, Result], None, None]:
    """Run a function on every task; position and result of each, as they end.

    Workers end with the process that started them, however that ends.

    Args:
        function: of a module, so that a worker finds it.
        tasks: small: they are sent to the workers.
        workers: processes; with 1, the work is done in this one.

    Raises:
        RunFailedError: a worker died.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from ((i, function(task)) for i, task in enumerate(tasks))
        return
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(tasks))
    pool = ProcessPoolExecutor(workers, context, _begin, (context.Value("i", 0), workers))
    running: dict[Any, int] = {}
    try:
        for future in _flow(
            lambda task: _submit(pool, function, task),
            tasks,
            running,
            room=lambda: 2 * workers,
            ended=lambda: wait(running, return_when=FIRST_COMPLETED).done,
        ):
            yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunFailedError(
            "a worker process died, perhaps for lack of memory; the same command goes on where it stopped "
            f"(now with --workers {workers}; fewer need less memory)"
        ) from error
    finally:
        processes = list((pool._processes or {}).values())  # no public name tells them from others of this process
        if running:  # interrupted, or failed
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
        pool.shutdown()


def _submit(pool: ProcessPoolExecutor, function: Callable[[Task], Result], task: Task) -> Any:
    """Submit a task; a worker that is started for it never hears of Ctrl-C, not while it imports either.

    Ctrl-C goes to all processes of a terminal; the first ends the others.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _flow(
    submit: Callable[[Task], Any],
    tasks: Iterable[Task],
    running: dict[Any, int],
    *,
    room: Callable[[], int],
    ended: Callable[[], Iterable[Any]],
) -> Iterator[Any]:
    """Handles of tasks as they end, which the caller takes out of the running; no more run than there is room for."""
    waiting = enumerate(tasks)
    while True:
        while len(running) < room() and (step := next(waiting, None)) is not None:
            running[submit(step[1])] = step[0]
        if not running:
            return
        yield from ended()


def _begin(started: Any, workers: int) -> None:
    """Set up a worker: its share of the cores, a GPU of its own where there are several, and its end."""
    import torch

    with started.get_lock():
        slot, started.value = started.value, started.value + 1
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, address: str, gpus: float = 0.0
) -> Generator[tuple[int, Result], None, None]:
    """Run a function on every task, on a Ray cluster; what a lost node was at is done again elsewhere.

    Args:
        function: of a module.
        tasks: as for ``run_local``; the paths in them must be the same on every node.
        address: of the cluster's head; "auto" takes the cluster this machine belongs to, or starts one here.
        gpus: share of a GPU that a task takes, where the cluster has any.

    Raises:
        PowerclipError: Ray is not installed, or there is no cluster at the address.
        RunFailedError: a task was lost again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise PowerclipError("--ray needs Ray, which is not installed; pip install 'powerclip[ray]'") from error
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(
                address=None if address == "auto" else address, log_to_driver=False, configure_logging=False,
                include_dashboard=False if address == "auto" else None,
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PowerclipError(f"no Ray cluster at {address}: {error}; start one with ray start --head") from error
    resources = ray.cluster_resources()
    share = gpus if resources.get("GPU") else 0.0
    remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES)(function)
    running: dict[Any, int] = {}
    try:
        for reference in _flow(
            remote.remote,
            tasks,
            running,
            # Asked anew each time: nodes come and go.
            room=lambda: 2 * max(1, int(ray.cluster_resources().get("CPU", 1))),
            ended=lambda: ray.wait(list(running))[0],
        ):
            yield running.pop(reference), ray.get(reference)
    except (ray.exceptions.RayError, OSError) as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, PowerclipError):
            raise error.cause from None
        raise RunFailedError(
            f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}; the same command goes on where it stopped"
        ) from error
    finally:
        if begun:
            ray.shutdown()
