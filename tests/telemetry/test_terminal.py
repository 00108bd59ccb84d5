"""A node's history in a terminal."""

from __future__ import annotations

from typing import Any

from penstock.telemetry.terminal import lines

AGENT = {
    "version": "0.1",
    "heard_at": "2026-11-26T07:00:00.000Z",
    "clock_behind_s": -7200.0,
    "sources": {"nvml": "", "kmsg": "closed"},
}


def body(**more: Any) -> dict[str, Any]:
    return {"agent": AGENT, "charts": [], **more}


def test_a_silent_node_says_nothing() -> None:
    assert list(lines(body(agent=None))) == []


def test_each_chart_is_a_line_of_its_highest() -> None:
    heat = {"id": "t", "title": "GPU temperature", "unit": "°C", "lines": [
        {"name": "a", "samples": [[0, 40.0], [10, 80.0]]},
        {"name": "b", "samples": [[0, 20.0], [10, 60.0]]},
    ]}  # fmt: skip
    told = list(lines(body(charts=[heat])))
    assert told[0] == "Agent:        0.1, heard 2026-11-26T07:00:00.000Z, its clock 7200 s ahead"
    assert told[1].strip() == "kmsg: closed"
    assert "▅█" in told[-1]
    assert told[-1].endswith("60 to 80 °C")
