"""Reports become bounded series."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.series import MAX_POINTS, decimate, pace, rewind, summarize


def point(step: int, at: float, loss: float, rank: int = 0) -> dict[str, Any]:
    return {"at": at, "rank": rank, "step": step, "total_steps": 100, "metrics": {"loss": loss}}


def test_rate_and_eta() -> None:
    found = summarize([point(i, 10.0 + i / 2, 1 / (i + 1)) for i in range(11)])
    assert found["latest"]["rate"] == 2
    assert found["latest"]["eta_s"] == 45
    assert found["series"]["loss"][0] == [0, 10.0, 1.0]


def test_after_a_restart_a_step_appears_once() -> None:
    steps = [0, 10, 20, 30, 20, 30, 40]
    found = summarize([point(s, float(i), i) for i, s in enumerate(steps)])
    assert [p[0] for p in found["series"]["loss"]] == [0, 10, 20, 30, 40]
    assert [p[2] for p in found["series"]["loss"]] == [0, 1, 4, 5, 6]


def test_the_lowest_rank_is_charted_and_all_are_listed() -> None:
    found = summarize([point(1, 1.0, 5, rank=1), point(1, 1.1, 7, rank=0)])
    assert found["series"]["loss"] == [[1, 1.1, 7]]
    assert set(found["ranks"]) == {"0", "1"}


def test_nothing_reported() -> None:
    assert summarize([]) == {"series": {}, "latest": None, "ranks": {}}


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), max_size=2000))
def test_decimation_keeps_the_ends(points: list[list[float]]) -> None:
    kept = decimate(points)
    assert len(kept) <= MAX_POINTS
    assert kept[:1] == points[:1]
    assert kept[-1:] == points[-1:]


@given(st.lists(st.integers(0, 50)))
def test_rewound_steps_rise(steps: list[int]) -> None:
    kept = [p[0] for p in rewind([[s, 0.0, 0.0] for s in steps])]
    assert kept == sorted(set(kept))


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1e9))))
def test_pace_is_never_negative(reports: list[tuple[int, float]]) -> None:
    found = pace([point(s, at, 0) for s, at in reports])
    assert all(v is None or v >= 0 for v in found.values())
