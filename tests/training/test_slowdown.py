"""Slow-downs are seen within thirty steps, and healthy trainings are not told of."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.training.slowdown import Slow, Track


def run(lengths: Iterator[float], steps: int, every_s: float = 1.0) -> Iterator[tuple[int, Slow | None]]:
    """A job that reports each step, looked at each so many seconds: (step, what is told then)."""
    track, at, look = Track(), 1000.0, 1000.0
    for step in range(steps):
        at += next(lengths)
        if at >= look + every_s:
            look = at
            yield step, track.add(at, step)


def noisy(length: Callable[[int], float], spread: float, seed: int) -> Iterator[float]:
    chance = random.Random(seed)
    n = 0
    while True:
        yield length(n) * chance.lognormvariate(0.0, spread)
        n += 1


@pytest.mark.parametrize("length", [0.1, 0.25, 1.0, 5.0])
@pytest.mark.parametrize("ratio", [1.3, 1.5, 3.0])
def test_a_slow_down_is_seen_within_thirty_steps(length: float, ratio: float) -> None:
    for seed in range(5):
        told = run(noisy(lambda n: length * (ratio if n >= 400 else 1.0), 0.03, seed), 440)
        step, slow = next(found for found in told if found[1] is not None)
        assert slow is not None and 400 <= step <= 430, (step, slow)
        assert slow.baseline == pytest.approx(length, rel=0.1) and slow.ratio == pytest.approx(ratio, rel=0.15)
        assert 380 <= slow.since <= 410


def test_its_end_is_seen_too() -> None:
    told = list(run(noisy(lambda n: 0.2 if 400 <= n < 500 else 0.1, 0.03, 1), 700))
    slow = [step for step, found in told if found is not None]
    assert slow[0] <= 430 and 500 <= slow[-1] <= 530


def test_one_that_slows_down_little_by_little_is_seen() -> None:
    told = list(run(noisy(lambda n: 0.1 * (1 + n / 4000), 0.03, 2), 6000))
    assert told[-1][1] is not None and told[-1][1].ratio > 1.1


def test_long_saves_that_come_often_are_seen() -> None:
    def length(n: int) -> float:
        return 0.1 + (2.0 if n >= 600 and n % 10 == 0 else 0.0)

    step, _ = next(found for found in run(noisy(length, 0.03, 3), 900) if found[1] is not None)
    assert 600 < step < 680


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.sampled_from([0.02, 0.1, 0.7, 4.0]),
    spread=st.floats(0.0, 0.2),
    pause=st.sampled_from([0.0, 0.5, 20.0]),
    each=st.integers(40, 300),
)
def test_a_healthy_training_is_not_told_of(seed: int, length: float, spread: float, pause: float, each: int) -> None:
    """Uneven steps, and a pause now and then: an evaluation, a checkpoint."""
    lengths = noisy(lambda n: length + (pause if n % each == each - 1 else 0.0), spread, seed)
    assert all(found is None for _, found in run(lengths, 900))


def test_a_restart_begins_anew_and_keeps_what_is_normal() -> None:
    track = Track()
    for n in range(400):
        track.add(1000 + 0.1 * n, n)
    assert track.add(1060.0, 380) is None
    found = [track.add(1060.0 + 0.3 * n, 380 + n) for n in range(1, 60)]
    assert found[-1] is not None and found[-1].baseline == pytest.approx(0.1)
    assert all(one is None for one in found[:10])


def test_what_is_kept_is_bounded() -> None:
    track = Track()
    for n in range(5_000):
        track.add(1000.0 + n, n)
    assert len(track.history) <= 240 and len(track.recent) <= 64 and len(track.young) <= 12
