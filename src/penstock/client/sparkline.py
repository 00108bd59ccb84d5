"""A row of numbers as a line of bars, for terminals."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 60
BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(values: Sequence[float], top: float, width: int = WIDTH) -> str:
    """The largest of each part; a blank for nothing."""
    marks = []
    width = min(width, len(values))
    for n in range(width):
        part = values[n * len(values) // width : (n + 1) * len(values) // width]
        share = max(part) / top if top > 0 else 0.0
        marks.append(BARS[min(len(BARS) - 1, int(share * len(BARS)))] if share > 0 else " ")
    return "".join(marks)
