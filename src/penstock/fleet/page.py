"""View models of the nodes' page: pure functions from the API's JSON to what a template shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from penstock.base.quantities import format_memory, parse_memory


@dataclass(frozen=True, slots=True)
class Gauge:
    """How much of something is given away; ``text`` for people, ``percent`` 0 to 100."""

    name: str
    text: str
    percent: float


@dataclass(frozen=True, slots=True)
class NodeCard:
    name: str
    engine: str
    word: str
    tone: str
    icon: str
    reason: str
    message: str
    gauges: tuple[Gauge, ...]
    gpu_model: str
    jobs: tuple[tuple[str, str], ...]  # "project/name", address
    cordoned: bool
    ready: bool


@dataclass(frozen=True, slots=True)
class FleetSummary:
    nodes: int
    ready: int
    cordoned: int
    gauges: tuple[Gauge, ...]


def node_card(node: Mapping[str, Any]) -> NodeCard:
    word, tone, icon = _state(node)
    have, used = node.get("capacity") or {}, node.get("allocated") or {}
    models = sorted({str(g.get("model") or "") for g in _gpus(have) if isinstance(g, Mapping)} - {""})
    return NodeCard(
        name=str(node.get("name")),
        engine=str(node.get("engine") or ""),
        word=word,
        tone=tone,
        icon=icon,
        reason=str(node.get("reason") or ""),
        message=str(node.get("message") or ""),
        gauges=_gauges([_amounts(have)], [_amounts(used)]),
        gpu_model=", ".join(models),
        jobs=tuple(
            (
                f"{j['project']}/{j['name']}",
                f"/jobs/{quote(str(j['project']), safe='')}/{quote(str(j['name']), safe='')}",
            )
            for j in node.get("jobs") or ()
        ),
        cordoned=bool(node.get("cordoned")),
        ready=bool(node.get("ready", True)),
    )


def summary(nodes: Iterable[Mapping[str, Any]]) -> FleetSummary:
    """Of the nodes shown."""
    known = list(nodes)
    have = [_amounts(n.get("capacity") or {}) for n in known]
    used = [_amounts(n.get("allocated") or {}) for n in known]
    ready = sum(bool(n.get("ready", True)) for n in known)
    return FleetSummary(len(known), ready, sum(bool(n.get("cordoned")) for n in known), _gauges(have, used))


def _state(node: Mapping[str, Any]) -> tuple[str, str, str]:
    if not node.get("ready", True):
        return "Not ready", "bad", "cross"
    if node.get("cordoned"):
        drained = not node.get("jobs")
        return ("Cordoned, empty", "off", "slash") if drained else ("Cordoned", "wait", "slash")
    return "Ready", "ok", "check"


def _amounts(part: Mapping[str, Any]) -> tuple[float, float, float]:
    memory = part.get("memory") or 0
    return float(part.get("cpus") or 0), float(parse_memory(memory)), float(len(_gpus(part)))


def _gpus(part: Mapping[str, Any]) -> list[Any]:
    gpus = part.get("gpus") or []
    return list(range(int(gpus))) if isinstance(gpus, (int, float)) else list(gpus)


def _gauges(have: Iterable[tuple[float, ...]], used: Iterable[tuple[float, ...]]) -> tuple[Gauge, ...]:
    totals = [sum(column) for column in zip(*have, strict=True)] or [0.0, 0.0, 0.0]
    taken = [sum(column) for column in zip(*used, strict=True)] or [0.0, 0.0, 0.0]
    plain = [("CPU", "{:g}".format), ("Memory", format_memory), ("GPU", "{:g}".format)]
    return tuple(
        Gauge(name, f"{write(part)} of {write(whole)}", min(100.0, 100 * part / whole))
        for (name, write), whole, part in zip(plain, totals, taken, strict=True)
        if whole
    )
