"""A node's recent history in a terminal: a line of bars for each chart, the highest of its lines, and where they are now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from penstock.client.sparkline import sparkline


def lines(body: Mapping[str, Any]) -> Iterator[str]:
    """Of what ``GET /api/v1/nodes/NAME/telemetry`` answers."""
    agent = body["agent"]
    if agent is None:
        return
    yield f"{'Agent:':<14}{agent['version'] or 'unknown version'}, heard {agent['heard_at']}{_clock(agent)}"
    for source, problem in agent["sources"].items():
        if problem:
            yield f"{'':<14}{source}: {problem}"
    if body["charts"]:
        yield "\nTelemetry of the last hour:"
    for chart in body["charts"]:
        highest: dict[float, float] = {}
        for line in chart["lines"]:
            for at, value in line["samples"]:
                highest[at] = max(value, highest.get(at, value))
        values = [highest[at] for at in sorted(highest)]
        yield f"  {chart['title'][:36]:<38}{sparkline(values, max(values)):<60}  {_now(chart)}"


def _clock(agent: Mapping[str, Any]) -> str:
    off = agent["clock_behind_s"]
    return f", its clock {abs(off):.0f} s {'behind' if off > 0 else 'ahead'}" if off else ""


def _now(chart: Mapping[str, Any]) -> str:
    newest = [line["samples"][-1][1] for line in chart["lines"]]
    low, high = min(newest), max(newest)
    return f"{low:.3g} {chart['unit']}" if low == high else f"{low:.3g} to {high:.3g} {chart['unit']}"
