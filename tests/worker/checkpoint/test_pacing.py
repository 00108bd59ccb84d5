"""The drain's pauses: for a loop that makes steps, as long as it feels the drain; none where nobody is held up."""

from __future__ import annotations

import math
import threading

import pytest

from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.pacing import Throttle, interval


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps(throttle: Throttle, clock: Clock, count: int, each: float, draining: bool) -> None:
    for _ in range(count):
        clock.now += each
        throttle.step(draining)
        throttle.go_on()


def loop(each: float = 0.1) -> tuple[Throttle, Clock]:
    """A loop that has made steps without a drain, and then began a save."""
    clock = Clock()
    throttle = Throttle(clock)
    steps(throttle, clock, 20, each, draining=False)
    throttle.begin(math.inf)
    throttle.go_on()
    return throttle, clock


def until(throttle: Throttle, clock: Clock, worked: float = 0.01, pieces: int = 10) -> float:
    """How long after its last piece's begin the next one may begin."""
    return throttle._until(clock.now, worked, pieces) - clock.now


def test_steps_that_feel_the_drain_slow_it_down() -> None:
    throttle, clock = loop()
    before = until(throttle, clock)
    steps(throttle, clock, 12, 0.15, draining=True)
    assert until(throttle, clock) >= 4 * before
    steps(throttle, clock, 400, 0.15, draining=True)
    assert until(throttle, clock) == pytest.approx(0.01 * 32)


def test_steps_that_do_not_feel_it_let_it_go_at_full_speed() -> None:
    throttle, clock = loop()
    steps(throttle, clock, 60, 0.1, draining=True)
    assert until(throttle, clock) == pytest.approx(0.01)


def test_what_is_due_soon_is_not_paced_past_its_time() -> None:
    throttle, clock = loop()
    throttle.begin(2.0)
    assert until(throttle, clock, worked=1.0, pieces=10) == pytest.approx(0.2)
    clock.now += 5
    assert until(throttle, clock, worked=1.0, pieces=10) == 0


def test_nobody_to_stand_back_for() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    throttle.begin(math.inf)
    throttle.pause(clock.now, 1e6, 10)  # no step was ever made: it returns at once
    throttle, clock = loop(each=0.1)
    clock.now += 5
    throttle.pause(clock.now, 1e6, 10)  # no step for long
    throttle, clock = loop(each=0.1)
    throttle.hurry()
    throttle.pause(clock.now, 1e6, 10)  # somebody waits


def test_a_pause_ends_when_somebody_begins_to_wait() -> None:
    throttle, clock = loop()
    over = threading.Thread(target=throttle.pause, args=(clock.now, 1e6, 10))
    over.start()
    over.join(0.05)
    assert over.is_alive()
    throttle.hurry()
    over.join(10)
    assert not over.is_alive()


def test_an_interval_is_steps_or_a_duration() -> None:
    assert interval(10) == (10, math.inf)
    assert interval("10m") == (None, 600.0)
    assert interval("auto") == (None, 600.0)


@pytest.mark.parametrize("every", [0, -1, "0", "0s", "often", "", True])
def test_no_interval_is_refused_by_name(every: int | str) -> None:
    with pytest.raises(CheckpointError, match="every="):
        interval(every)
