"""A local HTTP server plays a shard store that stalls, resets, answers 500, never ends, lies, or goes away."""

import contextlib
import hashlib
import http.server
import json
import logging
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from powerclip.data import remote
from powerclip.data.index import open_index
from powerclip.data.loader import open_data
from powerclip.data.remote import RetryPolicy, ShardCache, fetch
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.scenes import generate
from tests.support.loaders import epoch_of, loader_of

QUICK = RetryPolicy(timeout_s=0.3, attempts=3, first_wait_s=0.01)


class Store(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges; ``faults`` are what the next requests for a tar meet with, in order.

    "short" breaks off after 5000 bytes, and "cut" so that HTTP cannot tell it from the end; "replaced" does too, and
    the file is another one then.
    """

    faults: list[str]
    asked: list[tuple[str, str | None]]
    validator = "ETag"
    """How it tells versions of a file apart."""
    honest = True
    """Whether it looks at If-Range."""

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        fault = self.faults.pop(0) if self.faults and self.path.endswith(".tar") else ""
        path = Path(self.translate_path(self.path))
        if fault == "500":
            return self.send_error(500)
        if fault in ("endless", "drip") or self.path == "/endless/index.json":
            return self.send_without_end(fault)
        if not path.is_file():
            return self.send_error(404)
        data, start = path.read_bytes(), 0
        quote = '"' if self.validator == "ETag" else ""
        version = f"{quote}{hashlib.sha256(data).hexdigest()}{quote}"
        wanted, same = self.headers.get("Range"), not self.honest or self.headers.get("If-Range") == version
        if wanted and same and fault != "no ranges":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            at = start + 100 if fault == "elsewhere" else start
            self.send_header("Content-Range", f"bytes {at}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if self.validator:
            self.send_header(self.validator, version)
        if fault not in ("cut", "no length"):
            self.send_header("Content-Length", str(10**15 if fault == "huge" else len(data) - start))
        self.end_headers()
        if fault in ("stall", "reset", "short", "cut", "replaced"):
            self.wfile.write(data[start : start + 5000])
            self.wfile.flush()
            if fault == "stall":
                self.server.released.wait(10)
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif fault == "replaced":
                path.write_bytes((self.folder / "shard-000001.tar").read_bytes())
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def send_without_end(self, fault):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # until the client has had enough
            while not self.server.released.wait(0.02 if fault == "drip" else 0):
                self.wfile.write(b"0" if fault == "drip" else bytes(2**20))

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
        fetch(f"{store.url}/shard-000000.tar", tmp_path / "copy", retry=QUICK, max_bytes=2**30)
    assert (tmp_path / "copy").read_bytes() == (store.folder / "shard-000000.tar").read_bytes()
    assert len(caplog.records) == sum(fault != "no ranges" for fault in faults)
    if faults == ["short"]:  # a reset may take with it what was sent before
        assert store.asked[-1][1] == "bytes=5000-"


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("validator", ["ETag", "Last-Modified", None])
def test_a_file_replaced_between_two_ranges_is_read_from_the_start_again(store, tmp_path, validator, honest):
    store.validator, store.honest = validator, honest
    store.faults[:] = ["replaced"]
    fetch(f"{store.url}/shard-000000.tar", tmp_path / "copy", retry=QUICK, max_bytes=2**30)
    assert (tmp_path / "copy").read_bytes() == (store.folder / "shard-000001.tar").read_bytes()


def test_a_part_from_elsewhere_is_not_taken(store, tmp_path):
    store.faults[:] = ["short", "elsewhere"]
    fetch(f"{store.url}/shard-000000.tar", tmp_path / "copy", retry=QUICK, max_bytes=2**30)
    assert (tmp_path / "copy").read_bytes() == (store.folder / "shard-000000.tar").read_bytes()
    assert [part for _, part in store.asked] == [None, "bytes=5000-", None]


@pytest.mark.parametrize("fault", ["endless", "huge"])
def test_a_body_larger_than_the_cache_ends_there(store, tmp_path, fault):
    store.faults[:] = [fault] * 9
    cache = ShardCache(folder=tmp_path / "copies", max_bytes=3 * 2**20, retry=QUICK)
    with pytest.raises(PowerclipError, match=r"shard-000000.tar has .*, where at most 3145728 are allowed .*cache-gib"):
        cache.path(f"{store.url}/shard-000000.tar")
    assert len(store.asked) == 1
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) == 0


def test_a_body_that_drips_is_given_up(store, cache):
    store.faults[:] = ["drip"] * 3
    with pytest.raises(RunFailedError, match=r"in 3 attempts in a row.*it sent \d+ bytes in 0 s"):
        cache.path(f"{store.url}/shard-000000.tar")
    assert len(store.asked) == 3


def test_a_copy_that_was_cut_is_dropped_and_fetched_again(store, cache):
    store.faults[:] = ["cut", "no length"]
    opened = open_data(f"{store.url}/shard-000000.tar", cache=cache)
    assert opened.counts == [8]
    assert [path for path, _ in store.asked] == ["/index.json", "/shard-000000.tar", "/shard-000000.tar"]


def test_a_copy_that_is_cut_each_time_is_fetched_three_times_and_not_for_each_sample(store, cache):
    open_data(store.folder)  # which writes index.json
    loader = loader_of(shards_of(store), cache=cache, batch_size=8, max_bad_share=0.5)
    (store.folder / "shard-000001.tar").write_bytes((store.folder / "shard-000001.tar").read_bytes()[:9000])
    list(epoch_of(loader))
    assert loader.bad == {"shard changed or truncated": 8}
    assert [path for path, _ in store.asked].count("/shard-000001.tar") == 3
    with pytest.raises(
        PowerclipError, match=r"shard-000001.tar was fetched 3 times and is not a complete tar \(.+\); "
    ):
        open_index(loader.dataset.shards[1])


def test_progress_resets_the_attempts(store, tmp_path):
    store.faults[:] = ["short"] * 6
    fetch(f"{store.url}/shard-000000.tar", tmp_path / "copy", retry=QUICK, max_bytes=2**30)
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


@pytest.mark.parametrize("samples", [10**9, -1, 8.0, True, "8", None])
def test_an_index_that_cannot_be_is_not_believed(store, cache, samples):
    shards = {f"shard-00000{i}.tar": {"samples": samples if i == 1 else 8} for i in range(3)}
    (store.folder / "index.json").write_text(json.dumps({"shards": shards}))
    assert open_data(shards_of(store), cache=cache).counts == [8, 8, 8]
    assert [path for path, _ in store.asked].count("/shard-000001.tar") == 1


def test_an_index_without_end_is_none(store, cache):
    assert cache.read_json(f"{store.url}/endless/index.json") is None
    assert not list(cache.folder.iterdir())


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


def replace_shards(store, seed):
    """Shards of the same names and counts."""
    for path in store.folder.glob("*.tar"):
        path.unlink()
    write_shards(generate("train", count=24, seed=seed), store.folder, samples_per_shard=8)


def test_a_copy_of_an_earlier_version_is_fetched_again_where_the_index_says_so(store, cache):
    open_data(store.folder)  # which writes index.json
    for shard in open_data(shards_of(store), cache=cache).shards:
        open_index(shard)
    replace_shards(store, seed=5)
    here = open_data(store.folder)
    there = open_data(shards_of(store), cache=cache)
    assert there.provenance.same_as(here.provenance)
    for near, far in zip(here.shards, there.shards, strict=True):
        assert near.path().read_bytes() == open_index(far).shard.read_bytes()


def test_a_file_replaced_in_the_store_does_not_pass_for_the_one_that_was_counted(store, cache):
    first = open_data(shards_of(store), cache=cache)  # which notes what the shards hold
    replace_shards(store, seed=5)
    for shard in first.shards:
        cache.path(shard.location).unlink()
    for _ in range(2):
        with pytest.raises(RunFailedError, match=r"shard-000001.tar is not the file that was counted: it was replaced"):
            open_index(first.shards[1])
    assert [path for path, _ in store.asked].count("/shard-000001.tar") == 3
    open_index(open_data(f"{store.url}/shard-000001.tar", cache=cache).shards[0])  # a new run finds what is there


def test_names_of_shards_may_be_in_capitals(store, tmp_path):
    for path in store.folder.glob("*.tar"):
        path.rename(path.with_suffix(".TAR"))
    size = max(path.stat().st_size for path in store.folder.glob("*.TAR"))
    cache = ShardCache(folder=tmp_path / "copies", max_bytes=2 * size, retry=QUICK)
    assert open_data(f"{store.url}/shard-{{000000..000002}}.TAR", cache=cache).counts == [8, 8, 8]
    assert len(list(cache.folder.glob("*.TAR"))) == 2


def test_files_of_locks_do_not_grow_in_number_with_the_shards(tmp_path, monkeypatch):
    """A digit of their names has 16 values. No copy is fetched by two at once."""
    monkeypatch.setattr(remote, "LOCK_DIGITS", 1)
    busy: Counter[str] = Counter()

    def slow_fetch(url, path, **_):
        busy[url] += 1
        assert busy[url] == 1
        path.write_bytes(b"")
        time.sleep(0.01)
        path.write_text(url)
        busy[url] -= 1

    monkeypatch.setattr(remote, "fetch", slow_fetch)
    cache, urls = ShardCache(folder=tmp_path, max_bytes=500), [f"http://store/{i}.tar" for i in range(60)]

    def read(url):
        with contextlib.suppress(FileNotFoundError):  # another thread makes room
            assert cache.path(url).read_text() == url

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, urls * 2))
    assert len(list(tmp_path.glob("*.tar"))) < 30
    assert len(list(tmp_path.glob("*.lock"))) <= 16


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


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/a b.tar", "it holds ' '; write %20"),
        ("http://127.0.0.1/caf\u00e9.tar", "it holds '\u00e9'; write %C3%A9"),
        ("http://127.0.0.1/a\n.tar", r"it holds '\\n'; write %0A"),
        ("http://ho st/a.tar", "its host holds a space"),
        ("http:///a.tar", "it names no host; write http://HOST/PATH"),
        ("https://:80/a.tar", "it names no host; write https://HOST/PATH"),
        ("http://host:port/a.tar", "[Pp]ort .*'port'"),
        ("http://127.0.0.1:99999/a.tar", "[Pp]ort out of range"),
        ("http://[::1/a.tar", "Invalid IPv6 URL"),
        ("http://a..b/a.tar", "label empty"),
        ("http://user:word@host/a.tar", "it holds a user name, which is not supported; leave it out"),
    ],
)
def test_a_malformed_url_fails_at_once(url, reason, tmp_path, caplog):
    cache = ShardCache(folder=tmp_path / "copies", retry=QUICK)
    for read in (
        lambda: open_data(url, cache=cache),
        lambda: cache.path(url),
        lambda: fetch(url, tmp_path / "copy", retry=cache.retry, max_bytes=2**30),
    ):
        with pytest.raises(PowerclipError, match=f"is not a valid URL: .*{reason}") as caught:
            read()
        assert not isinstance(caught.value, RunFailedError)
    assert not caplog.records
    assert not cache.folder.exists()


def test_other_stores_are_read_through_fsspec(cache):
    import fsspec

    with fsspec.open("memory://store/a.tar", "wb") as file:
        file.write(b"content")
    assert cache.path("memory://store/a.tar").read_bytes() == b"content"
    with fsspec.open("memory://store/a b.tar", "wb") as file:
        file.write(b"spaced")
    assert cache.path("memory://store/a b.tar").read_bytes() == b"spaced"
    with pytest.raises(PowerclipError, match="is not there"):
        cache.path("memory://store/b.tar")
    with pytest.raises(PowerclipError, match="cannot read nosuch:// URLs"):
        cache.path("nosuch://store/b.tar")


def test_a_file_of_another_store_that_is_replaced_while_it_is_read_is_read_again(cache, monkeypatch):
    import fsspec

    with fsspec.open("memory://store/c.tar", "wb") as file:
        file.write(b"old" * 1000)
    stores, real = fsspec.filesystem("memory"), fsspec.filesystem("memory").open

    def open_and_replace(name, mode):
        monkeypatch.undo()
        stream = real(name, mode)
        with fsspec.open("memory://store/c.tar", "wb") as file:
            file.write(b"new" * 1000)
        return stream

    monkeypatch.setattr(stores, "open", open_and_replace)
    assert cache.path("memory://store/c.tar").read_bytes() == b"new" * 1000
