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


def test_resampling_draws_every_sample_equally_often():
    order = Order(sources=[[10, 30], [60]], settings=DataConfig(resample=True), seed=1)
    seen = Counter(position for epoch in range(400) for position in order.epoch(epoch).tolist())
    assert len(seen) == 100
    # Draws of a shard come in windows, so counts vary more than a multinomial's (deviation 20).
    assert abs(np.mean([seen[i] for i in range(10)]) - 400) < 60
    assert abs(np.mean([seen[i] for i in range(40, 100)]) - 400) < 20
    assert max(Counter(order.epoch(0).tolist()).values()) > 1
    assert order.epoch(3).tolist() == order.epoch(3).tolist() != order.epoch(4).tolist()


def test_weights_must_fit_the_sources():
    with pytest.raises(PowerclipError, match="1 weights for 2 sources; give one weight per source"):
        Order(sources=[[1], [1]], settings=DataConfig(weights=(1,)))
