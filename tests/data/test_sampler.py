import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerclip.config import DataConfig
from powerclip.data.sampler import Order
from powerclip.errors import PowerclipError

COUNTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


@given(COUNTS, st.booleans(), st.integers(0, 3))
def test_every_sample_once_an_epoch(sources, shuffle, epoch):
    order = Order(sources=sources, settings=DataConfig(shuffle=shuffle), seed=5).epoch(epoch)
    assert sorted(order) == list(range(sum(map(sum, sources))))


@given(COUNTS, st.booleans(), st.data())
def test_weighted_sources_have_their_share_and_go_round_evenly(sources, shuffle, data):
    weights = tuple(data.draw(st.floats(0.1, 10)) for _ in sources)
    order = Order(sources=sources, settings=DataConfig(weights=weights, shuffle=shuffle), seed=5)
    sizes = [sum(source) for source in sources]
    starts = np.cumsum([0, *sizes])
    seen = Counter()
    for epoch in range(4):
        positions = order.epoch(epoch)
        assert len(positions) == starts[-1]
        seen.update(positions.tolist())
        for number, weight in enumerate(weights):
            share = sum(starts[number] <= p < starts[number + 1] for p in positions)
            assert abs(share - weight / sum(weights) * starts[-1]) < 1
    for first, size in zip(starts, sizes, strict=False):
        times = [seen[position] for position in range(first, first + size)]
        assert max(times) - min(times) <= 1


def test_two_equal_sources_alternate_when_not_shuffled():
    order = Order(sources=[[2], [2]], settings=DataConfig(weights=(1, 1), shuffle=False)).epoch(0)
    assert order.tolist() == [0, 2, 1, 3]


def test_a_source_of_little_weight_has_its_share_over_the_epochs():
    """It is due 0.29 of a sample an epoch."""
    order = Order(sources=[[203], [90]], settings=DataConfig(weights=(1000, 1)))
    drawn = [int((order.epoch(epoch) >= 203).sum()) for epoch in range(300)]
    assert set(drawn) == {0, 1}
    # An epoch draws one if a multiple of the golden ratio is in one of up to two intervals, and of N multiples their
    # shares are within (3 + (1 / ln 1.618 + 1 / ln 2) ln N) / N (Kuipers & Niederreiter, 1974, theorem 2.3.4).
    assert abs(sum(drawn) - 300 * 293 / 1001) < 2 * (3 + 3.53 * math.log(300))


def test_resampling_draws_every_sample_equally_often():
    order = Order(sources=[[10, 30], [60]], settings=DataConfig(resample=True), seed=1)
    seen = Counter(position for epoch in range(400) for position in order.epoch(epoch).tolist())
    assert len(seen) == 100
    assert all(abs(times - 400) < 5 * 20 for times in seen.values())  # Binomial(40000, 1 / 100): deviation 20
    assert max(Counter(order.epoch(0).tolist()).values()) > 1
    assert order.epoch(3).tolist() == order.epoch(3).tolist() != order.epoch(4).tolist()


def test_resampling_is_uniform_at_every_place_over_many_shards_of_unequal_sizes():
    """Half of the samples are in 60 small shards, half in 6 large ones."""
    epochs, small, size = 3000, 60, 120
    order = Order(sources=[[1] * 60 + [10] * 6], settings=DataConfig(resample=True), seed=1)
    drawn = np.stack([order.epoch(epoch) for epoch in range(epochs)])  # (epochs, size)
    at_place = (drawn < small).sum(axis=0)
    assert (np.abs(at_place - epochs / 2) < 5 * math.sqrt(epochs / 4)).all()  # Binomial(epochs, 1 / 2)
    # Given the windows, a sample's draws in an epoch are binomial of mean 1, so of a variance below that.
    assert (np.abs(np.bincount(drawn.ravel(), minlength=size) - epochs) < 5 * math.sqrt(epochs)).all()


def test_resampling_reads_from_few_shards_at_a_time():
    order = Order(sources=[[10] * 64], settings=DataConfig(resample=True))
    for epoch in range(5):
        shards = (order.epoch(epoch) // 10).tolist()
        for start in range(0, 640 - 160, 40):  # 160 draws are of two windows at most, of 16 shards each
            assert len(set(shards[start : start + 160])) <= 32


def test_of_two_equal_shards_each_has_its_share_of_an_epoch():
    order = Order(sources=[[100, 100]], settings=DataConfig(resample=True))
    first = [int((order.epoch(epoch) < 100).sum()) for epoch in range(50)]
    assert all(abs(draws - 100) < 5 * math.sqrt(50) for draws in first)  # Binomial(200, 1 / 2)


def test_weights_must_fit_the_sources():
    with pytest.raises(PowerclipError, match="1 weights for 2 sources; give one weight per source"):
        Order(sources=[[1], [1]], settings=DataConfig(weights=(1,)))
