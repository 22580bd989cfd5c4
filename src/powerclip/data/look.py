"""A look at data before the first step: what a model sees of some samples, and signs of what spoilt runs of others."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.sample import CAPTION_EXTENSION, CAPTIONS_EXTENSION, IMAGE_EXTENSIONS, Sample
from powerclip.data.shards import SamplePlace
from powerclip.data.validate import check_phrases
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.phrases import encode_caption, tree_or_whole
from powerclip.phrases.clean import clean_caption
from powerclip.phrases.tokens import count_tokens, read_tokens

S = TypeVar("S")

SHOWN = 3
"""Samples that are shown."""
LOOKED_AT, SHARDS = 1024, 16
"""Samples whose texts are looked at, and shards that they come from, at most."""
ALARMING = 0.1
"""Share of the samples from which a sign is a warning."""
PHRASES = 6
"""Phrases of a sample that are shown."""
CHARACTERS = 20_000
"""Of a longer caption, the tokens of this much are counted."""
SIGN_CHARACTERS = 1000
"""The signs are looked for at the beginning of a caption, in this much: they take time quadratic in it."""
TEXTS = (CAPTION_EXTENSION, CAPTIONS_EXTENSION, "json", "phrases.json", "njson")
TEXT_BYTES = 2**24
"""Bytes of these files that are read in all: as values, JSON takes twenty times its size."""
METADATA = ("caption", "caption_original", "key")
"""What is looked at of the metadata."""

SIGNS = (
    (re.compile(r"\[\s*(['\"]).*\1\s*,.*\]"), "are written as lists: several captions that were not split"),
    (
        re.compile(r"(?s).*\S\s*\n\s*\S"),
        "hold line breaks: several captions that were not split (prepare --caption-lines)",
    ),
    (re.compile(r"(?i)(?:.*[\w/])?\.(?:jpe?g|png|webp|gif)\b"), "hold a file name: columns that were not split"),
)
"""What captions begin with, and what it may mean."""


def sample_places(shards: Sequence[S], index: Callable[[S], Any]) -> Iterator[SamplePlace]:
    """Where at most ``LOOKED_AT`` samples from all over some shards are; shards that cannot be read are left out."""
    for shard, times in Counter(shards[i * len(shards) // SHARDS] for i in range(SHARDS)).items():
        with suppress(PowerclipError, OSError):
            places = index(shard)
            number = min(len(places), LOOKED_AT * times // SHARDS)
            yield from (places[i * len(places) // number] for i in range(number))


def from_all_over(places: Sequence[S], count: int) -> Iterator[S]:
    """The places in another order: first ``count`` of them from all over, then the others."""
    return (places[i] for i in sorted(range(len(places)), key=lambda i: (i * count % len(places) >= count, i)))


def read_texts(places: Iterable[SamplePlace]) -> Iterator[Sample]:
    """Samples without their images, regions and most metadata; bad ones, and those with large texts, are left out."""
    left = TEXT_BYTES
    for place in places:
        size = sum(place.members[extension][1] for extension in TEXTS if extension in place.members)
        if size > left:
            continue
        left -= size
        with suppress(BadSampleError):
            sample = Sample.from_members(place.key, {IMAGE_EXTENSIONS[0]: b"", **place.files(only=TEXTS)})
            known = {name: text for name in METADATA if isinstance(text := sample.metadata.get(name), str)}
            yield replace(sample, metadata=known)


def read_some(places: Sequence[SamplePlace], *, without: Collection[str] = ()) -> Iterator[tuple[Sample, Image.Image]]:
    """``SHOWN`` samples of those places, with their images, but without some of their files; bad ones are left out."""
    found = 0
    for place in from_all_over(places, SHOWN):
        with suppress(BadSampleError):
            sample = place.read(without=without)
            check_phrases(sample)
            yield sample, decode_image(sample.image)
            found += 1
        if found == SHOWN:
            return


def look_at_texts(samples: Sequence[Sample], tokenizer: Any, *, context_length: int) -> list[str]:
    """Lines on some samples' captions: how many are cut, equal, or without phrases; and warnings."""
    every = [caption for sample in samples for caption in sample.captions]
    captions = Counter(caption.text for caption in every)
    cut = sum(count_tokens(caption.text[:CHARACTERS], tokenizer) > context_length for caption in every)
    equal = sum(number for number in captions.values() if number > 1)
    bare = sum(all(p.label == "CAPTION" for p in c.tree.phrases) if c.tree else True for c in every)
    total = len(every)
    if not total:
        return ["No caption could be looked at"]
    shares = [f"{number} ({number / total:.0%})" for number in (cut, equal, bare)]
    lines = [
        f"Of {total} captions, {shares[0]} are longer than the context of {context_length} tokens, "
        f"{shares[1]} occur more than once, and {shares[2]} have no phrases"
    ]
    caption, number = captions.most_common(1)[0]
    if number > max(1, total / 2):
        lines.append(
            f"Warning: {number} of {total} captions are {caption[:60]!r}: is the right file, column or key read?"
        )
    firsts = [sample.metadata.get("caption_original", sample.caption) for sample in samples]
    texts = [*firsts, *(caption.original or caption.text for s in samples for caption in s.more_captions)]
    for sign, meaning in SIGNS:
        found = [text for text in texts if sign.match(text[:SIGN_CHARACTERS])]
        if len(found) > ALARMING * total:
            lines.append(f"Warning: {len(found)} of {total} captions {meaning}, for example {found[0][:80]!r}")
    mixed = [sample.key for sample in samples if _mixed(sample, captions)]
    if mixed:
        lines.append(
            f"Warning: KEY.json of {len(mixed)} of {len(samples)} samples has the key or caption of another sample, "
            f"for example {mixed[0]}: images and captions may be mixed up"
        )
    return lines


def _mixed(sample: Sample, captions: Counter[str]) -> bool:
    """Whether what is known of a sample, as img2dataset writes it, is known of another one."""
    key, caption = sample.metadata.get("key"), sample.metadata.get("caption")
    if isinstance(key, str) and key not in sample.key:
        return True
    if not isinstance(caption, str) or len(caption) > CHARACTERS:
        return False
    known = clean_caption(caption)
    return known != sample.caption and known in captions


def look_at_sample(
    sample: Sample, tokenizer: Any, *, context_length: int, size: tuple[int, int], regions: str
) -> list[str]:
    """Lines on one sample as a model sees it; ``size`` (H, W) is its image's, and ``regions`` says which it has."""
    bare = sample.tree is None or not sample.tree.phrases
    tree = tree_or_whole(sample.caption, sample.tree)
    encoded = encode_caption(sample.caption, tree, tokenizer, context_length=context_length)
    cut = max(0, count_tokens(sample.caption[:CHARACTERS], tokenizer) - context_length)
    spans = encoded.phrase_spans.tolist()
    phrases = [repr(sample.caption[tree.leaves[first][0] : tree.leaves[last][1]][:60]) for first, last in spans]
    more = f" and {len(phrases) - PHRASES} more" if len(phrases) > PHRASES else ""
    height, width = size
    others = Counter(caption.source for caption in sample.more_captions)
    further = ", ".join(f"{number} from {source}" for source, number in others.items())
    return [
        f"{sample.key}: {width} x {height} pixels, {regions}",
        f"  caption: {read_tokens(encoded.tokens, tokenizer)[:400]!r}" + f" ({cut} tokens cut)" * bool(cut),
        "  phrases: " + ("none, so the caption is one" if bare else ", ".join(islice(phrases, PHRASES)) + more),
        *([f"  further captions: {further}"] if others else []),
    ]
