"""WebDataset tars as img2dataset writes them (CC3M, CC12M, ...): each becomes one annotated shard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from powerclip.data.sample import CAPTION_EXTENSION, IMAGE_EXTENSIONS, BadSampleError, Sample
from powerclip.data.shards import MAX_SAMPLES, BrokenShardError, Entry, find_shards, stream_shard
from powerclip.prepare.items import Item, Source, bad, digest, make_key, make_sample, stamp
from powerclip.prepare.tables import CAPTION_COLUMNS
from powerclip.types import PowerclipError

PROBED = 100
"""Samples looked at to find where the captions lie."""


def open_tars(path: Path, caption_key: str | None) -> Source:
    """The pairs of the tars in a folder, or of one tar.

    Args:
        path: folder or file.
        caption_key: extension of the caption's file, or "json:KEY" for a key inside KEY.json ("json:a.b" for b in a);
            found by default: ``txt``, else a well-known key of the json.

    Raises:
        PowerclipError: the first tar has no images or no captions there.
    """
    shards = find_shards(path)
    found = _find_captions(shards[0], caption_key)
    return Source(
        chunks=[TarChunk(shard, found) for shard in shards],
        fingerprint=digest((shard.name for shard in shards), (stamp(shard) for shard in shards), [found]),
    )


@dataclass(frozen=True)
class TarChunk:
    """The samples of one tar."""

    shard: Path
    caption_key: str

    def items(self) -> Iterator[Item]:
        """The samples in order; what the tar holds beyond reason or twice is an item that cannot be used."""
        seen: set[int] = set()
        try:
            for i, entry in enumerate(stream_shard(self.shard)):
                name = f"{self.shard.name}/{entry.key[:200]}"
                if i >= MAX_SAMPLES:
                    yield bad(name, f"beyond the first {MAX_SAMPLES} samples of its tar")
                elif entry.key.startswith("/") or ".." in entry.key.split("/"):
                    yield bad(name, "name leads out of the tar")
                elif hash(entry.key) in seen:
                    yield bad(name, "key occurs twice in its tar")
                else:
                    seen.add(hash(entry.key))
                    yield Item(name=name, load=partial(_load, i, entry, self.caption_key))
        except BrokenShardError:
            yield bad(self.shard.name, "tar cut short")


def _load(index: int, entry: Entry, caption_key: str) -> Sample:
    files = dict(entry.files())
    if caption_key != CAPTION_EXTENSION:
        caption = _caption(files, caption_key)
        if files.get(CAPTION_EXTENSION) != caption:
            files.pop("phrases.json", None)  # of another caption
        files[CAPTION_EXTENSION] = caption
    key = entry.key if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_/-]{0,199}", entry.key) else make_key(index, entry.key)
    sample = Sample.from_members(key, files)
    return make_sample(
        key, sample.image, sample.caption, tree=sample.tree, metadata=sample.metadata, regions=sample.regions
    )


def _caption(files: dict[str, bytes], caption_key: str) -> bytes:
    if not caption_key.startswith("json:"):
        if caption_key not in files:
            raise BadSampleError("no caption")
        return files[caption_key]
    try:
        value: Any = json.loads(files.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise BadSampleError("malformed json") from error
    for part in caption_key.removeprefix("json:").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise BadSampleError("no caption")
    return value.encode("utf-8", errors="surrogatepass")


def _find_captions(shard: Path, caption_key: str | None) -> str:
    """Where the captions lie, seen to be there."""
    try:
        entries = list(islice(stream_shard(shard), PROBED))
    except BrokenShardError as error:
        raise PowerclipError(f"{shard} is no whole tar file ({error}); make it anew or take it out") from error
    extensions = sorted({extension for entry in entries for extension in entry.members})
    seen = f"files seen in {shard}: {', '.join(extensions[:30]) or 'none'}"
    if not set(extensions) & set(IMAGE_EXTENSIONS):
        raise PowerclipError(f"no image under {', '.join(IMAGE_EXTENSIONS)}; {seen}")
    if caption_key is None and CAPTION_EXTENSION in extensions:
        return CAPTION_EXTENSION
    keys: list[str] = []
    for entry in entries:
        try:
            files = entry.files(only=("json",))
            value = json.loads(files["json"])
        except (BadSampleError, KeyError, ValueError, RecursionError):
            continue
        keys = sorted(set(keys) | set(value)) if isinstance(value, dict) else keys
    if caption_key is None:
        known = next((f"json:{key}" for key in CAPTION_COLUMNS if key in keys), None)
        if known is not None:
            return known
        if "njson" in extensions:
            return "txt"  # which the sample itself takes from the njson
    elif caption_key in extensions or (
        caption_key.startswith("json:") and caption_key.removeprefix("json:").split(".")[0] in keys
    ):
        return caption_key
    wanted = f"under {caption_key}" if caption_key else "under txt, nor inside json under a common name"
    inside = f"; keys of the json: {', '.join(keys[:30])}" if keys else ""
    raise PowerclipError(
        f"no caption {wanted}; {seen}{inside}; choose with --caption-key EXTENSION or --caption-key json:KEY"
    )
