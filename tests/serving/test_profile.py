"""The service curve: what it promises, between its points and beyond."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.profile import Curve, Point, curve_of, fit, learned
from penstock.serving.spec import Objective

CURVE = Curve((Point(1, 10, 0.1), Point(4, 20, 0.2), Point(16, 40, 0.4)), 20.0, "measured")


def test_between_two_points_it_is_a_line_and_below_the_first_a_replica_has_less_to_do() -> None:
    between = CURVE.at(2.5)
    assert [between.throughput, between.p95] == pytest.approx([15.0, 0.15])
    assert CURVE.at(0.5) == Point(0.5, 5.0, 0.1)


def test_beyond_the_last_point_there_is_no_more_throughput_only_longer_times() -> None:
    beyond = CURVE.at(32)
    assert [beyond.throughput, beyond.p95] == pytest.approx([40.0, 0.8])


def test_an_objective_allows_the_highest_concurrency_that_holds_it() -> None:
    found = CURVE.allows(Objective(p95=0.3))
    assert found is not None
    assert [found.concurrency, found.throughput] == pytest.approx([10, 30])


def test_an_objective_above_all_points_allows_longer_lines_up_to_four_times() -> None:
    found, most = CURVE.allows(Objective(p95=0.8)), CURVE.allows(Objective(p95=3600))
    assert found is not None
    assert found.concurrency == pytest.approx(32)
    assert most is not None
    assert most.concurrency == 64


def test_what_even_a_lone_request_misses_allows_nothing() -> None:
    assert CURVE.allows(Objective(p95=0.05)) is None
    assert Curve().allows(Objective(p95=0.05)) is None


def test_without_an_objective_answers_may_take_three_times_a_lone_ones() -> None:
    found = CURVE.allows(Objective())
    assert found is not None
    assert found.p95 == pytest.approx(0.3)


def test_batches_become_a_curve_and_a_larger_one_never_takes_less() -> None:
    curve = fit({1: [0.010, 0.010, 0.5], 8: [0.030], 16: [0.020], 32: [0.050]}, 5.0)
    assert [point.throughput for point in curve.points] == pytest.approx([100, 320, 640, 640])
    assert [point.p95 for point in curve.points] == pytest.approx([0.010, 0.04875, 0.04875, 0.0975])
    assert (curve.source, curve.cold_start) == ("measured", 5.0)


def test_what_somebody_measured_is_not_learned_away() -> None:
    assert learned(CURVE, [Point(1, 1, 1.0)]) is CURVE


def test_an_unknown_service_is_learned_from_what_its_replicas_did() -> None:
    first = learned(Curve(), [Point(1.1, 9.0, 0.11), Point(0.1, 5.0, 0.1)])
    assert first == Curve((Point(1.1, 9.0, 0.11),), 30.0, "learned")
    again = learned(first, [Point(1.0, 14.0, None), Point(8.0, 30.0, 0.3)])
    blended, other = again.points
    assert [blended.concurrency, blended.throughput, blended.p95] == pytest.approx([1.09, 9.5, 0.1132857], rel=1e-6)
    assert other == Point(8.0, 30.0, 0.3)


def test_a_p95_of_another_load_and_a_replica_that_gets_worse_are_smoothed() -> None:
    stale = learned(Curve(), [Point(10.0, 100.0, 8.0)])
    assert stale.points == (Point(10.0, 100.0, 0.2),)
    fallen = learned(stale, [Point(40.0, 50.0, 0.8), Point(80.0, 60.0, 0.9)])
    assert [point.throughput for point in fallen.points] == pytest.approx([70.0] * 3)
    assert [point.p95 for point in fallen.points] == pytest.approx([0.2, 0.8, 2 * 80 / 60])


def test_it_goes_to_json_and_back() -> None:
    assert curve_of(json.loads(json.dumps(CURVE.to_dict()))) == CURVE


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "points: must be a list"),
        ({"points": [3]}, r"points\.0: holds"),
        ({"points": [{"concurrency": 1}]}, r"points\.0: has no throughput"),
        ({"points": [{"concurrency": 1, "throughput": -1}]}, r"points\.0\.throughput: must be a number above zero"),
        ({"points": [{"concurrency": True, "throughput": 1}]}, r"points\.0\.concurrency: must be"),
        ({"points": [{"concurrency": 2, "throughput": 1}, {"concurrency": 1, "throughput": 1}]}, "must rise"),
        ({"points": [{"concurrency": 2, "throughput": float("nan")}]}, "above zero"),
        ({"points": [{"concurrency": 2, "throughput": 1}], "source": "dreamt"}, "source"),
    ],
)
def test_a_wrong_curve_is_told_where_it_is_wrong(body: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        curve_of(body)


@given(
    st.lists(
        st.tuples(st.floats(0.1, 1e3), st.floats(0.001, 10)), min_size=1, max_size=6, unique_by=lambda row: row[0]
    ),
    st.floats(0.001, 20),
)
def test_what_an_objective_allows_holds_it(rows: list[tuple[float, float]], limit: float) -> None:
    curve = Curve(tuple(Point(at, at, took) for at, took in sorted(rows)))
    found = curve.allows(Objective(p95=limit))
    if found is None:
        assert curve.points[0].p95 is not None
        assert curve.points[0].p95 > limit
    else:
        assert found.p95 is not None
        assert found.p95 <= limit
        assert found.concurrency >= curve.points[0].concurrency
