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
    captions = [['A brown dog, and a "white" cat-like thing: sit?'], ["Dog."]]
    task = order_task("order", Retrieval(name="r", images=[square("red")] * 2, captions=captions))
    item, one_word = task.items
    assert item.positive == clean(captions[0][0]) == "a brown dog, and a white cat-like thing sit?"
    for wrong in item.negatives:
        assert Counter(wrong.replace(" ", "")) == Counter(item.positive.replace(" ", ""))
    assert len(set(item.negatives)) == 4
    assert (one_word.positive, one_word.negatives) == ("dog", [])  # it has no other order
    again = order_task("order", Retrieval(name="r", images=[square("red")] * 2, captions=captions))
    assert again.items[0].negatives == item.negatives


def test_long_captions_are_cut_to_thirty_words():
    words = [str(number) for number in range(40)]
    assert clean(" ".join(words)).split() == words[:30]
