"""Embeddings of image-caption pairs as one Parquet file, for vector indexes, databases and viewers."""

import json
import shutil
from contextlib import closing
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.console import Console

from powerclip.config import EmbedConfig, PrepareConfig, SourceConfig
from powerclip.config.checks import part
from powerclip.devices import find_device
from powerclip.errors import PowerclipError, counted, needs_extra
from powerclip.evaluate.encode import tokenized, unit
from powerclip.files import atomic_file
from powerclip.model import load_any
from powerclip.model.digest import digest_of
from powerclip.pixels import encoded, small_copy
from powerclip.prepare.annotate import Counts, usable
from powerclip.prepare.output import reserved
from powerclip.prepare.pairs import Chunk
from powerclip.prepare.source import open_source
from powerclip.prepare.workers import run_local
from powerclip.progress import print_line, progress_bar
from powerclip.runs import require_free


class Part(NamedTuple):
    """Some pairs of a source, and the file for their embeddings."""

    chunk: Chunk
    path: Path
    model: str
    config: EmbedConfig


def embed(model: str, source: str, output: Path, config: EmbedConfig | None = None, *, console: Console) -> int:
    """Write the embeddings of a source's pairs to a Parquet file; return the number of its rows.

    The columns: ``key`` and ``source`` (where the pair is) and ``caption`` (the first of several), strings; ``image``
    and ``text``, the (D,) float32 embeddings of unit length; ``thumbnail``, {bytes, path} of a JPEG, as ``datasets``
    has images. Pairs are in the source's order; those that cannot be used are counted by reason.

    The work is done in parts, which are kept in ``OUTPUT.parts`` until the file is complete; the same call continues
    with what is missing. PowerclipError if pyarrow is not installed, there is no such model or source, ``output``
    exists, or the parts are of another model or source; RunFailedError if a worker died.
    """
    with needs_extra("powerclip embed", "parquet"):
        import pyarrow.parquet as parquet
    config = config or EmbedConfig()
    if output.suffix.lower() not in ("", ".parquet"):
        raise PowerclipError(f"output {output} is no name of a Parquet file, which is written; name NAME.parquet")
    require_free(output, folder=False)
    how = vars(part(config, SourceConfig))
    pairs = open_source(source, PrepareConfig(**how, parser="none", samples_per_shard=config.rows_per_part))
    folder = output.with_name(f"{output.name}.parts").absolute()
    same = {name: getattr(config, name) for name in ("rows_per_part", "thumbnail_pixels")}
    plan = {
        "source": pairs.fingerprint,
        "weights": digest_of(_loaded(model, config.pretrained, config.device)[0]),
        "counts": True,  # earlier versions kept no names of damaged tars in the parts
        **same,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with reserved(folder, plan):
        paths = [folder / f"shard-{number:06d}.parquet" for number in range(pairs.count)]
        made, new = sum(path.exists() for path in paths), 0
        parts = (
            Part(chunk, path, model, config)
            for path, chunk in zip(paths, pairs.chunks, strict=False)
            if not path.exists()
        )
        bar = progress_bar("embedding", steps=len(paths), done=made, unit="parts", console=console)
        with bar as show, closing(run_local(embed_part, parts, workers=config.workers)) as results:
            for number, (_, rows) in enumerate(results, start=made + 1):
                new += rows
                show(number, f"{new} pairs")
        rows, total = sum(parquet.read_metadata(path).num_rows for path in paths), Counts()
        for path in paths:
            total.merge(json.loads(parquet.read_schema(path).metadata[COUNTS]))
        skipped, damaged = total.skipped, total.damaged()
        if not rows:
            why = "; ".join(filter(None, (counted(skipped) or "it holds none", damaged)))
            raise PowerclipError(f"no pair of {source} can be used: {why}; see powerclip prepare")
        about = {b"powerclip": json.dumps({"model": model, **plan}).encode()}
        schema = parquet.read_schema(paths[0]).with_metadata(about)
        with atomic_file(output) as file, parquet.ParquetWriter(file, schema) as writer:
            for path in paths:
                writer.write_table(parquet.read_table(path).replace_schema_metadata(about))
    shutil.rmtree(folder)
    reasons = f"skipped: {counted(skipped)}" if skipped else ""
    print_line(console, "; ".join(filter(None, (f"{rows} pairs in {output}", reasons, damaged))))
    return rows


COUNTS = b"counts"
"""The metadata of a part that says what became of its pairs."""


def embed_part(part: Part) -> int:
    """Write the file of a part; return the number of its rows."""
    import pyarrow
    import pyarrow.parquet as parquet

    config, counts = part.config, Counts()
    model, preprocess, tokenizer = _loaded(part.model, config.pretrained, config.device)
    device = next(model.parameters()).device
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "source", "caption", "image", "text", "thumbnail")}
    pairs = usable(part.chunk(), counts)
    while some := list(islice(pairs, config.batch_size)):
        samples = [sample for _, (sample, _) in some]
        pictures = [image for _, (_, image) in some if image is not None]  # all have one: it is a source of pairs
        with torch.inference_mode():
            images = torch.stack([preprocess(picture) for picture in pictures])
            columns["image"] += list(unit(model.encode_image(images.to(device))).cpu().numpy())
            tokens = tokenized(model, tokenizer, [sample.caption for sample in samples])
            columns["text"] += list(unit(model.encode_text(tokens.to(device))).cpu().numpy())
        columns["key"] += [_utf8(sample.key) for sample in samples]
        columns["source"] += [_utf8(place) for place, _ in some]
        columns["caption"] += [sample.caption for sample in samples]
        columns["thumbnail"] += [_thumbnail(picture, config.thumbnail_pixels) for picture in pictures]
    vector = pyarrow.list_(pyarrow.float32())
    types = {
        "image": vector,
        "text": vector,
        "thumbnail": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
    }
    schema = pyarrow.schema(
        [(name, types.get(name, pyarrow.string())) for name in columns],
        metadata={COUNTS: json.dumps(vars(counts)).encode()},
    )
    with atomic_file(part.path) as file:
        parquet.write_table(pyarrow.table(columns, schema=schema), file)
    return len(columns["key"])


def _utf8(name: str) -> str:
    """A name as Parquet can hold it: "?" for bytes that are not UTF-8."""
    return name.encode("utf-8", errors="replace").decode()


def _thumbnail(image: Image.Image, pixels: int) -> dict[str, Any] | None:
    if not pixels:
        return None
    return {"bytes": encoded(small_copy(image, pixels), "JPEG", quality=80), "path": None}


@lru_cache(maxsize=1)
def _loaded(model: str, pretrained: str | None, device: str) -> Any:
    """The model with its transform and tokenizer, once in each process."""
    return load_any(model, pretrained, device=find_device(device))
