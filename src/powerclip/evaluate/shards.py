"""Evaluation on one's own shards."""

from __future__ import annotations

from pathlib import Path

from powerclip.data.decode import decode_image
from powerclip.data.sample import BadSampleError
from powerclip.data.shards import probe, read_shards
from powerclip.types import PowerclipError, Retrieval


def retrieval_from_shards(path: Path | str) -> Retrieval:
    """Image-text retrieval among all usable pairs at a path; a sample that cannot be used is passed over.

    Raises:
        PowerclipError: no shards, or no usable pair.
    """
    probe(path)
    images, captions = [], []
    for sample in read_shards(path):
        try:
            images.append(decode_image(sample.image))
        except BadSampleError:
            continue
        captions.append((sample.caption,))
    if not images:
        raise PowerclipError(f"no usable image-caption pair in {path}; see powerclip prepare")
    return Retrieval(name="retrieval", images=images, captions=captions)
