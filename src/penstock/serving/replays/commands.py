"""``penstock serving replay``: request traces run against autoscaling policies, on this machine, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import parse_duration
from penstock.client.verb import Invocation, Progress
from penstock.serving.replays import picture, traces
from penstock.serving.replays.asked import asked, replayed, replica_of
from penstock.serving.spec import Autoscaling, Objective

if TYPE_CHECKING:
    from argparse import Namespace

COLD_START_S = 60.0


def _configured(arguments: Namespace, objective: Objective) -> Autoscaling:
    """All that is wrong at once."""
    names = ("min", "max", "concurrency", "up_after", "down_after", "dead_band", "flaps", "idle_after")
    values: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        return Autoscaling(**values, objective=objective)
    except ValidationError as exc:
        problems = [
            Problem("--" + "-".join(str(part) for part in row["loc"]).replace("_", "-"), row["msg"])
            for row in exc.errors()
        ]
        raise InvalidInput("the options cannot be read", details=problems) from exc


def _seconds(text: str | None, option: str, default: float) -> float:
    try:
        return default if text is None else parse_duration(text)
    except ValueError as exc:
        raise InvalidInput(f"{option}: {exc}") from exc


def replay(call: Invocation, arguments: Namespace) -> int:
    if arguments.first is not None and arguments.first < 1:
        raise InvalidInput("--first must be at least 1")
    words = [one for text in arguments.policy or ["penstock,kpa,hpa"] for one in text.split(",")]
    _configured(arguments, Objective())
    live = call.output.live()
    try:
        live.show(Progress(None, "reading the trace"))
        trace = traces.read(arguments.trace, arguments.first)
        replica = replica_of(arguments.curve, trace)
        cold_start = _seconds(arguments.cold_start, "--cold-start", replica.cold_start or COLD_START_S)
        this = asked(
            trace, replica, cold_start, words, lambda wanted: _configured(arguments, wanted), arguments.objective
        )
        found = replayed(this, lambda policy, done: live.show(Progress(done, policy)))
    finally:
        live.close()
    if trace.bad:
        call.output.note(f"{trace.bad:,} of {trace.lines:,} lines left out:")
    for problem in trace.problems:
        call.output.note(f"  line {problem.line}: {problem.message}")
    if trace.bad > len(trace.problems):
        call.output.note(f"  and {trace.bad - len(trace.problems):,} more")
    if call.output.format != "table":
        call.output.document(found)
        return 0
    for line in (*picture.summary(found), ""):
        call.output.line(line)
    call.output.table(picture.columns(found), found["policies"], call.now)
    for line in ("", *picture.lines_over_time(found)):
        call.output.line(line)
    return 0
