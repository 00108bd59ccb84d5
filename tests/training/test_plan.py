"""When a silence is a hang: the limit grows with what was seen, and a restart begins a life of its own."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.training import plan
from penstock.training.plan import Answer, Means, Policy
from penstock.training.state import Evidence, Frame, Look, Point

FIVE = Policy(5.0)
AUTO = Policy(None)
_STUCK = Look(0, "n1", 10, 1, "S", frames=(Frame("<module>", "/w/train.py", 3),))
_BUSY = Look(1, "n1", 11, 1, "R", cpu=0.9, frames=(Frame("evaluate", "/w/train.py", 9),), moved=True)


def steady(steps: int, every: float, ranks: int = 2, begin: float = 100.0) -> list[Point]:
    return [Point(begin + every * step, rank, step) for step in range(steps) for rank in range(ranks)]


def test_a_steady_training_is_given_its_limit_and_no_more() -> None:
    points = steady(50, 0.1)
    last = points[-1].at
    assert not plan.judge(points, [90.0], FIVE, last + 4.9).stalled
    found = plan.judge(points, [90.0], FIVE, last + 5.0)
    assert found.stalled
    assert found.limit_s == 5.0
    assert found.due == last + 5.0


def test_long_steps_make_a_long_limit() -> None:
    points = steady(30, 8.0)
    assert plan.judge(points, [90.0], FIVE, points[-1].at + 159).limit_s == 160.0
    assert not plan.judge(points, [90.0], FIVE, points[-1].at + 159).stalled


def test_an_evaluation_that_was_seen_once_is_no_hang_the_next_time() -> None:
    first = steady(20, 0.1)
    later = [Point(p.at + 30.0, p.rank, (p.step or 0) + 20) for p in steady(20, 0.1, begin=first[-1].at)]
    found = plan.judge([*first, *later], [90.0], FIVE, later[-1].at + 40)
    assert not found.stalled
    assert found.limit_s >= 60.0


def test_the_pause_of_a_restart_is_no_measure() -> None:
    first, again = steady(20, 0.1, begin=100.0), steady(20, 0.1, begin=160.0)
    found = plan.judge([*first, *again], [90.0, 150.0], FIVE, again[-1].at + 5.1)
    assert found.stalled
    assert found.limit_s == 5.0


def test_a_start_may_take_long_and_a_second_start_twice_as_long_as_the_first() -> None:
    assert not plan.judge([], [100.0], AUTO, 100 + 599).stalled
    assert plan.judge([], [100.0], AUTO, 100 + 600).stalled
    slow = [Point(100.0 + 900, 0, 0)]
    assert not plan.judge(slow, [100.0, 2000.0], FIVE, 2000 + 1700).stalled


def test_a_limit_that_is_stated_holds_from_the_beginning() -> None:
    assert not plan.judge([], [100.0], FIVE, 104.9).stalled
    assert plan.judge([], [100.0], FIVE, 105).stalled
    assert plan.judge([], [100.0], Policy(3600.0), 100 + 3599).due == 3700.0


def test_a_start_is_no_hang_while_a_rank_is_not_there_or_does_anything() -> None:
    stuck, reads = Evidence((_STUCK,), 1, {}), Evidence((replace(_STUCK, io=100),), 1, {})
    starting = Means(1, in_place=True, live=True, starting=True)
    assert plan.answer(FIVE, stuck, 6.0, starting) is Answer.IN_PLACE
    assert plan.answer(FIVE, reads, 6.0, starting) is Answer.WAIT
    assert plan.answer(FIVE, reads, 601.0, starting) is Answer.IN_PLACE
    assert plan.answer(FIVE, stuck, 6.0, replace(starting, whole=False)) is Answer.WAIT
    assert plan.answer(FIVE, Evidence((), 2, {}), 6.0, replace(starting, whole=False, live=False)) is Answer.WAIT
    assert plan.answer(FIVE, reads, 6.0, replace(starting, starting=False)) is Answer.IN_PLACE


def test_the_automatic_rule_waits_minutes() -> None:
    points = steady(100, 0.1)
    assert not plan.judge(points, [90.0], AUTO, points[-1].at + 599).stalled
    assert plan.judge(points, [90.0], AUTO, points[-1].at + 601).stalled


def test_who_works_is_left_alone_for_ten_limits() -> None:
    both = Evidence((_STUCK, _BUSY), 2, {})
    means = Means(1, in_place=True, live=True)
    assert plan.answer(FIVE, both, 6.0, means) is Answer.WAIT
    assert plan.answer(FIVE, both, 601.0, means) is Answer.IN_PLACE


def test_answers() -> None:
    stuck = Evidence((_STUCK,), 2, {})
    assert plan.answer(FIVE, stuck, 6.0, Means(1, in_place=False, live=True)) is Answer.ANEW
    assert plan.answer(FIVE, stuck, 6.0, Means(1, in_place=True, live=False)) is Answer.ANEW
    assert plan.answer(FIVE, stuck, 6.0, Means(0, in_place=True, live=True)) is Answer.ANEW  # ends it: Failed
    assert plan.answer(AUTO, stuck, 700.0, Means(0, in_place=True, live=True)) is Answer.TELL
    assert plan.answer(AUTO, stuck, 700.0, Means(3, in_place=True, live=True, sure=False)) is Answer.TELL
    assert plan.answer(FIVE, stuck, 6.0, Means(3, in_place=True, live=True, sure=False)) is Answer.IN_PLACE
    assert plan.answer(Policy(5.0, restart=False), stuck, 6.0, Means(5, in_place=True, live=True)) is Answer.TELL


@given(
    st.lists(st.floats(0.01, 30.0), min_size=3, max_size=60),
    st.floats(0.0, 1.0),
    st.floats(1.0, 60.0),
)
def test_no_pause_as_long_as_one_before_is_a_hang(steps: list[float], share: float, limit: float) -> None:
    """Whatever steps look like: as long as nothing takes longer than what was seen, nothing is stalled."""
    at, points = 1000.0, [Point(1000.0, 0, 0)]
    for number, took in enumerate(steps):
        at += took
        points.append(Point(at, 0, number + 1))
    found = plan.judge(points, [999.0], Policy(limit), at + share * max(steps))
    assert not found.stalled or found.limit_s < max(steps)
    assert found.limit_s >= limit
    assert found.limit_s >= max(steps)


@given(st.lists(st.builds(Point, st.floats(0, 1e6), st.integers(0, 8), st.none() | st.integers(0, 100)), max_size=40))
def test_it_is_total(points: list[Point]) -> None:
    found = plan.judge(points, [10.0, 500.0], FIVE, 1e6)
    assert found.limit_s >= 5.0
    assert found.since >= 500.0
