"""One image-caption pair as it lies in a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from powerclip.types import PhraseTree

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"


class BadSampleError(ValueError):
    """A sample that cannot be used; its message is the reason, in a few words, for counting."""


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
        if CAPTION_EXTENSION not in files:
            raise BadSampleError("no caption")
        tree = None
        if "phrases.json" in files:
            try:
                tree = PhraseTree.from_json(json.loads(files["phrases.json"]))
            except ValueError as error:
                raise BadSampleError("malformed phrases.json") from error
        return cls(
            key=key,
            image=files[extension],
            image_extension=extension,
            caption=decode_caption(files[CAPTION_EXTENSION], strip=tree is None),
            tree=tree,
            metadata=_read_json(files, "json") or {},
            regions=_read_json(files, "regions.json"),
        )


def decode_caption(text: bytes, *, strip: bool = True) -> str:
    """A caption from bytes; ``strip=False`` keeps the white space around it, where offsets into it are at hand.

    Raises:
        BadSampleError: it is empty or not UTF-8.
    """
    try:
        caption = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSampleError("caption not UTF-8") from error
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
    except ValueError as error:
        raise BadSampleError(f"malformed {extension}") from error
    if not isinstance(value, dict):
        raise BadSampleError(f"malformed {extension}")
    return value
