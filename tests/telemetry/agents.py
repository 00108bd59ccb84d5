"""A made-up agent: what a node with GPUs pushes, and a room that takes it, with its fleet in a database."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.base.quantities import format_time
from penstock.base.resource import Actor
from penstock.engines.spec import NodeOffer
from penstock.fleet import inventory
from penstock.store.store import Tx
from penstock.telemetry.charts import charts
from penstock.telemetry.history import History
from penstock.telemetry.push import Answer, Push, Row, Series, digest
from penstock.telemetry.room import Telemetry
from penstock.telemetry.spec import Finding, Labels
from tests.stores import NOON, Clock, opened

COUNTERS = {
    "penstock_node_tcp_segments_out_total": 1000.0,
    "penstock_node_tcp_retransmits_total": 2.0,
}
RATES = COUNTERS | {
    "penstock_node_network_receive_bytes_total": 120e6,
    "penstock_node_network_transmit_bytes_total": 8e7,
}


def node_series(gpus: int) -> tuple[Series, ...]:
    """As an agent names them."""
    found = [
        Series("penstock_node_memory_total_bytes"),
        Series("penstock_node_memory_available_bytes"),
        *(Series(name, (), "counter") for name in COUNTERS),
    ]
    for mode in ("user", "system", "iowait", "idle", "steal"):
        found.append(Series("penstock_node_cpu_seconds_total", (("mode", mode),), "counter"))
    for resource in ("cpu", "io", "memory"):
        labels: Labels = (("kind", "some"), ("resource", resource))
        found.append(Series("penstock_node_pressure_seconds_total", labels, "counter"))
    for device in ("eth0", "eth1"):
        for way in ("receive", "transmit"):
            found.append(Series(f"penstock_node_network_{way}_bytes_total", (("device", device),), "counter"))
    for gpu in range(gpus):
        labels = (("gpu", str(gpu)), ("uuid", f"GPU-{gpu:08x}"))
        found += [
            Series("penstock_gpu_utilization_ratio", labels),
            Series("penstock_gpu_memory_used_bytes", labels),
            Series("penstock_gpu_temperature_celsius", (*labels[:1], ("sensor", "gpu"), *labels[1:])),
            Series("penstock_gpu_power_watts", labels),
            Series("penstock_gpu_clock_hertz", (("clock", "sm"), *labels)),
            Series("penstock_gpu_info", (labels[0], ("model", "H100"), labels[1])),
        ]
    return tuple(found)


@dataclass(slots=True)
class Agent:
    """Each push has a row of a fixed load; ``looks`` counts them, and counters go on with it."""

    node: str
    gpus: int = 8
    run: str = "run-1"
    sequence: int = 0
    looks: int = 0
    series: tuple[Series, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        self.series = self.series or node_series(self.gpus)

    def push(self, at: float, *, named: bool = True, rows: Sequence[Row] | None = None) -> Push:
        self.sequence += 1
        found = (self.row(at),) if rows is None else tuple(rows)
        named_series = self.series if named else None
        return Push(
            self.node, "boot", self.run, self.sequence, at, digest(self.series), named_series, found, version="0.1"
        )

    def row(self, at: float) -> Row:
        self.looks += 1
        return Row(at, tuple(self._value(one) for one in self.series))

    def _value(self, one: Series) -> float:
        labels = dict(one.labels)
        if one.type == "counter":
            return RATES.get(one.name, 7.5 if labels.get("mode") == "idle" else 0.5) * 10 * self.looks
        values = {
            "penstock_node_memory_total_bytes": 2.0 * (1 << 40),
            "penstock_node_memory_available_bytes": 1.5 * (1 << 40),
            "penstock_gpu_utilization_ratio": 0.97,
            "penstock_gpu_memory_used_bytes": 70.0 * (1 << 30),
            "penstock_gpu_temperature_celsius": 61.0 + int(labels.get("gpu", "0")),
            "penstock_gpu_power_watts": 640.0,
            "penstock_gpu_clock_hertz": 1.98e9,
        }
        return values.get(one.name, 1.0)


def an_hour(node: str, now: float, minutes: float) -> dict[str, Any]:
    """What the server answers of a node whose agent has pushed for an hour, its load up and down."""
    history, agent = History(), Agent(node)
    history.learn(node, "all", agent.series)
    for look in range(361):
        at, values = agent.row(now - 3600 + 10 * look)
        parts = [
            1.0 if one.type == "counter" else 0.85 + 0.15 * math.sin(look / 20 + i)
            for i, one in enumerate(agent.series)
        ]
        moved = tuple(value * part for value, part in zip(values, parts, strict=True) if value is not None)
        history.take(node, [Row(at, moved)])
    found = charts(history.series(node, now - 60 * minutes, now))
    heard = {"heard_at": format_time(now), "version": "0.1", "clock_behind_s": 0.0, "sources": {"nvml": ""}}
    return {"node": node, "at": format_time(now), "agent": heard, "charts": [one.to_dict() for one in found]}


def own(node: str) -> Actor:
    return Actor(f"agent:{node}", node=node)


@dataclass(slots=True)
class Rig:
    room: Telemetry
    clock: Clock
    findings: list[tuple[str, Finding]] = field(default_factory=list)

    async def take(self, agent: Agent, *, named: bool = True) -> Answer:
        return await self.room.take(own(agent.node), agent.push(self.clock.now, named=named))

    async def note(self, push: Push, findings: Sequence[Finding]) -> None:
        self.findings += [(push.node, one) for one in findings]


@asynccontextmanager
async def rigged(tmp_path: Path, nodes: Sequence[str] = ("node-1", "node-2")) -> AsyncIterator[Rig]:
    clock = Clock(NOON)
    async with opened(f"sqlite:///{tmp_path}/penstock.db", clock) as store:

        def join(tx: Tx) -> None:
            inventory.sync(tx, "local", [NodeOffer(name, 8.0, 1 << 40) for name in nodes])

        await store.write(join)
        rig = Rig(Telemetry(store), clock)
        rig.room.on_findings.append(rig.note)
        yield rig
