"""The period of a report as people write it: times, or how long ago."""

from __future__ import annotations

from collections.abc import Callable

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import parse_duration, parse_time
from penstock.cost.queries import Window

_END_OF_TIME = 253_402_300_800.0  # the year 10000, which RFC 3339 cannot write


def read_window(since_text: str | None, until_text: str | None, now: float) -> Window:
    """Raises InvalidInput."""
    problems: list[Problem] = []
    since = _moment(since_text, "since", now, problems)
    until = _moment(until_text, "until", now, problems)
    until = now if until is None else min(until, now)
    if since is not None and since >= until:
        problems.append(Problem("since", "must lie before `until`, and before now"))
    if problems:
        raise InvalidInput("the report's period cannot be used", details=problems)
    return Window(since, until)


def _moment(text: str | None, path: str, now: float, problems: list[Problem]) -> float | None:
    if text is None:
        return None
    readings: tuple[Callable[[str], float], ...] = (lambda t: now - parse_duration(t), parse_time)
    for reading in readings:
        try:
            moment = reading(text)
        except (ValueError, OverflowError):
            continue
        if 0 <= moment < _END_OF_TIME:
            return moment
    problems.append(Problem(path, f"{text!r} is neither a time (2026-11-22T03:40:32Z) nor a duration (7d)"))
    return None
