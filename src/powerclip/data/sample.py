"""One image-caption pair as it is stored in a shard; ``dataset.py`` turns it into what training shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from powerclip.data.limits import MAX_CAPTION_BYTES, MAX_JSON_DEPTH
from powerclip.data.published import read_patch_regions, read_phrases
from powerclip.errors import BadSampleError
from powerclip.phrases.clean import clean_caption
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import RegionAnnotation

T = TypeVar("T")

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
REGION_FILES = ("regions.json", "samlens.npy", "samcat.npy")
"""Files that hold regions, in this project's form and in that of the shards published with the paper."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image-caption pair with its annotations, the image still encoded."""

    key: str
    """Name within the data set, without a dot."""
    image: bytes
    image_extension: str
    """"png", "jpg", "jpeg" or "webp"."""
    caption: str
    """The text: cleaned (``powerclip.phrases.clean``), or as it is if a tree came with it: offsets refer to it."""
    tree: PhraseTree | None = None
    """Phrases of the caption (``KEY.phrases.json``)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever is known of the sample (``KEY.json``); ``caption_original`` is the caption before it was cleaned."""
    regions: RegionAnnotation | None = None
    """Region masks of the image (``KEY.regions.json``)."""
    patch_regions: tuple[tuple[int, ...], ...] | None = None
    """Regions as patches of the published shards' grid, row-major (``KEY.samlens.npy`` and ``KEY.samcat.npy``)."""

    def members(self) -> dict[str, bytes]:
        """The sample's files by extension; ValueError if the key or the image's extension would not be read back."""
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
        """Read a sample's files; a caption without phrases.json is cleaned.

        BadSampleError if there is no image or no caption, or an annotation does not have its form.
        """
        extension = next((e for e in IMAGE_EXTENSIONS if e in files), None)
        if extension is None:
            raise BadSampleError("no image")
        if CAPTION_EXTENSION not in files:
            raise BadSampleError("no caption")
        tree = _read(files, "phrases.json", PhraseTree.from_json)
        known = _read(files, "json", dict[str, Any])
        caption, metadata = read_caption(files[CAPTION_EXTENSION], known, clean=tree is None)
        if tree is None and "njson" in files:
            tree = read_phrases(files["njson"], caption)
        return cls(
            key=key,
            image=files[extension],
            image_extension=extension,
            caption=caption,
            tree=tree,
            metadata=metadata,
            regions=_read(files, "regions.json", RegionAnnotation.from_json),
            patch_regions=read_patch_regions(files),
        )


def read_caption(
    text: bytes, metadata: Mapping[str, Any] | None = None, *, clean: bool = True
) -> tuple[str, Mapping[str, Any]]:
    """A caption where it enters, and the sample's metadata, which keep the original where cleaning changed it.

    ``clean`` is False for a caption that came with offsets into it; it stays as it is. BadSampleError if the text is
    too large, empty, not UTF-8, or contains NUL.
    """
    metadata = metadata or {}
    if len(text) > MAX_CAPTION_BYTES:
        raise BadSampleError("caption too large")
    try:
        original = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSampleError("caption not UTF-8") from error
    if "\0" in original:
        raise BadSampleError("caption contains NUL")
    caption = clean_caption(original) if clean else original
    if not caption.strip():
        raise BadSampleError("empty caption")
    if caption not in (original, original.strip()):
        metadata = {"caption_original": original, **metadata}
    return caption, metadata


def _json(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace")  # which is how JSON writes half a surrogate pair


def _read(files: Mapping[str, bytes], extension: str, make: Callable[[dict[str, Any]], T]) -> T | None:
    """What a JSON file of a sample holds, None if there is no such file."""
    if extension not in files:
        return None
    data = files[extension]
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or (data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _is_deep(value)):
            raise ValueError("it is not an object, or too deep")
        return make(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadSampleError(f"malformed {extension}") from error


def _is_deep(value: Any, levels: int = MAX_JSON_DEPTH) -> bool:
    """Whether objects and lists are nested more than ``levels`` deep."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(_is_deep(x, levels - 1) for x in (value.values() if isinstance(value, dict) else value))
