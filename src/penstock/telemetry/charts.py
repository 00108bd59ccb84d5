"""A node's recent samples as charts: a few lines each, in units that people read. Pure.

One chart for one question; a line for each device. What the console draws, what ``penstock describe node`` prints, and the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from penstock.telemetry.history import Recent
from penstock.telemetry.kept import MODES, written

MOST_LINES = 16  # of one chart
_CPU = "penstock_node_cpu_seconds_total"
_PRESSURE = "penstock_node_pressure_seconds_total"
_WorkOut = Callable[[Sequence[float]], float | None]
_ByName = Mapping[str, Sequence[Recent]]


@dataclass(frozen=True, slots=True)
class Line:
    name: str  # the device, or what of the node it is
    samples: tuple[tuple[float, float], ...]

    @property
    def newest(self) -> float:
        return self.samples[-1][1]


_Lines = Callable[[_ByName], list[Line]]


@dataclass(frozen=True, slots=True)
class Chart:
    id: str
    title: str
    unit: str
    lines: tuple[Line, ...]

    def to_dict(self) -> dict[str, Any]:
        lines = [
            {"name": line.name, "samples": [(at, float(f"{value:.5g}")) for at, value in line.samples]}
            for line in self.lines
        ]
        return {"id": self.id, "title": self.title, "unit": self.unit, "lines": lines}


class _Wanted(NamedTuple):
    id: str
    title: str
    unit: str
    lines: _Lines


def charts(series: Iterable[Recent]) -> tuple[Chart, ...]:
    """Those that there is something to draw in, in the order in which a person asks."""
    by_name: dict[str, list[Recent]] = {}
    for one in series:
        by_name.setdefault(one.name, []).append(one)
    found = []
    for wanted in _WANTED:
        lines = wanted.lines(by_name)
        if lines:
            found.append(Chart(wanted.id, wanted.title, wanted.unit, tuple(lines[:MOST_LINES])))
    return tuple(found)


def _of(series: Mapping[str, str], scale: float = 1.0) -> _Lines:
    """Series by name, and what the line of each is called; "": by its device."""

    def lines(by_name: _ByName) -> list[Line]:
        return [
            Line(
                " ".join(filter(None, (one.device, called))) or "node",
                tuple((at, value * scale) for at, value in one.samples),
            )
            for name, called in series.items()
            for one in by_name.get(name, ())
        ]

    return lines


def _each_device(name: str, scale: float = 1.0) -> _Lines:
    return _of({name: ""}, scale)


def _together(found: Sequence[Recent], work_out: _WorkOut) -> list[Line]:
    """One line from several series, where all of them are known."""
    known = [dict(one.samples) for one in found]
    times = sorted(set(known[0]).intersection(*known[1:]))
    samples = [(at, value) for at in times if (value := work_out([one[at] for one in known])) is not None]
    return [Line(found[0].device or "node", tuple(samples))] if samples else []


def _by_place(by_name: _ByName, *names: str) -> Iterator[list[Recent]]:
    """A series of each name, for each node that has all of them."""
    places = dict.fromkeys(one.device for one in by_name.get(names[0], ()))
    for place in places:
        found = [one for name in names for one in by_name.get(name, ()) if one.device == place]
        if len(found) == len(names):
            yield found


def _each(by_name: _ByName, names: Sequence[str], work_out: _WorkOut) -> list[Line]:
    return [line for found in _by_place(by_name, *names) for line in _together(found, work_out)]


def _cpu(by_name: _ByName) -> list[Line]:
    modes = [mode for mode in MODES if mode != "idle"]
    names = tuple(written(_CPU, {"mode": mode}) for mode in ("idle", *modes))
    return _each(by_name, names, lambda s: 100 * (1 - s[0] / sum(s)) if sum(s) else None)


def _memory(by_name: _ByName) -> list[Line]:
    names = ("penstock_node_memory_available_bytes", "penstock_node_memory_total_bytes")
    return _each(by_name, names, lambda s: 100 * (1 - s[0] / s[1]) if s[1] else None)


def _retransmits(by_name: _ByName) -> list[Line]:
    names = ("penstock_node_tcp_retransmits_total", "penstock_node_tcp_segments_out_total")
    return _each(by_name, names, lambda s: 100 * s[0] / s[1] if s[1] else 0.0)


_TO_MEGA = 1e-6
_WANTED = (
    _Wanted("gpu_utilization", "GPU utilisation", "%", _each_device("penstock_gpu_utilization_ratio", 100.0)),
    _Wanted("gpu_memory", "GPU memory in use", "GiB", _each_device("penstock_gpu_memory_used_bytes", 1 / (1 << 30))),
    _Wanted("gpu_temperature", "GPU temperature", "°C", _each_device('penstock_gpu_temperature_celsius{sensor="gpu"}')),
    _Wanted("gpu_power", "GPU power", "W", _each_device("penstock_gpu_power_watts")),
    _Wanted("gpu_clock", "GPU clock (SM)", "MHz", _each_device('penstock_gpu_clock_hertz{clock="sm"}', _TO_MEGA)),
    _Wanted("cpu", "CPU in use", "%", _cpu),
    _Wanted("memory", "Memory in use", "%", _memory),
    _Wanted(
        "pressure",
        "Pressure, some waited",
        "%",
        _of({written(_PRESSURE, {"resource": one, "kind": "some"}): one for one in ("cpu", "io", "memory")}, 100.0),
    ),
    _Wanted(
        "network_in", "Network, received", "MB/s", _each_device("penstock_node_network_receive_bytes_total", _TO_MEGA)
    ),
    _Wanted(
        "network_out", "Network, sent", "MB/s", _each_device("penstock_node_network_transmit_bytes_total", _TO_MEGA)
    ),
    _Wanted(
        "fabric_in", "InfiniBand, received", "MB/s", _each_device("penstock_infiniband_receive_bytes_total", _TO_MEGA)
    ),
    _Wanted(
        "fabric_out", "InfiniBand, sent", "MB/s", _each_device("penstock_infiniband_transmit_bytes_total", _TO_MEGA)
    ),
    _Wanted("retransmits", "TCP segments sent again", "%", _retransmits),
    _Wanted("disk", "Disk, busy", "%", _each_device("penstock_node_disk_busy_seconds_total", 100.0)),
)
