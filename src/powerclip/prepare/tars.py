"""WebDataset tars as img2dataset writes them (CC3M, CC12M, ...): each becomes one annotated shard."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
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
from powerclip.data.sample import (
    CAPTION_EXTENSION,
    CAPTIONS_EXTENSION,
    IMAGE_EXTENSIONS,
    REGION_FILES,
    Caption,
    Sample,
    read_caption,
)
from powerclip.data.shards import BrokenShardError, SamplePlace, find_shards, stream_shard
from powerclip.errors import BadSampleError, PowerclipError, UnreadSampleError
from powerclip.phrases import PhraseTree
from powerclip.prepare.pairs import (
    CUT,
    Item,
    Loaded,
    Pair,
    Source,
    bad,
    count_kinds,
    decoded,
    digest,
    make_key,
    read_captions,
    require_read,
    stamp,
    unused,
)
from powerclip.prepare.tables import CAPTION_COLUMNS, sources_of
from powerclip.regions.annotation import MAX_MASK_PIXELS
from powerclip.regions.masks import scaled_annotation

PROBED = 100
"""The captions are looked for in the first samples, this many."""

READ = (*IMAGE_EXTENSIONS, *(suffix[1:] for suffix in IMAGE_SUFFIXES if suffix[1:] not in IMAGE_EXTENSIONS))
"""Extensions of images, in the order of preference."""


PHRASE_FILES = ("phrases.json", "njson")
"""Extensions of phrases."""

ANNOTATIONS = frozenset((*PHRASE_FILES, *REGION_FILES))
"""Extensions of annotations."""

AS_IN_SHARDS = (CAPTION_EXTENSION,)
"""Keys of captions that are where shards have them: in ``KEY.txt`` and ``KEY.captions.json``."""
INSIDE = tuple(f"json:{name}" for name in CAPTION_COLUMNS)
"""Well-known keys of captions in ``KEY.json``."""


def open_tars(path: Path, config: PrepareConfig) -> Source:
    """The pairs of the tars in a folder, or of one tar.

    PowerclipError if the first samples have no images, or no captions where they are expected.
    """
    require_read(config, path, "caption_key", "caption_lines", "replace_annotations", "replace_regions")
    shards = find_shards(path)
    keys = _find_captions(shards, config.caption_key)
    phrase_files = PHRASE_FILES if config.keeps_phrases else ()
    keep = frozenset((*phrase_files, *(REGION_FILES if config.keeps_regions else ())))
    read = partial(tar_items, keys=keys, lines=config.caption_lines, keep=keep)
    return Source(
        chunks=[partial(read, shard) for shard in shards],
        count=len(shards),
        fingerprint=digest((shard.name for shard in shards), (stamp(shard) for shard in shards), keys),
        ignored=count_kinds(set(path.iterdir()) - set(shards)) if path.is_dir() else {},
    )


def tar_items(
    shard: Path, *, keys: tuple[str, ...] = (), lines: bool = False, keep: Set[str] = ANNOTATIONS
) -> Iterator[Item]:
    """The samples of a tar in order, as ``sample_items`` gives them.

    The captions are under extensions, or in "json:KEY" ("json:a.b" for b in a); without ``keys`` each sample's are
    where shards have them, or else under the first of ``INSIDE``. Of the extensions of annotations, those in ``keep``
    are read.
    """
    captions = keys if keys and keys != AS_IN_SHARDS else (CAPTION_EXTENSION, CAPTIONS_EXTENSION)

    def used(entry: SamplePlace) -> Collection[str]:
        return {*captions, "json", _image(entry), *keep}

    return sample_items(shard, partial(_load, keys=keys, lines=lines, keep=keep), used)


def sample_items(
    shard: Path, load: Callable[[str, SamplePlace], Loaded], used: Callable[[SamplePlace], Collection[str]]
) -> Iterator[Item]:
    """The samples of a tar in order; repeated keys, and samples beyond the limit, are items that cannot be used.

    ``load`` reads one, given its key in the shard to be made: its own, or where that has odd characters one with
    its place and a "+", which no other key begins with. Other files than those ``used`` (hidden ones, links)
    follow as items without use.
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
                made = make_key(i, entry.key).replace("-", "+", 1)
                fits = re.fullmatch(rf"({i:08d}\+)?[A-Za-z0-9_][A-Za-z0-9_/-]{{0,199}}", entry.key)
                yield Item(name, partial(load, entry.key if fits else made, entry))
                read = used(entry)
                yield from (unused(name, f".{extension[:19]}") for extension in entry.members if extension not in read)
    except BrokenShardError:
        yield bad(shard.name, CUT, UnreadSampleError)
    for kind, number in ignored.items():
        yield from repeat(unused(shard.name, kind), number)


def _load(key: str, entry: SamplePlace, *, keys: tuple[str, ...], lines: bool, keep: Set[str]) -> Pair:
    image = _image(entry)
    keeps_phrases = keep >= set(PHRASE_FILES)
    wanted = (CAPTION_EXTENSION, CAPTIONS_EXTENSION, "json", *keys, image, *keep)
    files = entry.files(only=wanted)  # others may be of any size
    if image and image not in IMAGE_EXTENSIONS:
        files[IMAGE_EXTENSIONS[0]] = files.pop(image)  # ``decoded`` converts it
    present = tuple(name for name in (CAPTION_EXTENSION, CAPTIONS_EXTENSION) if name in files)
    if not keys:
        inside = () if present else tuple(key for key in INSIDE if _caption(files, key) is not None)
        keys = inside[:1] or AS_IN_SHARDS
    if keys == AS_IN_SHARDS and not lines:
        sample = Sample.from_members(key, files)
        if not keeps_phrases:
            sample = sample.with_captions([_bare(caption) for caption in sample.captions])
        return _converted(*decoded(sample))
    if keys == AS_IN_SHARDS:
        keys = present or keys
    cells = [(source, _caption(files, name)) for source, name in zip(sources_of(keys), keys, strict=True)]
    captions, remarks = read_captions(cells, lines=lines)
    if CAPTIONS_EXTENSION in keys:  # which lists the first one again
        captions = list({caption.text: caption for caption in captions}.values())
    trees: dict[str, PhraseTree | None] = {}
    with suppress(BadSampleError):  # phrases of the same texts
        trees = {caption.text: caption.tree for caption in Sample.from_members(key, files).captions}
    own = {name: data for name, data in files.items() if name not in (*PHRASE_FILES, CAPTIONS_EXTENSION)}
    sample = Sample.from_members(key, {**own, CAPTION_EXTENSION: captions[0].text.encode()})
    captions = [replace(caption, tree=trees.get(caption.text) if keeps_phrases else None) for caption in captions]
    return _converted(*decoded(replace(sample, remarks=(*remarks, *sample.remarks)).with_captions(captions)))


def _bare(caption: Caption) -> Caption:
    """A caption without its phrases, cleaned now."""
    return caption if caption.tree is None else read_caption(caption.text, source=caption.source)


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


def _caption(files: Mapping[str, bytes], key: str) -> Any:
    """What a sample holds under an extension, or under a key inside its json; None if there is nothing.

    BadSampleError if that json cannot be read.
    """
    if not key.startswith("json:") and key != CAPTIONS_EXTENSION:
        return files.get(key)
    extension, _, inside = key.partition(":")
    try:
        value: Any = json.loads(files.get(extension, b"null"))
    except (ValueError, RecursionError) as error:
        raise BadSampleError(f"malformed {extension}") from error
    for part in inside.split(".") if inside else ():
        value = _value(value, part)
    return value


def _value(known: Any, name: str) -> Any:
    """What an object holds under a name, or else under the only one that differs from it in case; None if nothing."""
    if not isinstance(known, dict) or name in known:
        return known[name] if isinstance(known, dict) else None
    same = [key for key in known if key.lower() == name.lower()]
    return known[same[0]] if len(same) == 1 else None


def _find_captions(shards: Sequence[Path], given: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of the captions: those given, or none for well-known ones; the first samples must have some."""
    shard, entries = _first_samples(shards)
    with_image = [entry for entry in entries if _image(entry)]
    present = {extension for entry in with_image for extension in entry.members}
    seen = f"files seen in {shard}: {', '.join(sorted({e for entry in entries for e in entry.members})[:30])}"
    if len(entries) > 1 and all(len(entry.members) == 1 for entry in entries):
        seen += "; each is alone, but the files of a sample must follow one another (tar --sort=name)"
    if any(extension.endswith(IMAGE_SUFFIXES) for entry in entries for extension in entry.members):
        seen += "; a key ends at the first dot of a name: replace the others (photo.v1.jpg by photo-v1.jpg)"
    if not with_image:
        raise PowerclipError(f"no image under {', '.join(READ)}; {seen}")
    if not given and present & {CAPTION_EXTENSION, CAPTIONS_EXTENSION}:
        return ()
    keys = _json_keys(with_image)
    spelled = {key.lower() for key in keys}
    found: list[str] = []
    for key in given or (None,):
        if key is not None and key.lower().startswith("json:"):
            key = f"json:{key[len('json:') :]}"
        extension = "" if key is None else key.removeprefix(".").lower()
        wanted = INSIDE if key is None else (key,)
        inside = [
            name
            for name in wanted
            if name.startswith("json:") and name.removeprefix("json:").split(".")[0].lower() in spelled
        ]
        if extension not in present and not inside:
            where = f"under {key}" if key else "under txt, nor inside json under a common name"
            seen += f"; keys of the json: {', '.join(sorted(keys)[:30])}" if keys else ""
            choose = "choose with --caption-key EXTENSION or --caption-key json:KEY"
            raise PowerclipError(f"no caption {where}; {seen}; {choose}")
        found.append(extension if extension in present else inside[0])
    return tuple(dict.fromkeys(found)) if given else ()


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
