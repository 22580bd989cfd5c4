from collections import Counter

import numpy as np

from powerclip.evaluate.datasets.aro_order import clean, order_task, shufflings
from powerclip.tasks import Retrieval
from tests.support.colours import square

WORDS = ["a", "brown", "dog", "and", "a", "white", "cat", "sit", "quietly"]
TAGS = ["DT", "JJ", "NN", "CC", "DT", "JJ", "NN", "VBP", "RB"]


def test_each_shuffling_moves_what_it_says_and_nothing_else():
    seen = [set() for _ in range(4)]
    for seed in range(50):
        for number, text in enumerate(shufflings(WORDS, TAGS, np.random.default_rng(seed))):
            assert Counter(text.split()) == Counter(WORDS)
            seen[number].add(tuple(text.split()))
    nouns_and_adjectives, others, within, trigrams = seen
    assert {(w[1], w[5]) for w in nouns_and_adjectives} == {("brown", "white"), ("white", "brown")}
    assert {(w[2], w[6]) for w in nouns_and_adjectives} == {("dog", "cat"), ("cat", "dog")}
    assert {w[:1] + w[3:5] + w[7:] for w in nouns_and_adjectives} == {("a", "and", "a", "sit", "quietly")}
    assert {(w[1], w[2], w[5], w[6]) for w in others} == {("brown", "dog", "white", "cat")}
    assert len(others) > 10
    for words in within:
        assert [Counter(words[i : i + 3]) for i in (0, 3, 6)] == [Counter(WORDS[i : i + 3]) for i in (0, 3, 6)]
    threes = [tuple(WORDS[i : i + 3]) for i in (0, 3, 6)]
    assert len(trigrams) == 6
    assert all(sorted([w[:3], w[3:6], w[6:]]) == sorted(threes) for w in trigrams)


def test_captions_are_cleaned_and_shufflings_that_change_nothing_left_out():
    captions = [["A brown dog, and a white cat, sit."], ["Dog."]]
    task = order_task("order", Retrieval(name="r", images=[square("red")] * 2, captions=captions))
    (item,) = task.items  # one word has no other order
    assert item.positive == clean(captions[0][0]) == "a brown dog and a white cat sit"
    for wrong in (item.negative, *item.more_negatives):
        assert wrong != item.positive
        assert Counter(wrong.split()) == Counter(item.positive.split())
    again = order_task("order", Retrieval(name="r", images=[square("red")] * 2, captions=captions))
    assert [i.more_negatives for i in again.items] == [item.more_negatives]
