"""How a rollout reads in a terminal: its steps with what was seen in each, the tests, and both versions over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from penstock.base.quantities import format_duration
from penstock.client.verb import Column, Invocation
from penstock.serving.state import WHOLE

Body = Mapping[str, Any]
_BARS = "▁▂▃▄▅▆▇█"
_VERDICTS = {"pass": "green", "fail": "red", "undecided": "yellow"}


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g}%"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _errors(side: str) -> Callable[[Body, float], str]:
    def cell(entry: Body, _now: float) -> str:
        counts = entry[side]
        bad = counts["errors"] + counts.get("refused", 0)  # older evidence has none
        return _percent(bad / counts["requests"]) if counts["requests"] else ""

    return cell


def _p95(side: str) -> Callable[[Body, float], str]:
    return lambda entry, _: _seconds(entry[side]["p95"])


_STEPS = (
    Column("STEP", lambda entry, _: str(entry["step"] + 1), right=True),
    Column("WHAT", lambda entry, _: str(entry["what"]).removeprefix("Rollout")),
    Column("SHARE", lambda entry, _: _percent(entry["weight"] / WHOLE), right=True),
    Column("COPIES", lambda entry, _: _percent(entry["mirror"] / WHOLE) if entry["mirror"] else "", right=True),
    Column("AFTER", lambda entry, _: format_duration(round(entry["seconds"])), right=True),
    Column("REQUESTS", lambda entry, _: f"{entry['candidate']['requests']:g}", right=True),
    Column("ERRORS", _errors("candidate"), right=True),
    Column("STABLE'S", _errors("stable"), right=True),
    Column("P95", _p95("candidate"), right=True),
    Column("STABLE'S", _p95("stable"), right=True),
    Column("WHY", lambda entry, _: str(entry["why"])),
)
_TESTS = (
    Column("TEST", lambda test, _: str(test["name"])),
    Column("VERDICT", lambda test, _: str(test["verdict"]), style=lambda verdict: _VERDICTS.get(verdict, "")),
    Column("EVIDENCE", lambda test, _: _percent(test["evidence"]), right=True),
    Column("WHY", lambda test, _: str(test["words"])),
)


def show(call: Invocation, one: Body) -> None:
    """``one``: a rollout as the API tells it."""
    out = call.output
    out.line(f"version {one['candidate']} in the place of {one['stable']}: {one['phase']}")
    out.line(f"  {one['message']}")
    entries = [entry for entry in one["evidence"] if "candidate" in entry]
    if not entries:
        return
    out.line("\nSteps:")
    out.table(_STEPS, entries, call.now)
    judged = [entry for entry in entries if entry["tests"]]
    if judged:
        out.line("\nTests of the last decision (evidence of 100% is a failure):")
        out.table(_TESTS, judged[-1]["tests"], call.now)
    _agreement(call, entries[-1])
    _over_time(call, one.get("points") or ())


def _agreement(call: Invocation, entry: Body) -> None:
    if "compared" not in entry:
        return
    slower = entry["slower_s"]
    told = f"{_seconds(abs(slower))} {'slower' if slower >= 0 else 'faster'}"
    call.output.line(f"\nAnswers: {entry['agreed']} of {entry['compared']} agree; {told} at the mean")
    examples = len(entry["examples"])
    if examples:
        call.output.line(f"  {examples} that do not: -o json shows them")


def _over_time(call: Invocation, points: Sequence[Body]) -> None:
    """Both versions on one scale, a mark a look."""
    if len(points) < 2:
        return
    call.output.line(f"\nOver {format_duration(round(points[-1]['at'] - points[0]['at']))}:")
    for title, names, words in (
        ("errors", ("errors", "stable_errors"), _percent),
        ("P95", ("p95", "stable_p95"), _seconds),
    ):
        known = [point[name] for point in points for name in names if point[name] is not None]
        top = max(known, default=0.0)
        for name, whose in zip(names, ("candidate", "stable"), strict=True):
            drawn = "".join(marks((point[name] for point in points), top))
            call.output.line(f"  {title:<7} {whose:<10} {drawn}  {'at most ' + words(top) if known else 'no answer'}")


def marks(values: Iterable[float | None], top: float) -> Iterable[str]:
    """A blank where nothing was asked."""
    for value in values:
        if value is None:
            yield " "
        else:
            share = value / top if top > 0 else 0.0
            yield _BARS[min(max(math.ceil(share * len(_BARS)) - 1, 0), len(_BARS) - 1)]
