"""One image-caption pair as it lies in a shard."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from powerclip.data.njson import BadSampleError as BadSampleError
from powerclip.data.njson import read_njson
from powerclip.types import PhraseTree

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
REGION_FILES = ("regions.json", "samlens.npy", "samcat.npy")
"""Files that hold regions, in our form and in that of the shards published with the paper."""

PUBLISHED_GRID = (14, 14)
"""The patch grid that the published regions are given on."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image-caption pair with its annotations, the image still encoded."""

    key: str
    """Name within the data set, without a dot."""
    image: bytes
    """The encoded image."""
    image_extension: str
    """"png", "jpg", "jpeg" or "webp"."""
    caption: str
    """The text."""
    tree: PhraseTree | None = None
    """Phrases of the caption (``KEY.phrases.json``)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever is known of the sample (``KEY.json``)."""
    regions: Mapping[str, Any] | None = None
    """Region masks of the image (``KEY.regions.json``)."""
    patch_regions: tuple[tuple[int, ...], ...] | None = None
    """Regions as patches of ``PUBLISHED_GRID``, row-major (``KEY.samlens.npy`` and ``KEY.samcat.npy``)."""

    def members(self) -> dict[str, bytes]:
        """The sample's files by extension.

        Raises:
            ValueError: the key or the image's extension would not be read back.
        """
        if "." in self.key.rpartition("/")[2] or not self.key:
            raise ValueError(f"key is {self.key!r}; it must be a name without a dot: the extension begins there")
        if self.image_extension not in IMAGE_EXTENSIONS:
            raise ValueError(f"image_extension is {self.image_extension!r}; use one of {', '.join(IMAGE_EXTENSIONS)}")
        files = {self.image_extension: self.image, CAPTION_EXTENSION: self.caption.encode("utf-8")}
        if self.metadata:
            files["json"] = _json(self.metadata)
        if self.tree is not None:
            files["phrases.json"] = _json(self.tree.to_json())
        if self.regions is not None:
            files["regions.json"] = _json(self.regions)
        return files

    @classmethod
    def from_members(cls, key: str, files: Mapping[str, bytes]) -> Sample:
        """Read a sample's files.

        Raises:
            BadSampleError: no image, no caption, or an annotation that is not of its form.
        """
        extension = next((e for e in IMAGE_EXTENSIONS if e in files), None)
        if extension is None:
            raise BadSampleError("no image")
        if CAPTION_EXTENSION not in files and "njson" not in files:
            raise BadSampleError("no caption")
        tree = None
        if "phrases.json" in files:
            try:
                tree = PhraseTree.from_json(json.loads(files["phrases.json"]))
            except (ValueError, RecursionError, OverflowError) as error:
                raise BadSampleError("malformed phrases.json") from error
        if CAPTION_EXTENSION in files:
            caption = decode_caption(files[CAPTION_EXTENSION], strip=tree is None)
        if "njson" in files and (tree is None or CAPTION_EXTENSION not in files):
            caption, tree = read_njson(files["njson"], caption if CAPTION_EXTENSION in files else None)
        return cls(
            key=key,
            image=files[extension],
            image_extension=extension,
            caption=caption,
            tree=tree,
            metadata=_read_json(files, "json") or {},
            regions=_read_json(files, "regions.json"),
            patch_regions=_read_patch_regions(files),
        )


def decode_caption(text: bytes, *, strip: bool = True) -> str:
    """A caption from bytes; ``strip=False`` keeps the white space around it, where offsets into it are at hand.

    Raises:
        BadSampleError: it is empty, not UTF-8, or holds NUL.
    """
    try:
        caption = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSampleError("caption not UTF-8") from error
    if "\0" in caption:
        raise BadSampleError("caption holds NUL")
    if not caption.strip():
        raise BadSampleError("empty caption")
    return caption.strip() if strip else caption


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _read_json(files: Mapping[str, bytes], extension: str) -> dict[str, Any] | None:
    if extension not in files:
        return None
    try:
        value = json.loads(files[extension])
    except (ValueError, RecursionError) as error:
        raise BadSampleError(f"malformed {extension}") from error
    if not isinstance(value, dict):
        raise BadSampleError(f"malformed {extension}")
    return value


def _read_patch_regions(files: Mapping[str, bytes]) -> tuple[tuple[int, ...], ...] | None:
    """The published shards' regions: their lengths, and the patches of all of them one after the other."""
    if "samlens.npy" not in files:
        return None
    if "samcat.npy" not in files:
        raise BadSampleError("samlens.npy without samcat.npy")
    try:
        lengths, patches = (
            np.load(io.BytesIO(files[name]), allow_pickle=False).astype(np.int64, casting="same_kind").ravel()
            for name in ("samlens.npy", "samcat.npy")
        )
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise BadSampleError("malformed samlens.npy or samcat.npy") from error
    inside = (patches >= 0) & (patches < PUBLISHED_GRID[0] * PUBLISHED_GRID[1])
    if (lengths < 0).any() or lengths.sum() != len(patches) or not inside.all():
        raise BadSampleError("samlens.npy and samcat.npy do not fit the 14 x 14 grid")
    return tuple(tuple(part.tolist()) for part in np.split(patches, np.cumsum(lengths)[:-1])) if len(lengths) else ()
