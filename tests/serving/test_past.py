"""The half hour that is drawn: bounded, with gaps where nothing was asked, and never wrong after a counter fell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.past import EVERY_S, POINTS, VERSIONS, Past
from penstock.serving.state import Counts, Histogram

BOUNDS = (0.01, 0.1)


def counts(requests: float, errors: float = 0.0, active: float = 0.0) -> Counts:
    return Counts(requests, errors, active, requests * 0.005, Histogram(BOUNDS, (requests, 0.0, 0.0)))


def test_a_point_is_what_came_since_the_last() -> None:
    past = Past()
    past.replicas("default", "digits", {1: 2})
    past.take(100.0, {("default", "digits", 1): counts(1000, 10)})
    past.take(101.0, {("default", "digits", 1): counts(1010, 10)})  # asked each second: no point yet
    past.take(105.0, {("default", "digits", 1): counts(1050, 15, active=3)})
    past.take(110.0, {("default", "digits", 1): counts(1050, 15)})
    [line] = past.of("default", "digits").values()
    assert (line["at"], line["seconds"]) == ([105.0, 110.0], [5.0, 5.0])
    assert (line["requests"], line["errors"], line["active"]) == ([50.0, 0.0], [5.0, 0.0], [3.0, 0.0])
    assert line["ready"] == [2.0, 2.0]
    assert line["p95"][0] is not None
    assert line["p95"][1] is None
    found = past.recent("default", "digits", 0.0)
    assert found is not None
    assert (found.requests, found.errors, found.seconds) == (50.0, 5.0, 10.0)
    assert past.extent("default", "digits") == (100.0, 110.0, 50.0)
    assert past.of("default", "digits", since=106.0)[1]["at"] == [110.0]
    past.drop("default", "digits")
    assert past.of("default", "digits") == {}
    assert past.recent("default", "digits", 0.0) is None
    assert past.extent("default", "digits") is None


def test_counters_that_fell_are_all_new() -> None:
    past = Past()
    past.take(0.0, {("p", "s", 1): counts(1000)})
    past.take(5.0, {("p", "s", 1): counts(20)})  # Envoy was started again
    assert past.of("p", "s")[1]["requests"] == [20.0]


def test_it_never_holds_more_than_its_bounds() -> None:
    past = Past()
    for n in range(POINTS + 50):
        past.take(n * EVERY_S, {("p", "s", 1): counts(n)})
    assert len(past.of("p", "s")[1]["at"]) == POINTS
    many = Past()
    many.take(0.0, {})
    many.take(5.0, {("p", f"s{n}", 1): counts(1) for n in range(VERSIONS + 20)})
    assert sum(bool(many.of("p", f"s{n}")) for n in range(VERSIONS + 20)) == VERSIONS


def test_what_was_long_silent_is_forgotten() -> None:
    past = Past()
    past.take(0.0, {})
    past.take(5.0, {("p", "old", 1): counts(1)})
    for n in range(2, POINTS + 4):
        past.take(n * EVERY_S, {("p", "new", 1): counts(n)})
    assert past.of("p", "old") == {}


@given(st.lists(st.tuples(st.floats(-10, 20), st.floats(0, 1e6)), max_size=40))
def test_any_clock_and_any_counters(looks: list[tuple[float, float]]) -> None:
    past, now = Past(), 0.0
    for step, requests in looks:
        now += step
        past.take(now, {("p", "s", 1): counts(requests)})
    for line in past.of("p", "s").values():
        assert len({len(column) for column in line.values()}) == 1
        assert all(value is not None and value >= 0 for value in line["requests"])
