"""From a caption's words and phrases to the tokenizer's pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from powerclip.types import PhraseTree


@dataclass(frozen=True, kw_only=True)
class EncodedCaption:
    """A caption as the text tower takes it, and its phrases over those tokens."""

    tokens: Tensor
    """(T,) int64 token ids, exactly the tokenizer's own."""
    leaf_of_token: Tensor
    """(T,) int64: the leaf each token belongs to, -1 for specials and padding."""
    phrase_spans: Tensor
    """(K, 2) int64: first and last leaf of each phrase, inclusive; phrases beyond the context are dropped."""


def encode_caption(caption: str, tree: PhraseTree, tokenizer: Any, *, context_length: int) -> EncodedCaption:
    """Tokenize a caption and map its words to the tokens.

    Every piece of a word belongs to that word's leaf; a piece between words (punctuation that is no leaf of its own)
    belongs to none. What lies beyond the context is dropped: phrases wholly, leaves by having no token.

    Args:
        caption: the text.
        tree: its words and phrases, in character offsets.
        tokenizer: open_clip's ``SimpleTokenizer`` or ``HFTokenizer``.
        context_length: T.
    """
    tokens = tokenizer([caption], context_length=context_length)[0]
    offsets = (
        _hf_offsets(caption, tokenizer, tokens) if hasattr(tokenizer, "tokenizer") else _bpe_offsets(caption, tokenizer)
    )
    leaf_of_character = [-1] * len(caption)
    for leaf, (start, end) in enumerate(tree.leaves):
        leaf_of_character[start:end] = [leaf] * (min(end, len(caption)) - start)
    leaf_of_token = torch.full_like(tokens, -1)
    reached = 0
    for position, character in enumerate(offsets[: int(_kept(tokenizer, tokens, len(offsets)))]):
        if character is not None and leaf_of_character[character] >= 0:
            leaf_of_token[position] = leaf_of_character[character]
            reached = max(reached, leaf_of_character[character] + 1)
    spans: dict[tuple[int, int], None] = {}
    for phrase in tree.phrases:
        if phrase.first < reached:
            spans[phrase.first, min(phrase.last, reached - 1)] = None
    return EncodedCaption(
        tokens=tokens,
        leaf_of_token=leaf_of_token,
        phrase_spans=torch.tensor(list(spans), dtype=torch.int64).reshape(-1, 2),
    )


def _kept(tokenizer: Any, tokens: Tensor, pieces: int) -> int:
    """How many of the pieces survive truncation: open_clip's BPE puts the end of text in the last place."""
    if hasattr(tokenizer, "tokenizer"):
        return pieces
    return min(pieces, len(tokens) - 1)


def _bpe_offsets(caption: str, tokenizer: Any) -> list[int | None]:
    """For open_clip's BPE, the character of the caption that each token begins with; None for the start of text.

    The tokenizer cleans the caption (Unicode repair, HTML entities, white space, case) before it splits it.
    """
    cleaned = tokenizer.clean_fn(caption)
    origin = _origins(caption, cleaned)
    offsets: list[int | None] = [None]
    for match in tokenizer.pat.finditer(cleaned):
        start = match.start()
        text = "".join(tokenizer.byte_encoder[byte] for byte in match.group().encode("utf-8"))
        bytes_before = 0
        width = [len(character.encode("utf-8")) for character in match.group()]
        starts = [0]
        for w in width:
            starts.append(starts[-1] + w)
        for piece in tokenizer.bpe(text).split(" "):
            index = next(i for i in range(len(width)) if bytes_before < starts[i + 1])
            offsets.append(origin[start + index])
            bytes_before += len(piece.removesuffix("</w>"))
    return offsets


def _origins(caption: str, cleaned: str) -> list[int | None]:
    """For each character of the cleaned caption, the character of the caption it came from.

    Cleaning mostly lowers case and collapses white space, so walking both texts together finds it; where it changed
    more (entities, repaired encodings), the texts meet again at the next characters they share.
    """
    lowered = [character.lower() for character in caption]
    origin: list[int | None] = []
    at = 0
    for index, character in enumerate(cleaned):
        while at < len(caption) and caption[at].isspace() and not character.isspace():
            at += 1
        if at < len(caption) and (lowered[at] == character or (character.isspace() and caption[at].isspace())):
            origin.append(at)
            at += 1
            continue
        return origin + _aligned(caption, cleaned, at, index)
    return origin


def _aligned(caption: str, cleaned: str, at: int, index: int) -> list[int | None]:
    """Align what is left of both texts by their longest common runs; what has no partner takes its neighbour's."""
    from difflib import SequenceMatcher

    rest, clean = caption[at:], cleaned[index:]
    folded = "".join(c.lower() if len(c.lower()) == 1 else c for c in rest)
    origin: list[int | None] = []
    for _tag, i1, i2, j1, j2 in SequenceMatcher(None, folded, clean, autojunk=False).get_opcodes():
        for j in range(j1, j2):
            i = min(i1 + (j - j1), max(i1, i2 - 1))
            origin.append(at + i if at + i < len(caption) else None)
    return origin


def _hf_offsets(caption: str, tokenizer: Any, tokens: Tensor) -> list[int | None]:
    """For a Hugging Face tokenizer, the character each token begins with; None for specials and padding."""
    encoding = tokenizer.tokenizer(
        tokenizer.clean_fn(caption) if hasattr(tokenizer, "clean_fn") else caption,
        max_length=len(tokens),
        padding="max_length",
        truncation=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    if list(encoding["input_ids"]) != tokens.tolist():
        raise ValueError(
            f"{type(tokenizer.tokenizer).__name__} gives other tokens with offsets than without; phrases cannot be "
            "mapped to them: use a fast tokenizer whose padding is on the right"
        )
    cleaned = tokenizer.clean_fn(caption) if hasattr(tokenizer, "clean_fn") else caption
    origin = _origins(caption, cleaned)
    pairs = zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
    offsets: list[int | None] = []
    for (start, end), special in pairs:
        while start < end and cleaned[start].isspace():
            start += 1
        offsets.append(None if special or start >= end else origin[start])
    return offsets
