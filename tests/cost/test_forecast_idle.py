"""Forecast and idle GPUs: small cases worked out by hand."""

from __future__ import annotations

from penstock.cost.forecast import Running, forecast
from penstock.cost.idle import Idle, Rule, Sample, idle_jobs

DAY = 86400.0


def test_a_steady_month() -> None:
    found = forecast(100.0, [10.0] * 10, [], now=10 * DAY, end=30 * DAY)
    assert (found.expected, found.low, found.high) == (300.0, 300.0, 300.0)


def test_what_runs_may_be_more_than_the_trend() -> None:
    jobs = [Running(10.0, 1 * DAY), Running(1.0)]
    found = forecast(0.0, [], jobs, now=0, end=2 * DAY)
    assert (found.expected, found.low) == (288.0, None)


def test_an_interval_widens_with_what_is_left() -> None:
    near, far = (forecast(50.0, [5.0, 10.0, 15.0], [], now=0, end=n * DAY) for n in (1, 9))
    assert near.high is not None
    assert far.high is not None
    assert far.high - far.expected > 2 * (near.high - near.expected)


def samples(gpu: str, *levels: float) -> list[Sample]:
    return [Sample("j", gpu, level, 60.0 * minute) for minute, level in enumerate(levels)]


def test_all_gpus_must_be_idle_for_long_enough() -> None:
    rule = Rule(below_pct=5, for_s=300, gap_s=120)
    one, two = samples("0", *[90.0, *[0.0] * 10]), samples("1", *[90.0, 90.0, *[1.0] * 9])
    assert idle_jobs(one + two, {"j": ("0", "1")}, rule, 600) == [Idle("j", 120.0, ("0", "1"))]
    assert idle_jobs(one + two, {"j": ("0", "1")}, rule, 400) == []
    assert idle_jobs(one, {"j": ("0", "1")}, rule, 600) == []


def test_silence_is_not_idleness() -> None:
    rule = Rule(below_pct=5, for_s=300, gap_s=120)
    assert idle_jobs(samples("0", *[0.0] * 8), {"j": ("0",)}, rule, 1000) == []
