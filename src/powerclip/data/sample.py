"""One image-caption pair as it lies in a shard."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from powerclip.data.published import read_njson
from powerclip.errors import BadSampleError as BadSampleError
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import RegionAnnotation

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
REGION_FILES = ("regions.json", "samlens.npy", "samcat.npy")
"""Files that hold regions, in our form and in that of the shards published with the paper."""

PUBLISHED_GRID = (14, 14)
"""The patch grid that the published regions are given on."""

MAX_CAPTION_BYTES = 2**20
"""Longer captions are refused; a text tower reads some hundred characters."""

MAX_PUBLISHED_REGIONS = 10_000
"""Of an image; SAM finds some hundred."""

MAX_DEPTH = 100
"""Levels of a JSON file. What is read must be written again, and Python's writer is not as deep as its reader."""


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
    regions: RegionAnnotation | None = None
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
            files["regions.json"] = _json(self.regions.to_json())
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
                tree = PhraseTree.from_json(_read_json(files, "phrases.json") or {})
            except (ValueError, OverflowError) as error:
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
            regions=_read_regions(files),
            patch_regions=_read_patch_regions(files),
        )


def decode_caption(text: bytes, *, strip: bool = True) -> str:
    """A caption from bytes; ``strip=False`` keeps the white space around it, where offsets into it are at hand.

    Raises:
        BadSampleError: it is too large, empty, not UTF-8, or holds NUL.
    """
    if len(text) > MAX_CAPTION_BYTES:
        raise BadSampleError("caption too large")
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
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace")  # which is how JSON writes half a surrogate pair


def _read_json(files: Mapping[str, bytes], extension: str) -> dict[str, Any] | None:
    if extension not in files:
        return None
    data = files[extension]
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSampleError(f"malformed {extension}") from error
    if not isinstance(value, dict) or (data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deep(value)):
        raise BadSampleError(f"malformed {extension}")
    return value


def _is_deep(value: Any) -> bool:
    """Whether a value has more than ``MAX_DEPTH`` levels."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _read_regions(files: Mapping[str, bytes]) -> RegionAnnotation | None:
    value = _read_json(files, "regions.json")
    if value is None:
        return None
    try:
        return RegionAnnotation.from_json(value)
    except ValueError as error:
        raise BadSampleError("malformed regions.json") from error


def _read_patch_regions(files: Mapping[str, bytes]) -> tuple[tuple[int, ...], ...] | None:
    """The published shards' regions: their lengths, and the patches of all of them one after the other."""
    if "samlens.npy" not in files:
        return None
    if "samcat.npy" not in files:
        raise BadSampleError("samlens.npy without samcat.npy")
    lengths, patches = (_read_integers(files, name) for name in ("samlens.npy", "samcat.npy"))
    if len(lengths) > MAX_PUBLISHED_REGIONS:
        raise BadSampleError(f"more than {MAX_PUBLISHED_REGIONS} regions")
    inside = (patches >= 0) & (patches < PUBLISHED_GRID[0] * PUBLISHED_GRID[1])
    possible = (lengths >= 0) & (lengths <= len(patches))
    if not possible.all() or lengths.sum() != len(patches) or not inside.all():
        raise BadSampleError("samlens.npy and samcat.npy do not fit the 14 x 14 grid")
    return tuple(tuple(part.tolist()) for part in np.split(patches, np.cumsum(lengths)[:-1])) if len(lengths) else ()


def _read_integers(files: Mapping[str, bytes], name: str) -> NDArray[np.int64]:
    """The values of a .npy file of integers; the size it claims is compared with its bytes before memory is taken."""
    file = io.BytesIO(files[name])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
        values, count = files[name][file.tell() :], math.prod(shape)
        if dtype.kind not in "iu" or min(shape, default=0) < 0 or count * dtype.itemsize > len(values):
            raise ValueError(f"it claims {count} values of {dtype} in {len(values)} bytes")
        return np.frombuffer(values[: count * dtype.itemsize], dtype).astype(np.int64)
    except Exception as error:  # numpy raises many kinds on hostile headers
        raise BadSampleError(f"malformed {name}") from error
