"""From a caption's words and phrases to the tokenizer's pieces."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from powerclip.phrases.clean import ENTITY, unescaped
from powerclip.phrases.tree import PhraseTree

WINDOW = 64
"""Characters looked at to find where a caption and its cleaned form meet again: longer than any HTML entity."""

STRAIGHT = str.maketrans("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "'''''\"\"\"\"")
"""Quotation marks that cleaning straightens."""

Origins = Sequence[int | None]
"""For each of some characters of a cleaned caption, the character of the caption it came from."""


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

    Every piece of a word belongs to that word's leaf, a piece of several words to the first one's; a piece between
    words (punctuation that is no leaf of its own) belongs to none. What lies beyond the context is dropped: phrases
    wholly, leaves by having no token.

    Args:
        caption: the text.
        tree: its words and phrases, in character offsets.
        tokenizer: open_clip's ``SimpleTokenizer`` or ``HFTokenizer``, or a fast tokenizer of Hugging Face.
        context_length: T.

    Raises:
        ValueError: the tree reaches beyond the caption, or the tokenizer does not say where its tokens come from.
    """
    if tree.leaves and tree.leaves[-1][1] > len(caption):
        raise ValueError(
            f"the tree's words reach to character {tree.leaves[-1][1]}, the caption has {len(caption)}: "
            "parse this very caption"
        )
    encode = _encode_bpe if hasattr(tokenizer, "byte_encoder") else _encode_hf
    tokens, origins = encode(caption, tokenizer, context_length)
    leaf_of_character = [-1] * len(caption)
    for leaf, (start, end) in enumerate(tree.leaves):
        leaf_of_character[start:end] = [leaf] * (end - start)
    leaf_of_token = [
        next((leaf for i in characters if i is not None and (leaf := leaf_of_character[i]) >= 0), -1)
        for characters in origins
    ]
    leaf_of_token += [-1] * (context_length - len(leaf_of_token))
    spans = _surviving(tree, sorted({leaf for leaf in leaf_of_token if leaf >= 0}))
    return EncodedCaption(
        tokens=tokens,
        leaf_of_token=torch.tensor(leaf_of_token),
        phrase_spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
    )


def _surviving(tree: PhraseTree, present: list[int]) -> list[tuple[int, int]]:
    """Spans of the phrases, once each, cut to the leaves that have a token."""
    spans: dict[tuple[int, int], None] = {}
    for phrase in tree.phrases:
        first, last = bisect_left(present, phrase.first), bisect_right(present, phrase.last) - 1
        if first <= last:
            spans[present[first], present[last]] = None
    return list(spans)


def _encode_bpe(caption: str, tokenizer: Any, context_length: int) -> tuple[Tensor, list[Origins]]:
    """Tokens (T,) of open_clip's BPE, and for each the characters of the caption that it has come from.

    The tokenizer cleans the caption (Unicode repair, HTML entities, white space, case) before it splits it. Its
    ``encode`` is followed step by step here: it tells no offsets, and cleaning twice would double the time.
    """
    if getattr(tokenizer, "reduction_fn", None) is not None:
        raise ValueError("the tokenizer drops tokens at random (reduction_mask); phrases need one that keeps them")
    cleaned = tokenizer.clean_fn(caption)
    origin = _origins(caption, cleaned)
    ids: list[int] = [tokenizer.sot_token_id]
    origins: list[Origins] = [()]
    for match in tokenizer.pat.finditer(cleaned):
        if len(ids) >= context_length:
            break
        word, start = match.group(), match.start()
        encoded = word.encode("utf-8")
        pieces = tokenizer.bpe("".join([tokenizer.byte_encoder[byte] for byte in encoded])).split(" ")
        ids += [tokenizer.encoder[piece] for piece in pieces]
        if len(pieces) == 1:
            origins.append(origin[start : match.end()])
            continue
        character_of_byte = [i for i, character in enumerate(word) for _ in character.encode("utf-8")]
        position = 0
        for piece in pieces:
            first, position = position, position + len(piece.removesuffix("</w>"))
            origins.append(origin[start + character_of_byte[first] : start + character_of_byte[position - 1] + 1])
    kept = min(len(ids), context_length - 1)
    ids = [*ids[:kept], tokenizer.eot_token_id]
    return torch.tensor(ids + [0] * (context_length - len(ids))), origins[:kept]


def _encode_hf(caption: str, tokenizer: Any, context_length: int) -> tuple[Tensor, list[Origins]]:
    """Tokens (T,) of a Hugging Face tokenizer or open_clip's wrapper of one, and the characters they have come from."""
    wrapped = hasattr(tokenizer, "clean_fn")
    fast = tokenizer.tokenizer if wrapped else tokenizer
    if not getattr(fast, "is_fast", False):
        raise ValueError(f"{type(fast).__name__} does not say where its tokens come from; use a fast tokenizer")
    cleaned: str = tokenizer.clean_fn(caption) if wrapped else caption
    encoding = fast(
        cleaned,
        max_length=context_length,
        padding="max_length",
        truncation=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    ids, special = list(encoding["input_ids"]), encoding["special_tokens_mask"]
    tokens: Tensor = tokenizer([caption], context_length=context_length)[0] if wrapped else torch.tensor(ids)
    if any(a != b and not s for a, b, s in zip(tokens.tolist(), ids, special, strict=True)):
        raise ValueError(f"{type(fast).__name__} gives other tokens with offsets than without; phrases need equal ones")
    origin = _origins(caption, cleaned)
    places = zip(encoding["offset_mapping"], special, strict=True)
    return tokens, [() if is_special else origin[start:end] for (start, end), is_special in places]


def _origins(caption: str, cleaned: str) -> Origins:
    """For each character of the cleaned caption, the character of the caption it came from.

    Cleaning mostly lowers case and collapses white space, so walking both texts together finds it, entities and
    characters written otherwise included; where it changed more (repaired encodings), a window on both is aligned and
    the walk goes on behind it.
    """
    if len(caption) == len(cleaned) and cleaned in (caption, caption.lower()):
        return range(len(caption))
    origin: list[int | None] = []
    at = 0
    while len(origin) < len(cleaned):
        character = cleaned[len(origin)]
        while at < len(caption) and caption[at].isspace() and not character.isspace():
            at += 1
        if at >= len(caption):
            origin += [None] * (len(cleaned) - len(origin))
        elif caption[at] == "&" and (lengths := _entity(caption, at, cleaned, len(origin))):
            origin += [at] * lengths[0]
            at += lengths[1]
        elif character in (caption[at], caption[at].lower()) or (character.isspace() and caption[at].isspace()):
            origin.append(at)
            at += 1
        elif lengths := _rewritten(caption, at, cleaned, len(origin)):
            origin += [at] * lengths[0]
            at += lengths[1]
        elif unicodedata.category(caption[at]) in {"Cc", "Cf"}:  # cleaning took it out
            at += 1
        else:
            index = len(origin)
            aligned, consumed = _aligned(caption[at : at + WINDOW], cleaned[index : index + WINDOW])
            origin += [at + i for i in aligned]
            at += consumed
    return origin


def _entity(caption: str, at: int, cleaned: str, index: int) -> tuple[int, int] | None:
    """Lengths, cleaned and as written, of the HTML entity at this place of both texts; None where there is none."""
    match = ENTITY.match(caption, at)
    if match is None:
        return None
    text = unescaped(match.group())
    if text == match.group():
        return None
    if not text.strip():  # white space is collapsed, and left out at the ends
        return int(cleaned[index].isspace()), len(match.group())
    here = cleaned[index : index + len(text)]
    return (len(text), len(match.group())) if here in (text, text.lower()) else None


def _rewritten(caption: str, at: int, cleaned: str, index: int) -> tuple[int, int] | None:
    """Lengths, cleaned and as written, of a character that cleaning wrote otherwise; None where there is none.

    It may have been composed with its combining marks, expanded, straightened, or read in the wrong encoding before.
    """
    end = at + 1
    while end < len(caption) and unicodedata.combining(caption[end]):
        end += 1
    written = {end: caption[at:end]}
    if "\x80" <= caption[at] <= "\x9f":
        written[end] = caption[at].encode("latin-1").decode("cp1252", "ignore")
    if "\xc2" <= caption[at] <= "\xf4":  # the first byte of UTF-8 that was read as Windows-1252
        for end in (at + 2, at + 3, at + 4):
            with suppress(UnicodeError):
                written[end] = b"".join(map(_windows_byte, caption[at:end])).decode("utf-8")
    for end, text in written.items():
        for normal in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text)):
            straight = normal.translate(STRAIGHT)
            for form in (straight, straight.lower()):
                if cleaned.startswith(form, index):
                    return len(form), end - at
    return None


def _windows_byte(character: str) -> bytes:
    """The byte that is read as this character, be it one that Windows-1252 leaves open.

    Raises:
        UnicodeError: there is none.
    """
    try:
        return character.encode("cp1252")
    except UnicodeError:
        return character.encode("latin-1")


def _aligned(window: str, cleaned: str) -> tuple[list[int], int]:
    """Origins of a stretch of cleaned text by its longest runs in common with the caption's, and how much of that.

    What has no partner takes its neighbour's; the stretch ends with the last common run, so that the walk can go on.
    """
    folded = "".join(c.lower() if len(c.lower()) == 1 else c for c in window)
    matcher = SequenceMatcher(None, folded, cleaned, autojunk=False)
    codes = matcher.get_opcodes()
    while len(codes) > 1 and codes[-1][0] != "equal":
        codes.pop()
    origin: list[int] = []
    for _tag, i1, i2, j1, j2 in codes:
        origin += [min(i1 + j - j1, max(i1, i2 - 1), len(window) - 1) for j in range(j1, j2)]
    if not origin:
        return [0], 1
    return origin, codes[-1][2]


def crossing(tree: PhraseTree) -> bool:
    """Whether two phrases overlap without one holding the other."""
    open_ends: list[int] = []
    for first, last in sorted({(p.first, p.last) for p in tree.phrases}, key=lambda span: (span[0], -span[1])):
        while open_ends and open_ends[-1] < first:
            open_ends.pop()
        if open_ends and last > open_ends[-1]:
            return True
        open_ends.append(last)
    return False
