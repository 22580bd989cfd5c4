"""A local HTTP server plays a shard store that stalls, resets, answers 500, or goes away."""

import contextlib
import http.server
import json
import logging
import socket
import struct
import threading
from functools import partial
from pathlib import Path

import pytest

from powerclip.data.loader import open_data
from powerclip.data.remote import RetryPolicy, ShardCache, fetch
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.scenes import generate
from tests.support.loaders import epoch_of, loader_of

QUICK = RetryPolicy(timeout_s=0.3, attempts=3, first_wait_s=0.01)


class Store(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges; ``faults`` are what the next requests for a tar meet with, in order."""

    faults: list[str]
    asked: list[tuple[str, str | None]]

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        fault = self.faults.pop(0) if self.faults and self.path.endswith(".tar") else ""
        path = Path(self.translate_path(self.path))
        if fault == "500":
            return self.send_error(500)
        if not path.is_file():
            return self.send_error(404)
        data, start = path.read_bytes(), 0
        wanted = self.headers.get("Range")
        if wanted and fault != "no ranges":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if fault in ("stall", "reset", "short"):
            self.wfile.write(data[start : start + 5000])
            self.wfile.flush()
            if fault == "stall":
                self.server.released.wait(10)
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def finish(self):
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_):
        pass


class Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    released: threading.Event

    def handle_error(self, *_):
        pass


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    write_shards(generate("train", count=24, seed=0), folder, samples_per_shard=8)
    handler = type("Handler", (Store,), {"faults": [], "asked": []})
    server = Quiet(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.folder, handler.url = folder, f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path):
    return ShardCache(folder=tmp_path / "copies", retry=QUICK)


def shards_of(store):
    return f"{store.url}/shard-{{000000..000002}}.tar"


@pytest.mark.parametrize("faults", [[], ["500"], ["stall"], ["reset"], ["short"], ["reset", "no ranges"]])
def test_a_file_arrives_whole_whatever_happens_on_the_way(store, tmp_path, faults, caplog):
    store.faults[:] = faults
    with caplog.at_level(logging.WARNING):
        fetch(f"{store.url}/shard-000000.tar", tmp_path / "copy", retry=QUICK)
    assert (tmp_path / "copy").read_bytes() == (store.folder / "shard-000000.tar").read_bytes()
    assert len(caplog.records) == sum(fault != "no ranges" for fault in faults)
    if faults == ["short"]:  # a reset may take with it what was sent before
        assert store.asked[-1][1] == "bytes=5000-"


def test_progress_resets_the_attempts(store, tmp_path):
    store.faults[:] = ["short"] * 6
    fetch(f"{store.url}/shard-000000.tar", tmp_path / "copy", retry=QUICK)
    assert len(store.asked) == 7 > QUICK.attempts


def test_a_store_that_stays_away_is_reported(store, tmp_path, cache):
    store.faults[:] = ["500"] * 3
    with pytest.raises(RunFailedError, match=r"shard-000000.tar could not be read in 3 attempts in a row.*500"):
        cache.path(f"{store.url}/shard-000000.tar")
    with pytest.raises(PowerclipError, match=r"answers 404 .*check the URL"):
        cache.path(f"{store.url}/shard-000009.tar")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/a.tar"
    with pytest.raises(RunFailedError, match=r"refused\); check the store, then continue with --resume auto"):
        cache.path(gone)
    assert not list(cache.folder.glob("*.tar"))


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_give_the_batches_of_local_ones(store, cache, workers):
    remote = loader_of(shards_of(store), workers=workers, cache=cache)
    store.faults[:] = ["500", "reset"]
    local = loader_of(store.folder)
    for a, b in zip(epoch_of(remote, 1), epoch_of(local, 1), strict=True):
        assert a.keys == b.keys
        assert a.images.equal(b.images)


def test_an_index_beside_the_shards_saves_reading_them(store, cache):
    here = open_data(store.folder)
    assert open_data(shards_of(store), cache=cache).digest == here.digest
    assert [path for path, _ in store.asked] == ["/index.json", "/shard-000000.tar"]


def test_an_index_without_digests_counts_too(store, cache):
    shards = {f"shard-00000{i}.tar": {"stamp": [1, 2], "samples": 8} for i in range(3)}
    (store.folder / "index.json").write_text(json.dumps({"shards": shards}))
    opened = open_data(shards_of(store), cache=cache)
    assert opened.counts == [8, 8, 8]
    assert [path for path, _ in store.asked] == ["/index.json", "/shard-000000.tar"]
    assert opened.digest == open_data(shards_of(store), cache=cache).digest


def test_counts_are_noted_and_copies_bounded(store, tmp_path):
    size = max(path.stat().st_size for path in store.folder.glob("*.tar"))
    cache = ShardCache(folder=tmp_path / "copies", max_bytes=2 * size, retry=QUICK)
    first = open_data(shards_of(store), cache=cache)
    assert len(list(cache.folder.glob("*.tar"))) == 2
    with (cache.folder / "summaries.jsonl").open("a") as notes:
        notes.write('["http://cut/sho')  # as a crash would leave it
    asked = len(store.asked)
    loader = loader_of(shards_of(store), cache=cache)
    assert {path for path, _ in store.asked[asked:]} <= {"/index.json", "/shard-000000.tar"}
    assert open_data(shards_of(store), cache=cache) == first
    assert sorted(key for batch in epoch_of(loader) for key in batch.keys) == sorted(
        key for batch in epoch_of(loader_of(store.folder)) for key in batch.keys
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_vanishes_in_the_middle_ends_the_epoch_with_a_message(store, cache, workers):
    open_data(store.folder)
    loader = loader_of(shards_of(store), workers=workers, cache=cache)
    store.faults[:] = ["500"] * 100
    with pytest.raises(RunFailedError, match=r"^http.*could not be read in 3 attempts"):
        list(epoch_of(loader))
    assert not loader.bad


def test_a_url_must_name_tars(store, cache):
    with pytest.raises(
        PowerclipError, match=r"does not name a .tar file; a store cannot be listed, .*\{000000..000099\}"
    ):
        open_data(store.url, cache=cache)


def test_other_stores_are_read_through_fsspec(cache):
    import fsspec

    with fsspec.open("memory://store/a.tar", "wb") as file:
        file.write(b"content")
    assert cache.path("memory://store/a.tar").read_bytes() == b"content"
    with pytest.raises(PowerclipError, match="is not there"):
        cache.path("memory://store/b.tar")
    with pytest.raises(PowerclipError, match="cannot read nosuch:// URLs"):
        cache.path("nosuch://store/b.tar")
