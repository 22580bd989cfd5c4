"""Where image-caption pairs come from: one door; folders and scenes here, tables and tars in rooms of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from powerclip.data.sample import MAX_CAPTION_BYTES, Sample
from powerclip.data.shards import tars_in
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.prepare.columnar import is_dataset, open_dataset, open_parquet
from powerclip.prepare.lines import open_lines
from powerclip.prepare.source import Chunk, Item, Source, digest, make_key, make_sample, read_image, stamp
from powerclip.prepare.tars import open_tars
from powerclip.scenes import generate

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
KINDS = (
    f"a folder of images or of .tar shards, a {', '.join(TABLES)} file, a Hugging Face datasets folder, or scenes:train"
)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source is to be read; each kind uses what concerns it."""

    samples_per_shard: int = 1000
    """Pairs of a chunk; of tars each is a chunk as it is."""
    image_column: str | None = None
    """Column of the image in a table; guessed by default."""
    caption_column: str | None = None
    """Column of the caption in a table; guessed by default."""
    caption_key: str | None = None
    """Where the caption lies in tars: a file's extension, or "json:KEY"; found by default."""
    replace_annotations: bool = False
    """Leave out the phrases and regions that tars and scenes bring along."""
    count: int = 8192
    """Scenes to generate."""
    seed: int = 0
    """Of the scenes."""


def open_source(source: str, options: SourceOptions) -> Source:
    """Find the pairs of a source.

    Raises:
        PowerclipError: there is no such source, or it holds no pair.
    """
    if source.startswith("scenes:"):
        return _scenes(source.removeprefix("scenes:"), options)
    path = Path(source).absolute()  # a worker may run elsewhere
    columns = {"image_column": options.image_column, "caption_column": options.caption_column}
    if path.is_dir():
        if is_dataset(path):
            return open_dataset(path, options.samples_per_shard, **columns)
        if tars_in(path):
            return open_tars(path, options.caption_key, keep=not options.replace_annotations)
        tables = sorted(table for table in path.glob("*.parquet") if not table.name.startswith("."))
        # img2dataset's "files" are pictures in folders, each with a table of what became of the URLs beside it.
        if tables and not any(table.with_suffix("").is_dir() for table in tables):
            return open_parquet(tables, options.samples_per_shard, **columns)
        return _folder(path, options.samples_per_shard)
    if path.suffix.lower() == ".tar" and path.is_file():
        return open_tars(path, options.caption_key, keep=not options.replace_annotations)
    if not path.exists():
        raise PowerclipError(f"no source at {source}; give {KINDS}")
    if path.suffix.lower() not in TABLES:
        raise PowerclipError(f"{source} is no source that can be read; give {KINDS}")
    if path.suffix.lower() == ".parquet":
        return open_parquet([path], options.samples_per_shard, **columns)
    return open_lines(path, options.samples_per_shard, **columns)


@dataclass(frozen=True)
class _FolderChunk:
    """Image files with a .txt beside each."""

    folder: Path
    names: tuple[str, ...]
    first: int

    def items(self) -> Iterator[Item]:
        for i, name in enumerate(self.names, start=self.first):
            yield Item(name=name, load=partial(_with_sidecar, make_key(i, name), self.folder / name))


def _with_sidecar(key: str, image: Path) -> Sample:
    caption = image.with_suffix(".txt")
    if not caption.is_file():
        raise BadSampleError("no caption")
    try:
        if caption.stat().st_size > MAX_CAPTION_BYTES:
            raise BadSampleError("caption too large")
        text = caption.read_bytes()
    except OSError as error:
        raise BadSampleError("file cannot be read") from error
    return make_sample(key, read_image(image), text)


def _folder(folder: Path, samples_per_shard: int) -> Source:
    """Images with a .txt beside each, sub-folders too; what is hidden is passed over."""
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not images:
        tar = next(folder.rglob("*.tar"), None)
        hint = f"; {tar.parent} holds tars: name that folder" if tar else ""
        raise PowerclipError(f"no image in {folder}; looked for {', '.join(sorted(IMAGES))}, sub-folders too{hint}")
    if not any(path.with_suffix(".txt").exists() for path in images):
        raise PowerclipError(
            f"none of the {len(images)} images in {folder} has a caption; put NAME.txt beside NAME.jpg"
        )
    names = [str(path.relative_to(folder)) for path in images]
    chunks = [
        _FolderChunk(folder, tuple(names[first : first + samples_per_shard]), first)
        for first in range(0, len(names), samples_per_shard)
    ]
    stamps = (stamp(path) + stamp(path.with_suffix(".txt")) for path in images)
    return Source(chunks=chunks, fingerprint=digest(names, stamps))


@dataclass(frozen=True)
class _ScenesChunk:
    samples: tuple[Sample, ...]

    def items(self) -> Iterator[Item]:
        for sample in self.samples:
            yield Item(name=sample.key, load=partial(_itself, sample))


def _itself(sample: Sample) -> Sample:
    return sample


def _scenes(split: str, options: SourceOptions) -> Source:
    try:
        samples = list(generate(split, count=options.count, seed=options.seed))  # type: ignore[arg-type]
    except ValueError as error:
        raise PowerclipError(f"unknown scenes {split!r}: {error}") from error
    if options.replace_annotations:
        samples = [replace(sample, tree=None, regions=None) for sample in samples]
    step = options.samples_per_shard
    chunks: list[Chunk] = [_ScenesChunk(tuple(samples[first : first + step])) for first in range(0, len(samples), step)]
    return Source(chunks=chunks, fingerprint=digest([split, f"{options.count}", f"{options.seed}"]))
