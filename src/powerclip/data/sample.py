"""An image and its captions as they are stored in a shard; ``dataset.py`` turns them into what training shows."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from powerclip.data.limits import MAX_CAPTION_BYTES, MAX_CAPTIONS, MAX_JSON_DEPTH
from powerclip.data.published import read_patch_regions, read_phrases
from powerclip.errors import BadSampleError
from powerclip.phrases.clean import clean_caption
from powerclip.phrases.tree import PhraseTree
from powerclip.regions.annotation import RegionAnnotation

T = TypeVar("T")

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
CAPTIONS_EXTENSION = "captions.json"
INVISIBLE = {"Cf", "Me", "Mn"}
"""Categories of characters that show nothing on their own: joiners, byte-order marks, combining marks, ..."""
REGION_FILES = ("regions.json", "samlens.npy", "samcat.npy")
"""Files that hold regions, in this project's form and in that of the shards published with the paper."""
COCO = (b'"counts"', b'"segmentation"')
"""What masks in the forms of COCO and SAM hold, of which this project's takes the compressed counts only."""
FORM = ' (give {"height", "width", "masks": [{"rle": compressed counts}]}, not COCO\'s form)'


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption of an image."""

    text: str
    """Cleaned (``powerclip.phrases.clean``), or as it is if a tree came with it: offsets refer to it."""
    source: str = CAPTION_EXTENSION
    """Where it is from: a column, an extension, a model. Training draws captions by their sources."""
    tree: PhraseTree | None = None
    """Its phrases."""
    original: str | None = None
    """The text before it was cleaned, where cleaning changed more than white space at its ends."""

    def to_json(self) -> dict[str, Any]:
        """Its entry in a ``KEY.captions.json`` file."""
        entry: dict[str, Any] = {"source": self.source, "text": self.text}
        if self.tree is not None:
            entry["phrases"] = self.tree.to_json()
        return entry if self.original is None else {**entry, "original": self.original}

    @classmethod
    def from_json(cls, entry: Any) -> Caption:
        """Read an entry or a bare text; BadSampleError without a usable text, ValueError if a part has another form."""
        entry = entry if isinstance(entry, dict) else {"text": entry}
        if not isinstance(entry.get("text"), str):
            raise BadSampleError("no caption" if entry.get("text") is None else "caption is not text")
        original = entry.get("original")
        if not isinstance(original, str | None):
            raise ValueError("original, the caption before it was cleaned, must be a text")
        tree = None if entry.get("phrases") is None else PhraseTree.from_json(entry["phrases"])
        caption = read_caption(entry["text"], source=str(entry.get("source") or CAPTIONS_EXTENSION), clean=tree is None)
        return replace(caption, tree=tree, original=caption.original if original is None else original)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its captions and annotations, the image still encoded."""

    key: str
    """Name within the data set, without a dot."""
    image: bytes
    image_extension: str
    """"png", "jpg", "jpeg" or "webp"."""
    caption: str
    """The text of the first caption (``KEY.txt``)."""
    tree: PhraseTree | None = None
    """Phrases of that caption (``KEY.phrases.json``)."""
    caption_source: str = CAPTION_EXTENSION
    """Where that caption is from."""
    more_captions: tuple[Caption, ...] = ()
    """Further captions (``KEY.captions.json``, which lists all)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever is known of the sample (``KEY.json``); ``caption_original`` is the caption before it was cleaned."""
    regions: RegionAnnotation | None = None
    """Region masks of the image (``KEY.regions.json``)."""
    patch_regions: tuple[tuple[int, ...], ...] | None = None
    """Regions as patches of the published shards' grid, row-major (``KEY.samlens.npy`` and ``KEY.samcat.npy``)."""

    remarks: tuple[str, ...] = ()
    """What ``prepare`` counts of it, such as why a further caption cannot be used; not written."""
    extra: Mapping[str, bytes] = field(default_factory=dict)
    """Other files, by extension, that are written as they are; not read."""

    @property
    def captions(self) -> tuple[Caption, ...]:
        """All captions, the first one first; without its original, which is among the metadata."""
        return Caption(text=self.caption, source=self.caption_source, tree=self.tree), *self.more_captions

    def with_captions(self, captions: Sequence[Caption]) -> Sample:
        """The same image with other captions, one or more; BadSampleError if there are more than ``MAX_CAPTIONS``."""
        if len(captions) > MAX_CAPTIONS:
            raise BadSampleError(f"more than {MAX_CAPTIONS} captions")
        first = captions[0]
        known = {} if first.original is None else {"caption_original": first.original}
        return replace(
            self,
            caption=first.text,
            tree=first.tree,
            caption_source=first.source,
            more_captions=tuple(captions[1:]),
            metadata={**known, **self.metadata},
        )

    def members(self) -> dict[str, bytes]:
        """The sample's files by extension; ValueError if the key, the image's extension
        or a NaN would not be read back."""
        if "." in self.key.rpartition("/")[2] or not self.key:
            raise ValueError(f"key is {self.key!r}; it must be a name without a dot: the extension begins there")
        if self.image_extension not in IMAGE_EXTENSIONS:
            raise ValueError(f"image_extension is {self.image_extension!r}; use one of {', '.join(IMAGE_EXTENSIONS)}")
        files = {**self.extra, self.image_extension: self.image, CAPTION_EXTENSION: self.caption.encode("utf-8")}
        if self.metadata:
            files["json"] = _json(self.metadata)
        if self.tree is not None:
            files["phrases.json"] = _json(self.tree.to_json())
        if self.more_captions or self.caption_source != CAPTION_EXTENSION:
            files[CAPTIONS_EXTENSION] = _json([caption.to_json() for caption in self.captions])
        if self.regions is not None:
            files["regions.json"] = _json(self.regions.to_json())
        return files

    @classmethod
    def from_members(cls, key: str, files: Mapping[str, bytes]) -> Sample:
        """Read a sample's files; a caption without phrases is cleaned.

        The first caption is ``KEY.txt``, which ``KEY.captions.json`` may list again, or else the first that it lists.
        One of several that cannot be used, and malformed metadata, are left out, with a remark. BadSampleError if there
        is no image or no usable caption, or an annotation does not have its form.
        """
        extension = next((e for e in IMAGE_EXTENSIONS if e in files), None)
        if extension is None:
            raise BadSampleError("no image")
        captions, remarks = _read(files, CAPTIONS_EXTENSION, _captions, kind=list) or ([], [])
        if CAPTION_EXTENSION in files:
            tree = _read(files, "phrases.json", PhraseTree.from_json)
            try:
                first = read_caption(files[CAPTION_EXTENSION], clean=tree is None)
            except BadSampleError as error:
                remarks.insert(0, str(error))
            else:
                if tree is None and "njson" in files:
                    tree = read_phrases(files["njson"], first.text)
                listed = next((caption for caption in captions if caption.text == first.text), None)
                if listed is not None:
                    captions.remove(listed)
                    first, tree = replace(first, source=listed.source), tree or listed.tree
                captions.insert(0, replace(first, tree=tree))
        if not captions:
            raise BadSampleError(remarks[0] if remarks else "no caption")
        try:
            metadata = _read(files, "json", dict[str, Any]) or {}
        except BadSampleError as error:  # the pair can be used without it
            metadata = {}
            remarks.append(f"{error} left out")
        return cls(
            key=key,
            image=files[extension],
            image_extension=extension,
            caption="",
            metadata=metadata,
            regions=_read(files, "regions.json", RegionAnnotation.from_json),
            patch_regions=read_patch_regions(files),
            remarks=tuple(remarks),
        ).with_captions(captions)


def read_caption(text: bytes | str, *, source: str = CAPTION_EXTENSION, clean: bool = True) -> Caption:
    """A caption where it enters, without a tree.

    ``clean`` is False for a caption that came with offsets into it; it stays as it is. BadSampleError if the text is
    too large, empty, not UTF-8, or contains NUL.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")
    if len(data) > MAX_CAPTION_BYTES:
        raise BadSampleError("caption too large")
    try:
        original = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSampleError("caption not UTF-8") from error
    if "\0" in original:
        raise BadSampleError("caption contains NUL")
    caption = clean_caption(original) if clean else original
    if all(c.isspace() or unicodedata.category(c) in INVISIBLE for c in caption):
        raise BadSampleError("empty caption")
    unchanged = caption in (original, original.strip())
    return Caption(text=caption, source=source, original=None if unchanged else original)


def _captions(entries: list[Any]) -> tuple[list[Caption], list[str]]:
    """The usable captions, and why others cannot be used."""
    if len(entries) > MAX_CAPTIONS:
        raise ValueError(f"it lists more than {MAX_CAPTIONS} captions")
    captions: list[Caption] = []
    reasons: list[str] = []
    for entry in entries:
        try:
            captions.append(Caption.from_json(entry))
        except BadSampleError as error:
            reasons.append(str(error))
    return captions, reasons


def _json(value: Mapping[str, Any] | list[Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace")  # which is how JSON writes half a surrogate pair


def _read(files: Mapping[str, bytes], extension: str, make: Callable[[Any], T], *, kind: type = dict) -> T | None:
    """What a JSON file of a sample, an object or a list, holds; None if there is no such file."""
    if extension not in files:
        return None
    data = files[extension]
    try:
        number = _finite_or_null if extension == "json" else _finite
        value = json.loads(data, parse_constant=number, parse_float=number)
        if not isinstance(value, kind) or (data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _is_deep(value)):
            raise ValueError(f"it is not a {kind.__name__}, or too deep")
        return make(value)
    except (ValueError, OverflowError, RecursionError) as error:
        others = extension == "regions.json" and any(name in data for name in COCO)
        raise BadSampleError(f"malformed {extension}{FORM if others else ''}") from error


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not JSON")
    return number


def _finite_or_null(text: str) -> float | None:
    """Of metadata, where many programs write NaN for what is missing."""
    return number if math.isfinite(number := float(text)) else None


def _is_deep(value: Any, levels: int = MAX_JSON_DEPTH) -> bool:
    """Whether objects and lists are nested more than ``levels`` deep."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(_is_deep(x, levels - 1) for x in (value.values() if isinstance(value, dict) else value))
