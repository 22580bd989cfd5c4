"""From a caption's words and phrases to a tokenizer's pieces."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from heapq import heapify, heappop, heappush
from html import unescape
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from powerclip.phrases.tree import PhraseTree

ALIGNED_PER_TOKEN = 16
"""Characters that are aligned for each token of the context where a tokenizer reads another text than the caption's."""

LONG_WORD_BYTES = 64
"""open_clip's BPE takes time quadratic in a word's length and keeps each word for ever; longer ones are split here."""

MAX_WORD_BYTES = 2**14
"""Of a longer word, only this much is split into pieces."""

CHARACTER = re.compile(r"&(?:amp;)*#?\w{1,32};|.", re.DOTALL)
"""A character of an uncleaned caption, which may be written as an HTML entity, escaped once or more."""


TOKENS_STEP = 8
"""Tokens of a batch's captions are a multiple of this many, so that shapes stay few, or all of the context."""


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
    words (punctuation that is not a leaf) belongs to none. Beyond the context, leaves have no token; a phrase is cut to
    the leaves that have one, and dropped when none has.

    Args:
        caption: the text, cleaned (``powerclip.phrases.clean``) unless it came with its tree; then the tokenizer's own
            cleaning is followed approximately.
        tree: its words and phrases.
        tokenizer: open_clip's ``SimpleTokenizer`` or ``HFTokenizer``, or a fast tokenizer of Hugging Face.
        context_length: T.

    Raises:
        ValueError: the tree reaches beyond the caption, or the tokenizer does not say where its tokens come from.
    """
    if tree.leaves and tree.leaves[-1][1] > len(caption):
        raise ValueError(
            f"the tree's words reach to character {tree.leaves[-1][1]}, the caption has {len(caption)}: "
            "parse this caption"
        )
    encode = _encode_bpe if hasattr(tokenizer, "byte_encoder") else _encode_hf
    tokens, cleaned, pieces = encode(caption, tokenizer, context_length)
    origin = _origins(caption, cleaned, limit=context_length * ALIGNED_PER_TOKEN)
    leaf_of_character = [-1] * len(caption)
    for leaf, (start, end) in enumerate(tree.leaves):
        leaf_of_character[start:end] = [leaf] * (end - start)
    leaf_of_token = [
        next((leaf for i in origin[start:end] if i is not None and (leaf := leaf_of_character[i]) >= 0), -1)
        for start, end in pieces
    ]
    leaf_of_token += [-1] * (context_length - len(leaf_of_token))
    spans = _surviving(tree, sorted({leaf for leaf in leaf_of_token if leaf >= 0}))
    return EncodedCaption(
        tokens=tokens,
        leaf_of_token=torch.tensor(leaf_of_token),
        phrase_spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
    )


def encode_captions(
    captions: Sequence[str], trees: Sequence[PhraseTree], tokenizer: Any, *, context_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``PowerCLIP.encode_phrases`` takes: tokens (B, T), leaves (B, T) and spans (B, K, 2), padded with -1.

    T is the ``used_length``.
    """
    encoded = [
        encode_caption(caption, tree, tokenizer, context_length=context_length)
        for caption, tree in zip(captions, trees, strict=True)
    ]
    tokens = torch.stack([caption.tokens for caption in encoded])
    T = used_length([tokens])
    return (
        tokens[:, :T],
        torch.stack([caption.leaf_of_token[:T] for caption in encoded]),
        pad_sequence([caption.phrase_spans for caption in encoded], batch_first=True, padding_value=-1),
    )


def used_length(pieces: Iterable[Tensor]) -> int:
    """The length that (B, T) ids on the CPU can be cut to: that of the longest text, up to a ``TOKENS_STEP``.

    Only padding of id 0 is cut, which CLIP's tokenizers write: a causal tower with that padding gives the same for what
    remains, and others are given it back (``PowerCLIP.encode_tokens``).
    """
    longest = max(int(((tokens != 0).any(dim=0) * torch.arange(1, tokens.shape[1] + 1)).amax()) for tokens in pieces)
    return -(-max(1, longest) // TOKENS_STEP) * TOKENS_STEP  # beyond the context length, a slice cuts nothing


def count_tokens(caption: str, tokenizer: Any) -> int:
    """How many tokens a tokenizer makes of a complete caption, with those that begin and end it."""
    if hasattr(tokenizer, "byte_encoder"):
        return 2 + sum(1 for _ in _pieces(tokenizer.clean_fn(caption), tokenizer))
    cleaned = tokenizer.clean_fn(caption) if hasattr(tokenizer, "clean_fn") else caption
    fast = getattr(tokenizer, "tokenizer", tokenizer)
    return len(fast(cleaned, truncation=False, verbose=False)["input_ids"])


def read_tokens(tokens: Tensor, tokenizer: Any) -> str:
    """The text of a caption's tokens (T,), as far as a text tower reads it."""
    ids: list[int] = tokens.tolist()
    if hasattr(tokenizer, "byte_encoder"):
        text = tokenizer.decode(ids[1 : ids.index(tokenizer.eot_token_id)])
    else:
        text = getattr(tokenizer, "tokenizer", tokenizer).decode(ids, skip_special_tokens=True)
    return str(text).strip()


def clip_pieces(caption: str, *, count: int) -> list[tuple[int, int]]:
    """Spans of a clean caption's characters that the first ``count`` pieces of CLIP's tokenizer cover; may overlap."""
    tokenizer = clip_tokenizer()
    # Not the tokenizer's cleaning: the caption is clean,
    # and the letters that change their length must keep their place.
    folded = [(i, c) for i, character in enumerate(caption) for c in character.lower()]
    pieces = _pieces("".join(c for _, c in folded), tokenizer)
    return [(folded[start][0], folded[end - 1][0] + 1) for _, start, end in islice(pieces, count)]


@cache
def clip_tokenizer() -> Any:
    """The tokenizer of CLIP, made once."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def _surviving(tree: PhraseTree, present: list[int]) -> list[tuple[int, int]]:
    """Spans of the phrases, once each, cut to the leaves that have a token."""
    spans: dict[tuple[int, int], None] = {}
    for phrase in tree.phrases:
        first, last = bisect_left(present, phrase.first), bisect_right(present, phrase.last) - 1
        if first <= last:
            spans[present[first], present[last]] = None
    return list(spans)


def _encode_bpe(caption: str, tokenizer: Any, context_length: int) -> tuple[Tensor, str, list[tuple[int, int]]]:
    """Tokens (T,) of open_clip's BPE, the cleaned caption, and the span of its characters that each token covers.

    The tokenizer's ``encode`` is followed step by step, because it does not give offsets.
    """
    if getattr(tokenizer, "reduction_fn", None) is not None:
        raise ValueError("the tokenizer drops tokens at random (reduction_mask); phrases need one that keeps them")
    cleaned = tokenizer.clean_fn(caption)
    pieces = list(islice(_pieces(cleaned, tokenizer), max(0, context_length - 2)))
    ids = [tokenizer.sot_token_id, *(piece for piece, _, _ in pieces), tokenizer.eot_token_id]
    tokens = torch.tensor(ids + [0] * (context_length - len(ids)))
    return tokens, cleaned, [(0, 0), *((start, end) for _, start, end in pieces)]


def _pieces(cleaned: str, tokenizer: Any) -> Iterator[tuple[int, int, int]]:
    """The id of each piece of open_clip's BPE, and the span of characters it covers, completely or in part."""
    for match in tokenizer.pat.finditer(cleaned):
        word, start = match.group()[:MAX_WORD_BYTES], match.start()
        symbols = "".join([tokenizer.byte_encoder[byte] for byte in word.encode("utf-8")[:MAX_WORD_BYTES]])
        short = len(symbols) <= LONG_WORD_BYTES
        pieces = tokenizer.bpe(symbols).split(" ") if short else _merged(symbols, tokenizer.bpe_ranks)
        if len(pieces) == 1:
            yield tokenizer.encoder[pieces[0]], start, match.end()
            continue
        character_of_byte = [i for i, character in enumerate(word, start) for _ in character.encode("utf-8")]
        position = 0
        for piece in pieces:
            first, position = position, position + len(piece.removesuffix("</w>"))
            yield tokenizer.encoder[piece], character_of_byte[first], character_of_byte[position - 1] + 1


def _merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The pieces of a word by byte-pair encoding (Sennrich et al. 2016), in O(n log n) for n bytes.

    The pair of lowest rank is merged first, of several the leftmost. A merge makes only pairs of higher ranks, since
    they are numbered in the order in which they were learnt; so this equals merging all pairs of a rank at once.
    """
    pieces = [*word[:-1], f"{word[-1]}</w>"]  # a merged piece stands at its first byte, and leaves "" at the others
    before, after = list(range(-1, len(pieces) - 1)), list(range(1, len(pieces) + 1))
    heap = [(ranks[pair], i, pair) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
    heapify(heap)
    while heap:
        _, i, pair = heappop(heap)
        j = after[i]
        if j == len(pieces) or (pieces[i], pieces[j]) != pair:
            continue  # one of the two has been merged since
        pieces[i], pieces[j], after[i] = "".join(pair), "", after[j]
        if after[i] < len(pieces):
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < len(pieces) and (new := (pieces[left], pieces[right])) in ranks:
                heappush(heap, (ranks[new], left, new))
    return [piece for piece in pieces if piece]


def _encode_hf(caption: str, tokenizer: Any, context_length: int) -> tuple[Tensor, str, list[tuple[int, int]]]:
    """The same of a Hugging Face tokenizer, or of open_clip's wrapper of one."""
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
    spans = [(0, 0) if s else span for span, s in zip(encoding["offset_mapping"], special, strict=True)]
    return tokens, cleaned, spans


def _origins(caption: str, cleaned: str, *, limit: int) -> Sequence[int | None]:
    """For each character that the tokenizer reads, the character of the caption it came from.

    A clean caption differs in case only ("İ" becomes two characters). Other texts (a caption that was stored uncleaned
    with its tree, a tokenizer that drops punctuation) are aligned by their longest common runs, HTML entities replaced
    and white space left out.
    """
    if cleaned in (caption, caption.lower()):
        if len(cleaned) == len(caption):
            return range(len(caption))
        return [i for i, character in enumerate(caption) for _ in character.lower()]
    characters = ((m.start(), c) for m in CHARACTER.finditer(caption) for c in unescape(unescape(m.group())).lower())
    written = [(i, c) for i, c in characters if not c.isspace()][:limit]
    read = [(i, c) for i, c in enumerate(cleaned.lower()) if not c.isspace()][:limit]
    origin: list[int | None] = [None] * len(cleaned)
    matcher = SequenceMatcher(None, [c for _, c in written], [c for _, c in read], autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        for j in range(j1, j2):  # what has no partner takes its neighbour's
            origin[read[j][0]] = written[min(i1 + j - j1, max(i1, i2 - 1), len(written) - 1)][0]
    return origin
