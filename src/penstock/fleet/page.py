"""View models of the nodes' page: pure functions from the API's JSON to what a template shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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


CELL, GAP = 9, 2  # of the map, in pixels
CARDS = 24  # up to so many nodes each has a card of its own; of more, those of one rack
RACK, TALLEST = 8, 36  # nodes drawn together where no rack is known, and at the most of one rack
MAPPED = 2400  # nodes on one page of the map
_MARKS = {  # what is drawn of a GPU in each state; the shapes differ too, so that colour says nothing alone
    "h": "h9v9h-9z",
    "i": "m1 1h7v7h-7z",
    "f": "h9v9h-9z",
    "c": "m0 9l9-9v9z",
    "l": "l9 9m0-9l-9 9",
}
_SAID = {"h": "held", "i": "held, but idle", "f": "free", "c": "cordoned", "l": "lost"}


@dataclass(frozen=True, slots=True)
class MapNode:
    name: str
    href: str
    y: int
    text: str


@dataclass(frozen=True, slots=True)
class Rack:
    """Nodes in a row below each other, a cell for each GPU. ``marks``: by state, one path of all its cells."""

    name: str
    href: str
    width: int
    height: int
    short: str  # where there is little room
    block: str
    marks: tuple[tuple[str, str], ...]
    nodes: tuple[MapNode, ...]
    text: str
    trouble: bool  # a node of it is lost or cordoned


def racks(fleet: Mapping[str, Any]) -> tuple[Rack, ...]:
    """By block, rack and name, numbers by their value. Nodes of no rack stand together by eights, in their order; so do
    those of a rack that would be too tall to draw.
    """
    items = sorted(fleet.get("items") or (), key=_place)
    found = []
    for (_, rack), group in groupby(items, key=lambda item: (_said(item, "block"), _said(item, "rack"))):
        nodes, most = list(group), TALLEST if rack else RACK
        found += [_rack(nodes[at : at + most], len(nodes) > most) for at in range(0, len(nodes), most)]
    return tuple(found)


def blocks(shown: Iterable[Rack]) -> tuple[tuple[str, tuple[Rack, ...]], ...]:
    """Racks by the block that they stand in."""
    return tuple((block, tuple(group)) for block, group in groupby(shown, key=lambda rack: rack.block))


def _place(item: Mapping[str, Any]) -> tuple[Any, ...]:
    return _natural(_said(item, "block")), _natural(_said(item, "rack")), _natural(str(item["name"]))


def _said(item: Mapping[str, Any], key: str) -> str:
    return str(item.get(key) or "")


def _rack(items: Sequence[Mapping[str, Any]], part: bool) -> Rack:
    first, last = str(items[0]["name"]), str(items[-1]["name"])
    span = first if len(items) == 1 else f"{first} to {last}"
    rack = _said(items[0], "rack")
    step = CELL + GAP
    paths: dict[str, list[str]] = {}
    nodes = []
    for row, item in enumerate(items):
        cells = _cells(item)
        for column, state in enumerate(cells):
            paths.setdefault(state, []).append(f"M{column * step} {row * step}{_MARKS[state]}")
        name = str(item["name"])
        nodes.append(MapNode(name, f"{_at(first)}#{quote(name, safe='')}", row * step, f"{name}: {_told(cells)}"))
    every = "".join(map(_cells, items))
    widest = max(len(_cells(item)) for item in items)
    return Rack(
        name=(f"{rack}: {span}" if part else rack) if rack else span,
        short=rack or first,
        block=_said(items[0], "block"),
        href=_at(first),
        width=widest * step - GAP,
        height=len(items) * step - GAP,
        marks=tuple((state, "".join(found)) for state, found in sorted(paths.items())),
        nodes=tuple(nodes),
        text=f"{span}: {_told(every)}",
        trouble=any(item.get("state") != "ready" for item in items),
    )


def _at(first: str) -> str:
    return f"/nodes?rack={quote(first, safe='')}"


def _cells(item: Mapping[str, Any]) -> str:
    """Of a node without GPUs one cell for the whole of it."""
    found = "".join(cell if cell in _MARKS else "f" for cell in str(item.get("cells") or ""))
    if found:
        return found
    state = item.get("state")
    return {"lost": "l", "cordoned": "c"}.get(str(state), "h" if item.get("jobs") else "f")


def _told(cells: str) -> str:
    return ", ".join(f"{cells.count(state)} {word}" for state, word in _SAID.items() if state in cells)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


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
    if node.get("closed"):
        return "Closed by its site", "wait", "slash"
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
