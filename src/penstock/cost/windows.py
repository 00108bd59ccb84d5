"""The period of a report as people write it: times, or how long ago."""

from __future__ import annotations

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import parse_moment
from penstock.cost.queries import Window


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
    try:
        return parse_moment(text, now)
    except ValueError as error:
        problems.append(Problem(path, str(error)))
        return None
