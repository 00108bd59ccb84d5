"""What a month will cost by its end. Pure; the method is named in the answer.

Method: what is spent, plus, for every hour left, the mean hourly cost of the last ``DAYS`` whole days, or what runs now if that is
more for the time that it may still run (until its limit). Where no whole day is known: what runs now, to the end at its
rate, since what ends is followed by other work. The interval: 1.28 standard deviations of a day's cost times the
root of the days left (80% if days are alike and independent; they seldom are, so it is a floor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

DAYS = 14
_DAY = 86400.0
_80 = 1.2816


@dataclass(frozen=True, slots=True)
class Running:
    """A running job: what it costs an hour, and when its time limit ends it (None: unlimited)."""

    per_hour: float
    ends_by: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """``low`` and ``high`` are None where fewer than three whole days are known."""

    expected: float
    low: float | None
    high: float | None
    method: str


def forecast(
    spent: float, days: Sequence[float], running: Sequence[Running], *, now: float, end: float, whose: str = "what runs"
) -> Forecast:
    """``days``: the cost of each of the last whole days, the oldest first. ``whose`` rate it is that ``running`` adds up to."""
    recent = list(days[-DAYS:])
    left = max(end - now, 0.0)
    if not recent:
        rate = sum(job.per_hour for job in running if (job.ends_by or end) > now)
        method = f"spent, and for the rest {whose} now at its present rate: no whole day is known yet"
        return Forecast(spent + rate * left / 3600, None, None, method)
    trend = fmean(recent) * left / _DAY
    certain = sum(job.per_hour * max(min(job.ends_by or end, end) - now, 0.0) / 3600 for job in running)
    expected = spent + max(trend, certain)
    span = "whole day" if len(recent) == 1 else f"{len(recent)} whole days"
    limits = " until its limits" if any(job.ends_by for job in running) else ""
    method = f"spent, and for the rest the greater of the mean of the last {span} and {whose} now{limits}"
    if len(recent) < 3:
        return Forecast(expected, None, None, f"{method}; too few whole days for an interval")
    swing = _80 * stdev(recent) * (left / _DAY) ** 0.5
    return Forecast(expected, max(spent, expected - swing), expected + swing, f"{method}; interval 80%")
