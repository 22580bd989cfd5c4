import pytest

from powerclip.distributed import any_rank, broadcast, is_shared, rank0_first, wait_for_all
from powerclip.errors import PowerclipError
from tests.support.processes import run_on_processes


def refuse(process):
    raise PowerclipError(f"refused by {process}")


def ask(process, size, folder):
    done = []
    rank0_first(lambda: done.append(process))
    assert rank0_first(lambda: {"from": process}) == {"from": 0}
    with pytest.raises(PowerclipError, match="refused by 0"):
        rank0_first(lambda: refuse(process))
    wait_for_all()
    own = folder / str(process)
    own.mkdir()
    return (
        broadcast({"from": process, "numbers": [process] * 3}),
        any_rank(process == 1, False, True),
        done,
        is_shared(folder),
        is_shared(own if process else folder),
    )


def test_the_first_process_speaks_and_any_may_object(tmp_path):
    for process, (value, flags, done, shared, own) in enumerate(run_on_processes(2, ask, tmp_path, tmp_path)):
        assert value == {"from": 0, "numbers": [0, 0, 0]}
        assert flags == (True, False, True)
        assert done == ([0] if process == 0 else [])
        assert (shared, own) == (True, False)


def test_one_process_answers_itself():
    done = []
    rank0_first(lambda: done.append(True))
    assert done
    assert broadcast([1, 2]) == [1, 2]
    assert any_rank(True, False) == (True, False)
