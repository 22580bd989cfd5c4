"""WebDataset tars as img2dataset writes them (CC3M, CC12M, ...): each becomes one annotated shard."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from PIL.Image import Image

from powerclip.config import PrepareConfig
from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.data.limits import MAX_SAMPLES
from powerclip.data.published import GRID, patch_masks
from powerclip.data.published import PARSER as PUBLISHED_PARSER
from powerclip.data.sample import CAPTION_EXTENSION, IMAGE_EXTENSIONS, REGION_FILES, Sample
from powerclip.data.shards import BrokenShardError, SamplePlace, find_shards, stream_shard
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare.pairs import Item, Pair, Source, bad, count_kinds, decoded, digest, make_key, stamp, unused
from powerclip.prepare.tables import CAPTION_COLUMNS
from powerclip.regions.annotation import MAX_MASK_PIXELS
from powerclip.regions.masks import scaled_annotation

PROBED = 100
"""The captions are looked for in the first samples, this many."""

READ = (*IMAGE_EXTENSIONS, *(suffix[1:] for suffix in IMAGE_SUFFIXES if suffix[1:] not in IMAGE_EXTENSIONS))
"""Extensions of images, in the order of preference."""


ANNOTATIONS = ("phrases.json", "njson", *REGION_FILES)
"""Extensions of annotations that are kept."""


def open_tars(path: Path, config: PrepareConfig) -> Source:
    """The pairs of the tars in a folder, or of one tar.

    PowerclipError if the first samples have no images, or no captions where they are expected.
    """
    shards = find_shards(path)
    caption_key = _find_captions(shards, config.caption_key)
    return Source(
        chunks=[partial(tar_items, shard, caption_key, keep=not config.replace_annotations) for shard in shards],
        count=len(shards),
        fingerprint=digest((shard.name for shard in shards), (stamp(shard) for shard in shards), [caption_key]),
        ignored=count_kinds(set(path.iterdir()) - set(shards)) if path.is_dir() else {},
    )


def tar_items(shard: Path, caption_key: str, *, keep: bool = True) -> Iterator[Item]:
    """The samples of a tar in order; repeated keys, and samples beyond the limit, are items that cannot be used.

    Other files (hidden ones, links, extensions that are not read) follow as items without use.

    The captions are under an extension, or in "json:KEY" ("json:a.b" for b in a). ``keep`` keeps phrases and regions.
    """
    seen: set[int] = set()
    ignored = Counter[str]()
    try:
        for i, entry in enumerate(stream_shard(shard, ignored)):
            name = f"{shard.name}/{entry.key[:200]}"
            if i >= MAX_SAMPLES:
                yield bad(name, f"beyond the first {MAX_SAMPLES} samples of its tar")
            elif entry.key.startswith("/") or ".." in entry.key.split("/"):
                yield bad(name, "path leads outside the tar")
            elif hash(entry.key) in seen:
                yield bad(name, "key occurs twice in its tar")
            else:
                seen.add(hash(entry.key))
                yield Item(name, partial(_load, i, entry, caption_key, keep))
                read = {caption_key, "json", _image(entry), *(ANNOTATIONS if keep else ())}
                yield from (unused(name, f".{extension[:19]}") for extension in entry.members if extension not in read)
    except BrokenShardError:
        yield bad(shard.name, "tar damaged or truncated")
    for kind, number in ignored.items():
        yield from repeat(unused(shard.name, kind), number)


def _load(index: int, entry: SamplePlace, caption_key: str, keep: bool) -> Pair:
    image = _image(entry)
    annotations = ANNOTATIONS if keep else ()
    files = entry.files(only=(CAPTION_EXTENSION, "json", caption_key, image, *annotations))  # others may be of any size
    if caption_key != CAPTION_EXTENSION:
        caption = _caption(files, caption_key)
        if files.get(CAPTION_EXTENSION) != caption:
            files.pop("phrases.json", None)  # they belong to another caption
            files.pop("njson", None)
        files[CAPTION_EXTENSION] = caption
    if image and image not in IMAGE_EXTENSIONS:
        files[IMAGE_EXTENSIONS[0]] = files.pop(image)  # ``decoded`` converts it
    key = entry.key if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_/-]{0,199}", entry.key) else make_key(index, entry.key)
    pair = decoded(Sample.from_members(key, files))
    return pair if "phrases.json" in files and "regions.json" in files else _converted(*pair)


def _converted(sample: Sample, image: Image) -> Pair:
    """A pair of the published shards with annotations that follow any tokenizer and crop; others as they are."""
    tree, regions = sample.tree, sample.regions
    if tree is not None and tree.parser == PUBLISHED_PARSER:
        tree = tree.over_words(sample.caption)
    if regions is None and sample.patch_regions is not None:
        masks = patch_masks(sample.patch_regions).reshape(-1, *GRID)
        masks = masks[masks.any(axis=(1, 2))]
        if len(masks) * image.height * image.width > MAX_MASK_PIXELS:
            raise BadSampleError("too many regions for the size of the image")
        regions = scaled_annotation(masks, [1.0] * len(masks), image, proposer="samlens")
    return replace(sample, tree=tree, regions=regions), image


def _image(entry: SamplePlace) -> str:
    """The extension of a sample's image, "" if it has none."""
    return next((extension for extension in READ if extension in entry.members), "")


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
    """The key of the captions, found in the first samples."""
    shard, entries = _first_samples(shards)
    with_image = [entry for entry in entries if _image(entry)]
    present = {extension for entry in with_image for extension in entry.members}
    seen = f"files seen in {shard}: {', '.join(sorted({e for entry in entries for e in entry.members})[:30])}"
    if len(entries) > 1 and all(len(entry.members) == 1 for entry in entries):
        seen += "; each is alone, but the files of a sample must follow one another (tar --sort=name)"
    if not with_image:
        raise PowerclipError(f"no image under {', '.join(READ)}; {seen}")
    extension = CAPTION_EXTENSION if caption_key is None else caption_key.removeprefix(".").lower()
    if extension in present:
        return extension
    keys = _json_keys(with_image)
    wanted = [f"json:{key}" for key in CAPTION_COLUMNS] if caption_key is None else [caption_key]
    for name in wanted:
        if name.startswith("json:") and name.removeprefix("json:").split(".")[0] in keys:
            return name
    where = f"under {caption_key}" if caption_key else "under txt, nor inside json under a common name"
    seen += f"; keys of the json: {', '.join(sorted(keys)[:30])}" if keys else ""
    raise PowerclipError(f"no caption {where}; {seen}; choose with --caption-key EXTENSION or --caption-key json:KEY")


def _first_samples(shards: Sequence[Path]) -> tuple[Path, list[SamplePlace]]:
    """The first tar that holds a sample, and its first samples."""
    among = f"the {len(shards)} tars in {shards[0].parent}" if len(shards) > 1 else f"{shards[0]}"
    broken = ""
    for shard in shards:
        entries: list[SamplePlace] = []
        try:
            for entry in islice(stream_shard(shard), PROBED):
                entries.append(entry)
        except BrokenShardError as error:
            broken = broken or f"{shard} is truncated or not a tar file ({error}); re-create or remove it"
        if entries:
            return shard, entries
    raise PowerclipError(broken or f"no sample in {among}; expected KEY.jpg, .png or .webp with KEY.txt or KEY.json")


def _json_keys(entries: Iterable[SamplePlace]) -> set[str]:
    keys: set[str] = set()
    for entry in entries:
        with suppress(BadSampleError, KeyError, ValueError, RecursionError):
            value = json.loads(entry.files(only=("json",))["json"])
            keys.update(value if isinstance(value, dict) else ())
    return keys
