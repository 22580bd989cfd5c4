"""Opening a source of any kind; folders of images and generated scenes are read here."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from powerclip.config import PrepareConfig
from powerclip.data.images import IMAGE_SUFFIXES
from powerclip.data.sample import Sample
from powerclip.data.shards import tars_in
from powerclip.errors import PowerclipError
from powerclip.files import walk
from powerclip.prepare.pairs import (
    Item,
    Source,
    bad,
    count_kinds,
    decoded,
    digest,
    in_chunks,
    load_files,
    make_key,
    require_read,
    stamp,
)
from powerclip.prepare.tables import TABLES, is_dataset, open_arrow, open_dataset, open_text, parquet_files
from powerclip.prepare.tars import open_tars
from powerclip.scenes import generate

KINDS = (
    f"a folder of images or of .tar shards, a {', '.join(TABLES)} file, a Hugging Face datasets folder, or scenes:train"
)
SIDECARS = {".txt", ".json", ".xml", ".csv", ".npy", ".npz"}
"""What may be next to a caption and does not stand for an image."""
SPLIT = re.compile(r"(train|training|val|valid|validation|dev|test|testing|eval)(?![A-Za-z])", re.IGNORECASE)
"""How the names of a split's Parquet files begin."""


def open_source(source: str, config: PrepareConfig) -> Source:
    """Find the pairs of a source; PowerclipError if it does not exist or holds no pair."""
    if source.startswith("scenes:"):
        return _scenes(source.removeprefix("scenes:"), config)
    path = Path(source).absolute()  # a worker may run in another folder
    suffix = path.suffix.lower()
    if path.is_dir():
        if is_dataset(path):
            return open_dataset(path, config)
        if tars := tars_in(path):
            if _has_pairs(path.iterdir()):
                raise PowerclipError(
                    f"{path} holds tars ({tars[0].name}, ...) and images with captions; put one of the two elsewhere"
                )
            return open_tars(path, config)
        tables = parquet_files(path)
        # img2dataset's "files" are images in folders, each with a table next to it that says what became of the URLs.
        if tables and not any(table.with_suffix("").is_dir() for table in tables) and not _has_pairs(walk(path)[0]):
            splits = sorted({match[1] for table in tables if (match := SPLIT.match(table.stem))})
            if len(splits) > 1:
                raise PowerclipError(
                    f"{path} holds the splits {', '.join(splits)}; put the files of one into a folder of their own"
                )
            return open_arrow(tables, config, ignored=count_kinds(set(path.iterdir()) - set(tables)))
        return _folder(path, config)
    if suffix == ".tar" and path.is_file():
        return open_tars(path, config)
    if not path.exists():
        hint = ""
        if "://" in source:
            hint = "; it is read from disk alone: download it, for example with img2dataset or huggingface-cli"
        elif any(c in source for c in "*?[{"):
            hint = "; a pattern is not read: put the files into a folder of their own (links suffice)"
        raise PowerclipError(f"no source at {source}; give {KINDS}{hint}")
    if suffix not in TABLES:
        lines = '; make a .jsonl of it, {"path": ..., "caption": ...} a line (for COCO\'s captions: docs/faq.md)'
        renamed = "; if it is a table, rename it to .csv (commas) or .tsv (tabs)"
        hint = lines if suffix == ".json" else renamed if suffix in (".txt", ".token") else ""
        raise PowerclipError(f"{source} cannot be read as a source; give {KINDS}{hint}")
    return open_arrow([path], config) if suffix == ".parquet" else open_text(path, config)


def _folder(folder: Path, config: PrepareConfig) -> Source:
    """Images with a .txt file next to each, in sub-folders too; other files are counted.

    A file with a caption whose extension is not that of an image that is read is a pair that cannot be used.
    """
    require_read(config, folder, "caption_lines")
    files, passed = walk(folder)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    if not images:
        other = next((path for path in files if path.suffix.lower() in (".tar", ".parquet")), None)
        hint = f"; {other.parent} holds {other.suffix} files: name that folder" if other else ""
        if any(path.name.lower().endswith((".tar.gz", ".tgz")) for path in files):
            hint = "; it holds compressed tars: decompress them (gunzip)"
        raise PowerclipError(f"no image in {folder} or its sub-folders; looked for {', '.join(IMAGE_SUFFIXES)}{hint}")
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}  # .txt comes after .TXT
    captions = [texts.get(path.with_suffix("")) for path in images]
    if not any(captions):
        none = f"none of the {len(images)} images in {folder} has a caption"
        given = next((path for path in files if path.name in ("metadata.jsonl", "metadata.csv")), None)
        table = f"the table {given} in place of the folder" if given else "a table of paths and captions"
        raise PowerclipError(f"{none}; put NAME.txt next to NAME.jpg, or give {table}{_renaming(images, files)}")
    free = texts.keys() - {path.with_suffix("") for path in images}
    unread = [
        path
        for path in files
        if path.with_suffix("") in free and path.suffix.lower() not in SIDECARS and not path.name.startswith(".")
    ]
    images, captions = [*images, *unread], [*captions, *(texts[path.with_suffix("")] for path in unread)]
    pairs = list(zip(images, captions, strict=True))
    names = (str(path.relative_to(folder)) for path in images)
    stamps = (stamp(image) + (stamp(caption) if caption else "-") for image, caption in pairs)
    return Source(
        chunks=in_chunks(partial(_images, folder=folder, lines=config.caption_lines), pairs, config.samples_per_shard),
        count=-(-len(pairs) // config.samples_per_shard),
        fingerprint=digest(names, stamps),
        ignored={**passed, **count_kinds(set(files) - {*images, *captions})},
    )


def _renaming(images: Iterable[Path], files: Iterable[Path]) -> str:
    """The end of a message if an image's caption has nearly its name: NAME.jpg.txt, or another case."""
    texts = {str(path).lower(): path for path in files if path.suffix.lower() == ".txt"}
    for image in images:
        for name in (f"{image}.txt", f"{image.with_suffix('')}.txt"):
            if found := texts.get(name.lower()):
                return f" ({found.name} is there: rename it to {image.stem}.txt)"
    return ""


def _has_pairs(found: Iterable[Path]) -> bool:
    """Whether one of some files is a caption next to an image."""
    files = [path for path in found if not path.name.startswith(".")]
    images = {path.with_suffix("") for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    return any(path.suffix.lower() == ".txt" and path.with_suffix("") in images for path in files)


def _images(pairs: Sequence[tuple[Path, Path | None]], first: int, *, folder: Path, lines: bool) -> Iterator[Item]:
    """Image files, each with the file of its caption."""
    for i, (image, caption) in enumerate(pairs, start=first):
        name = str(image.relative_to(folder))
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            yield bad(name, f"image format not read: {image.suffix.lower()[:20] or 'no extension'}")
            continue
        yield Item(name, partial(load_files, make_key(i, name), image, caption, lines=lines))


def _scenes(split: str, config: PrepareConfig) -> Source:
    require_read(config, f"scenes:{split}", "count", "seed", "replace_annotations", "replace_regions")
    try:
        samples = generate(split, count=config.count, seed=config.seed)  # type: ignore[arg-type]
    except ValueError as error:
        raise PowerclipError(f"unknown scenes {split!r}: {error}") from error
    if not config.keeps_phrases:
        samples = (replace(sample, tree=None) for sample in samples)
    if not config.keeps_regions:
        samples = (replace(sample, regions=None) for sample in samples)
    return Source(
        chunks=in_chunks(_generated, samples, config.samples_per_shard),
        count=-(-config.count // config.samples_per_shard),
        fingerprint=digest([split, f"{config.count}", f"{config.seed}"]),
    )


def _generated(samples: Sequence[Sample], first: int) -> Iterator[Item]:
    for sample in samples:
        yield Item(sample.key, partial(decoded, sample))
