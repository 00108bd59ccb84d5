"""What steps were spent on, for the console and the terminal. Pure: from the API's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 600.0, 90.0  # of a chart
_BARS = "▁▂▃▄▅▆▇█"
_SPARK = 24  # characters
_LINES = 16  # ranks in the terminal
_LEAST = 0.01  # a column of less than this share of all ranks' steps is left out
WORDS = {
    "data": "waiting for data", "compute": "forward and backward", "comm": "waiting for others", "optimizer": "the optimizer",
    "checkpoint": "checkpoints", "gc": "garbage collection", "other": "the script's own code",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Area:
    phase: str
    points: str  # of a polygon


@dataclass(frozen=True, slots=True)
class Chart:
    rank: int
    node: str
    label: str
    areas: tuple[Area, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Line:
    rank: int
    node: str
    total: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    phases: tuple[tuple[str, str], ...]  # shown, with their words
    charts: tuple[Chart, ...]
    lines: tuple[Line, ...]
    top: str
    more: int
    steps: int


def panel(answer: Mapping[str, Any]) -> Panel | None:
    """None where no rank says what its steps were spent on."""
    if not answer["watched"]:
        return None
    phases = _shown(answer)
    top = max(max(chart["total_s"]) for chart in answer["charts"]) or 1.0
    rows = {row["rank"]: row for row in answer["ranks"]}
    return Panel(
        tuple((name, WORDS[name]) for name in phases),
        tuple(_chart(chart, rows.get(chart["rank"], {}), top) for chart in answer["charts"]),
        tuple(_line(row, phases) for row in answer["ranks"]),
        seconds(top),
        answer["more"],
        max(row["steps"] for row in answer["ranks"]),
    )


def _shown(answer: Mapping[str, Any]) -> list[str]:
    rows = answer["ranks"]
    return [
        name for name in answer["phases"] if any(row["seconds"][name] >= _LEAST * row["total_s"] for row in rows)
    ]  # fmt: skip


def _chart(chart: Mapping[str, Any], row: Mapping[str, Any], top: float) -> Chart:
    count = len(chart["step"])
    across = [WIDTH * n / max(count - 1, 1) for n in range(count)]
    below = [0.0] * count
    areas = []
    for name, values in chart["seconds"].items():
        above = [low + value for low, value in zip(below, values, strict=True)]
        if any(values):
            edge = [*zip(across, above, strict=True), *zip(across[::-1], below[::-1], strict=True)]
            if count == 1:
                edge = [(0.0, above[0]), (WIDTH, above[0]), (WIDTH, below[0]), (0.0, below[0])]
            points = " ".join(f"{x:.1f},{HEIGHT - HEIGHT * min(y / top, 1.0):.1f}" for x, y in edge)
            areas.append(Area(name, points))
        below = above
    parts = ", ".join(f"{name} {seconds(value)}" for name, value in (row.get("seconds") or {}).items() if value)
    label = f"rank {chart['rank']}: {seconds(row.get('total_s', 0.0))} a step ({parts})"
    return Chart(chart["rank"], str(row.get("node", "")), label, tuple(areas), chart["step"][0], chart["step"][-1])


def _line(row: Mapping[str, Any], phases: Sequence[str]) -> Line:
    return Line(
        row["rank"], row["node"], seconds(row["total_s"]), tuple(seconds(row["seconds"][name]) for name in phases)
    )


def seconds(value: float) -> str:
    """``12.3ms``, ``1.24s``."""
    return f"{value:.3g}s" if value >= 1 else f"{value * 1e3:.3g}ms" if value >= 1e-5 else "-"


def lines(answer: Mapping[str, Any]) -> list[str]:
    """For ``penstock describe``: a rank a line, with how the length of its steps went."""
    if not answer["watched"]:
        return []
    phases = _shown(answer)
    charts = {chart["rank"]: chart["total_s"] for chart in answer["charts"]}
    top = max(max(totals) for totals in charts.values())
    table = [["RANK", "NODE", "A STEP", *(name.upper() for name in phases), "SO FAR"]]
    for row in answer["ranks"][:_LINES]:
        line = _line(row, phases)
        table.append([str(line.rank), line.node, line.total, *line.parts, spark(charts.get(line.rank, ()), top)])
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    found = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    left = len(answer["ranks"]) + answer["more"] - _LINES
    return ["", "Steps (the mean of the newest):", *found, *([f"and {left} ranks more"] if left > 0 else [])]


def spark(values: Sequence[float], top: float) -> str:
    if not values or top <= 0:
        return ""
    count = min(_SPARK, len(values))
    pieces = [values[n * len(values) // count : (n + 1) * len(values) // count] for n in range(count)]
    shares = [sum(piece) / len(piece) / top for piece in pieces]
    return "".join(_BARS[min(int(share * len(_BARS)), len(_BARS) - 1)] for share in shares)
