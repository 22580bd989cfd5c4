"""What the shards published with the paper hold in forms of their own: regions on a patch grid, phrases as positions.

``KEY.samlens.npy`` and ``KEY.samcat.npy`` are the regions: their lengths, and the patches of all of them concatenated.

``KEY.njson`` is the phrases in the same form, as positions among the tokens of CLIP's tokenizer. Its keys are not
documented, so any JSON object or pair is read that holds two lists of integers of which the shorter sums to the other's
length. Position 0 is start-of-text; where position 0 is named, positions are counted from the first token of the text.
"""

import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from powerclip.errors import BadSampleError
from powerclip.phrases.tokens import clip_pieces
from powerclip.phrases.tree import PhraseTree, Span
from powerclip.regions.annotation import MAX_MASKS

GRID = (14, 14)
"""Rows and columns of the patch grid that the regions are given on."""
CONTEXT = 77
"""Tokens of a caption, start-of-text and end-of-text included."""
PARSER = "njson"
"""What the trees that are read here name as their parser."""

log = logging.getLogger(__name__)
logged: set[str] = set()
"""Kinds of messages that this process has logged."""


def read_patch_regions(files: Mapping[str, bytes]) -> tuple[tuple[int, ...], ...] | None:
    """Each region's patches, row-major on ``GRID``; None without such files, BadSampleError if they are malformed."""
    if "samlens.npy" not in files:
        return None
    if "samcat.npy" not in files:
        raise BadSampleError("samlens.npy without samcat.npy")
    lengths, patches = (_integers(files, name) for name in ("samlens.npy", "samcat.npy"))
    if len(lengths) > MAX_MASKS:
        raise BadSampleError(f"more than {MAX_MASKS} regions")
    inside = (patches >= 0) & (patches < GRID[0] * GRID[1])
    possible = (lengths >= 0) & (lengths <= len(patches))
    if not possible.all() or lengths.sum() != len(patches) or not inside.all():
        raise BadSampleError("samlens.npy and samcat.npy do not fit the 14 x 14 grid")
    return tuple(map(tuple, _split(patches.tolist(), lengths.tolist())))


def patch_masks(regions: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """(M, N) bool: regions that are given as patches of ``GRID``."""
    masks = np.zeros((len(regions), GRID[0] * GRID[1]), dtype=np.bool_)
    for mask, patches in zip(masks, regions, strict=True):
        mask[list(patches)] = True
    return masks


def read_phrases(data: bytes, caption: str) -> PhraseTree | None:
    """The phrases of a ``KEY.njson``, or None where they cannot be read; what was understood is logged once.

    A leaf is a token that some phrase holds, in the characters of the clean caption that it covers; tokens within one
    character are one leaf. A phrase that leaves out a leaf between its own is not a range of leaves, so it is skipped.
    Labels are not known. BadSampleError if the file is not JSON.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSampleError("malformed njson") from error
    lists = _phrase_lists(value)
    if lists is None:
        keys = ", ".join(sorted(str(key)[:30] for key in value)[:12]) if isinstance(value, dict) else "none"
        _log_once("form", "njson skipped: expected two lists of integers, lengths and token positions (keys: %s)", keys)
        return None
    lengths, positions, names = lists
    start = 0 if 0 in positions else 1
    pieces = clip_pieces(caption, count=CONTEXT - 2)
    if not all(start <= position < start + len(pieces) for position in positions):
        _log_once("fit", "njson skipped: token positions that the caption does not have (among %d tokens)", len(pieces))
        return None
    leaf_of: dict[int, int] = {}
    leaves: list[tuple[int, int]] = []
    for position in sorted(set(positions)):
        first, last = pieces[position - start]
        if leaves and first < leaves[-1][1]:
            leaves[-1] = (leaves[-1][0], max(last, leaves[-1][1]))
        else:
            leaves.append((first, last))
        leaf_of[position] = len(leaves) - 1
    spans: list[Span] = []
    for phrase in _split(positions, lengths):
        own = {leaf_of[position] for position in phrase}
        if own and max(own) - min(own) == len(own) - 1:
            spans.append(("X", min(own), max(own)))
        elif own:
            _log_once("gaps", "njson: phrases that leave out tokens between their own are skipped")
    counted = "start-of-text" if start else "the first token of the text"
    _log_once(names + counted, "njson read: %s, token positions counted from %s", names, counted)
    return PhraseTree.from_spans(leaves, spans, parser=PARSER) if spans else None


def _phrase_lists(value: Any) -> tuple[list[int], list[int], str] | None:
    """Lengths, positions, and what they are called; None where the value does not hold two such lists."""
    named = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    lists = {name: v for name, v in named if isinstance(v, list) and v and all(type(i) is int and i >= 0 for i in v)}
    for a, b in permutations(lists, 2) if len(lists) == 2 else ():
        if len(lists[a]) <= len(lists[b]) == sum(lists[a]):
            return lists[a], lists[b], f"lengths in {str(a)[:30]!r} and positions in {str(b)[:30]!r}"
    return None


def _split(values: list[int], lengths: list[int]) -> list[list[int]]:
    """Concatenated lists, apart again."""
    ends = np.cumsum(lengths).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _integers(files: Mapping[str, bytes], name: str) -> NDArray[np.int64]:
    """The values of a .npy file of integers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            values = np.load(io.BytesIO(files[name]), allow_pickle=False)
        if values.dtype.kind not in "iu":
            raise ValueError(f"it holds {values.dtype}")
        return np.asarray(values, np.int64).reshape(-1)
    except Exception as error:  # numpy raises many kinds on hostile headers, MemoryError among them
        raise BadSampleError(f"malformed {name}") from error


def _log_once(kind: str, message: str, *values: object) -> None:
    """Log one message of a kind in each process."""
    if kind not in logged:
        logged.add(kind)
        log.warning(message, *values)
