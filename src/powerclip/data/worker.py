"""Decoding processes: how they handle signals, and how their death is reported."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch._C import _error_if_any_worker_fails

from powerclip.errors import RunFailedError


def outlast_first_signal(_worker: int) -> None:
    """Let a decoding process ignore its first signal: the trainer gets it too, and needs it for the last step."""

    def ignore_once(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, ignore_once)


@contextmanager
def worker_death_as_error() -> Iterator[None]:
    """In this block, a decoding process that dies, or has died since the last one, raises RunFailedError.

    PyTorch raises from a handler of SIGCHLD, wherever the main process happens to be: in the middle of an optimiser's
    step, or of a checkpoint. So that handler is installed only while the processes' work is waited for.
    """
    main = threading.current_thread() is threading.main_thread()
    outside = signal.getsignal(signal.SIGCHLD)
    try:
        if main:
            signal.signal(signal.SIGCHLD, lambda *_: _error_if_any_worker_fails())
        _error_if_any_worker_fails()
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # an error raised within one has another message
            raise
        raise RunFailedError(
            f"a decoding process died: {str(error).strip('. ')}; if the machine ran out of memory, use fewer "
            "data.workers; continue with --resume auto"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGCHLD, outside or signal.SIG_DFL)
