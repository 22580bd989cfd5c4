"""Where the sentences of a caption are."""

import re
from bisect import bisect_left
from itertools import accumulate, pairwise

from powerclip.phrases.clean import is_word
from powerclip.phrases.tree import PhraseTree

END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u2019\u201d)\]]*(?:\s+|(?<=[\u3002\uff01\uff1f]))")
"""What may be the end of a sentence, with the white space behind it."""
BEGINNING = re.compile(r"[\"'\u2018\u201c(\[]*(?:[^\W\d_a-z]|\d)")
"""How a sentence begins, where no phrases tell: with a letter that is not a small one of ASCII, or a digit."""


def sentences(caption: str, tree: PhraseTree | None = None) -> list[tuple[int, int]]:
    """The sentences of a caption, as character spans [start, end) without white space at their ends.

    A sentence ends at a full stop, question or exclamation mark before white space that no phrase goes
    across ("Mr. Smith" is one); without phrases, the next word must not begin with a small letter. What
    holds no word is no sentence.
    """
    ends = [match.end() for match in END.finditer(caption)]
    if tree is not None and tree.phrases:
        change = [0] * (len(tree.leaves) + 1)
        for phrase in tree.phrases:
            change[phrase.first + 1] += 1
            change[phrase.last + 1] -= 1
        across = list(accumulate(change))  # phrases that hold both a leaf and the one before it
        starts = [start for start, _ in tree.leaves]
        ends = [end for end in ends if not across[bisect_left(starts, end)]]
    else:
        ends = [end for end in ends if BEGINNING.match(caption, end)]
    spans = []
    for start, end in pairwise([0, *ends, len(caption)]):
        text = caption[start:end]
        if is_word(text):
            spans.append((start + len(text) - len(text.lstrip()), start + len(text.rstrip())))
    return spans
