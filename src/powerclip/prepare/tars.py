"""WebDataset tars as img2dataset writes them (CC3M, CC12M, ...): each becomes one annotated shard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from powerclip.data.images import decode_image
from powerclip.data.sample import CAPTION_EXTENSION, IMAGE_EXTENSIONS, Sample
from powerclip.data.shards import MAX_SAMPLES, BrokenShardError, SamplePlace, find_shards, stream_shard
from powerclip.data.validate import check_annotations
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare.source import Item, Source, bad, digest, make_key, make_sample, stamp
from powerclip.prepare.tables import CAPTION_COLUMNS

PROBED = 100
"""Samples looked at to find where the captions lie."""


def open_tars(path: Path, caption_key: str | None, *, keep: bool = True) -> Source:
    """The pairs of the tars in a folder, or of one tar.

    Args:
        path: folder or file.
        caption_key: extension of the caption's file, or "json:KEY" for a key inside KEY.json ("json:a.b" for b in a);
            found by default: ``txt``, else a well-known key of the json.
        keep: the phrases and regions that are there.

    Raises:
        PowerclipError: the first samples have no images or no captions there.
    """
    shards = find_shards(path)
    found = _find_captions(shards, caption_key)
    return Source(
        chunks=[TarChunk(shard, found, keep) for shard in shards],
        fingerprint=digest((shard.name for shard in shards), (stamp(shard) for shard in shards), [found]),
    )


@dataclass(frozen=True)
class TarChunk:
    """The samples of one tar."""

    shard: Path
    caption_key: str
    keep: bool = True
    """The phrases and regions that are there."""

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
                    yield Item(name=name, load=partial(_load, i, entry, self.caption_key, self.keep))
        except BrokenShardError:
            yield bad(self.shard.name, "tar damaged or cut short")


def _load(index: int, entry: SamplePlace, caption_key: str, keep: bool) -> Sample:
    files = entry.files(only=_needed(entry, caption_key, keep))
    if caption_key != CAPTION_EXTENSION:
        caption = _caption(files, caption_key)
        if files.get(CAPTION_EXTENSION) != caption:
            files.pop("phrases.json", None)  # of another caption, as is the next
            files.pop("njson", None)
        files[CAPTION_EXTENSION] = caption
    key = entry.key if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_/-]{0,199}", entry.key) else make_key(index, entry.key)
    found = Sample.from_members(key, files)
    sample = make_sample(
        key, found.image, found.caption, tree=found.tree, metadata=found.metadata, regions=found.regions
    )
    image = decode_image(sample.image)
    check_annotations(sample, (image.height, image.width))
    return sample


def _needed(entry: SamplePlace, caption_key: str, keep: bool) -> set[str]:
    """The files that are read: a sample may hold others, of any size."""
    image = next((extension for extension in IMAGE_EXTENSIONS if extension in entry.members), None)
    needed = {CAPTION_EXTENSION, "json", *([image] if image else [])}
    if not caption_key.startswith("json:"):
        needed.add(caption_key)
    if keep:
        needed |= {"phrases.json", "regions.json", "njson"}
    return needed


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


def _find_captions(shards: Sequence[Path], caption_key: str | None) -> str:
    """Where the captions lie, seen to be there."""
    shard, entries = _first_samples(shards)
    with_image = [entry for entry in entries if set(IMAGE_EXTENSIONS) & set(entry.members)]
    beside = {extension for entry in with_image for extension in entry.members}
    extensions = sorted({extension for entry in entries for extension in entry.members})
    seen = f"files seen in {shard}: {', '.join(extensions[:30])}"
    if len(entries) > 1 and all(len(entry.members) == 1 for entry in entries):
        seen += "; each stands alone, but a sample's files must lie side by side (tar --sort=name)"
    if not with_image:
        raise PowerclipError(f"no image under {', '.join(IMAGE_EXTENSIONS)}; {seen}")
    if caption_key is None and CAPTION_EXTENSION in beside:
        return CAPTION_EXTENSION
    keys = _json_keys(with_image)
    if caption_key is None:
        known = next((f"json:{key}" for key in CAPTION_COLUMNS if key in keys), None)
        if known is not None:
            return known
    elif caption_key.startswith("json:"):
        if caption_key.removeprefix("json:").split(".")[0] in keys:
            return caption_key
    elif (extension := caption_key.removeprefix(".").lower()) in beside:
        return extension
    wanted = f"under {caption_key}" if caption_key else "under txt, nor inside json under a common name"
    inside = f"; keys of the json: {', '.join(keys[:30])}" if keys else ""
    raise PowerclipError(
        f"no caption {wanted}; {seen}{inside}; choose with --caption-key EXTENSION or --caption-key json:KEY"
    )


def _first_samples(shards: Sequence[Path]) -> tuple[Path, list[SamplePlace]]:
    """The first tar that holds a sample, and its first samples."""
    broken = ""
    for shard in shards:
        entries: list[SamplePlace] = []
        try:
            for entry in islice(stream_shard(shard), PROBED):
                entries.append(entry)
        except BrokenShardError as error:
            broken = broken or f"{shard} is no whole tar file ({error}); make it anew or take it out"
        if entries:
            return shard, entries
    among = f"the {len(shards)} tars in {shards[0].parent}" if len(shards) > 1 else f"{shards[0]}"
    raise PowerclipError(broken or f"no sample in {among}; expected KEY.jpg, .png or .webp with KEY.txt or KEY.json")


def _json_keys(entries: Iterable[SamplePlace]) -> list[str]:
    keys: set[str] = set()
    for entry in entries:
        try:
            value = json.loads(entry.files(only=("json",))["json"])
        except (BadSampleError, KeyError, ValueError, RecursionError):
            continue
        keys |= set(value) if isinstance(value, dict) else set()
    return sorted(keys)
