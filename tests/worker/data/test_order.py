"""The order of samples: whole, the same for everyone, and a matter of seed and epoch alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.worker.data.order import Order, shuffled
from penstock.worker.data.place import Last, Place, cut, following, share

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@given(sizes=SIZES, seed=st.integers(0, 2**40), window=st.integers(1, 5), epoch=st.integers(0, 5), draw=st.data())
def test_each_sample_once_an_epoch_however_it_is_cut(
    sizes: list[int], seed: int, window: int, epoch: int, draw: Any
) -> None:
    order = Order(sizes, seed=seed, shuffle=True, window=window)
    whole = order.take(epoch, 0, order.samples)
    assert sorted(whole) == list(range(sum(sizes)))
    places = sorted(draw.draw(st.lists(st.integers(0, order.samples), max_size=4)))
    bounds = [0, *places, order.samples]
    other = Order(sizes, seed=seed, shuffle=True, window=window)
    parts = [other.take(epoch, a, b) for a, b in pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_order_is_this_one_for_good() -> None:
    """Of a checkpoint that is a year old, with the NumPy of then: a change here breaks every training under way."""
    order = Order([3, 4, 2, 5], seed=7, shuffle=True, window=2)
    assert order.take(0, 0, 14).tolist() == GOLDEN[0]
    assert order.take(1, 0, 14).tolist() == GOLDEN[1]


GOLDEN = ([12, 8, 7, 9, 10, 13, 11, 4, 0, 2, 5, 3, 6, 1], [13, 12, 4, 10, 6, 9, 3, 11, 5, 1, 2, 8, 0, 7])


def test_another_seed_and_another_epoch_give_another_order() -> None:
    orders = {tuple(shuffled(30, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_samples_stay_within_their_window() -> None:
    order = Order([10] * 6, seed=1, shuffle=True, window=2)
    taken = order.take(0, 0, 60)
    for start in range(0, 60, 20):
        assert len({int(sample) // 10 for sample in taken[start : start + 20]}) == 2


@given(
    samples=st.integers(1, 40),
    batch=st.integers(1, 30),
    last=st.sampled_from(["carry", "drop"]),
    worlds=st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_steps_take_every_place_in_turn(samples: int, batch: int, last: Last, worlds: list[int]) -> None:
    if last == "drop" and samples < batch:
        return
    place, found = Place(), []
    for world in worlds:
        spans, place = following(place, batch, samples, last)
        for rank in range(world):
            found += [(e, at) for e, a, b in cut(spans, *share(batch, rank, world)) for at in range(a, b)]
    per_epoch = samples if last == "carry" else samples // batch * batch
    wanted = [divmod(number, per_epoch) for number in range(len(worlds) * batch)]
    assert found == wanted
