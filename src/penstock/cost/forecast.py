"""What a month will cost by its end. Pure; the method is named in the answer.

Method: what is spent, plus, for every hour left, the mean hourly cost of the last ``DAYS`` whole days, or what runs now if that is
more for the time that it may still run (until its limit). The interval: 1.28 standard deviations of a day's cost times the
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


def forecast(spent: float, days: Sequence[float], running: Sequence[Running], *, now: float, end: float) -> Forecast:
    """``days``: the cost of each of the last whole days, the oldest first."""
    recent = list(days[-DAYS:])
    left = max(end - now, 0.0)
    trend = fmean(recent) * left / _DAY if recent else 0.0
    certain = sum(job.per_hour * max(min(job.ends_by or end, end) - now, 0.0) / 3600 for job in running)
    expected = spent + max(trend, certain)
    method = f"spent + the greater of: mean of the last {len(recent)} days, what runs now until its limits"
    if len(recent) < 3:
        return Forecast(expected, None, None, f"{method}; too few days for an interval")
    swing = _80 * stdev(recent) * (left / _DAY) ** 0.5
    return Forecast(expected, max(spent, expected - swing), expected + swing, f"{method}; interval 80%")
