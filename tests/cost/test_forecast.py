"""Forecast: small cases worked out by hand."""

from __future__ import annotations

from penstock.cost.forecast import Running, forecast

DAY = 86400.0


def test_a_steady_month() -> None:
    found = forecast(100.0, [10.0] * 10, [], now=10 * DAY, end=30 * DAY)
    assert (found.expected, found.low, found.high) == (300.0, 300.0, 300.0)


def test_what_runs_may_be_more_than_the_trend() -> None:
    jobs = [Running(10.0, 1 * DAY), Running(1.0)]
    found = forecast(0.0, [1.0], jobs, now=0, end=2 * DAY)
    assert (found.expected, found.low) == (288.0, None)
    assert "the mean of the last whole day and what runs now until its limits" in found.method


def test_without_a_whole_day_what_runs_goes_on_at_its_rate() -> None:
    """The fleet's forecast, of one rate, and those of its projects, of their jobs, then add up."""
    jobs = [Running(10.0, 1 * DAY), Running(1.0)]
    project, fleet = (forecast(5.0, [], each, now=0, end=2 * DAY) for each in (jobs, [Running(11.0)]))
    assert project == fleet
    assert project.expected == 5.0 + 11 * 48
    assert "at its present rate: no whole day is known yet" in project.method


def test_an_interval_widens_with_what_is_left() -> None:
    near, far = (forecast(50.0, [5.0, 10.0, 15.0], [], now=0, end=n * DAY) for n in (1, 9))
    assert near.high is not None
    assert far.high is not None
    assert far.high - far.expected > 2 * (near.high - near.expected)
