"""Where tasks run: in this process, in several, or on a Ray cluster; each result is reported as soon as it is there."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from powerclip.errors import PowerclipError, RunFailedError, needs_extra

Task = TypeVar("Task")
Result = TypeVar("Result")

RETRIES = 10
"""Ray restarts a task this many times if its node or process is lost."""


def run_local(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int = 1
) -> Generator[tuple[Task, Result], None, None]:
    """Run a function of a module on every task; yields each task with its result, in the order in which they finish.

    Tasks are taken as workers become free, and pickled. The worker processes end when the process that started them
    ends, in whatever way; with one worker, the work is done in this process. RunFailedError if a worker died.
    """
    waiting = iter(tasks)
    first = list(islice(waiting, workers))
    waiting, workers = chain(first, waiting), len(first)
    if workers <= 1:
        yield from ((task, function(task)) for task in waiting)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (context.Value("i", 0), workers))
    running: dict[Any, Task] = {}
    try:
        while True:
            for task in islice(waiting, 2 * workers - len(running)):
                # Ctrl-C goes to all processes of a terminal. A worker that is started here never receives it, not even
                # while it imports: this process ends the others.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    running[pool.submit(function, task)] = task
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunFailedError(
            "a worker process died, perhaps for lack of memory (or, in a script, of a line "
            'if __name__ == "__main__":, as workers import it); the same command continues where it stopped '
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


def _begin(started: Any, workers: int) -> None:
    """Set up a worker: its share of the cores, a GPU of its own if there are several, and its end."""
    import torch

    from powerclip.cores import available_cores

    with started.get_lock():
        slot, started.value = started.value, started.value + 1
    torch.set_num_threads(max(1, available_cores() // workers))
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_ray(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, address: str, gpus: float = 0.0
) -> Generator[tuple[Task, Result], None, None]:
    """As ``run_local``, on a Ray cluster, whose nodes share the paths; the tasks of a lost node run again elsewhere.

    ``address`` is that of the cluster's head; "auto" uses the cluster this machine belongs to, or starts one here. A
    task takes ``gpus``, a share of a GPU, if the cluster has any. PowerclipError if Ray is not installed, or there is
    no cluster at the address; RunFailedError if a task was lost repeatedly.
    """
    with needs_extra("--ray", "ray"):
        import ray
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(
                address=None if address == "auto" else address, log_to_driver=False, configure_logging=False,
                include_dashboard=False if address == "auto" else None,
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PowerclipError(f"no Ray cluster at {address}: {error}; start one with ray start --head") from error
    share = gpus if ray.cluster_resources().get("GPU") else 0.0
    remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES)(function)
    waiting = iter(tasks)
    running: dict[Any, Task] = {}
    try:
        while True:
            room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # each time: nodes come and go
            for task in islice(waiting, max(0, room - len(running))):
                running[remote.remote(task)] = task
            if not running:
                return
            (reference,) = ray.wait(list(running))[0]
            yield running.pop(reference), ray.get(reference)
    except (ray.exceptions.RayError, OSError) as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, PowerclipError):
            raise error.cause from None
        message = f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}"
        raise RunFailedError(f"{message}; the same command continues where it stopped") from error
    finally:
        if started:
            ray.shutdown()
