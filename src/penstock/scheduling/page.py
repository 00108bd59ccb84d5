"""View models of the queues' page: pure functions from the API's JSON to what a template shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from penstock.base.quantities import format_memory

_NOTHING = 1e-9  # of any resource: below it no bar is drawn
_UNITS = {"gpus": "GPUs", "cpus": "CPUs", "memory": "memory"}


@dataclass(frozen=True, slots=True)
class Bar:
    """Shares of the widest bar of its cohort, 0 to 100: ``own`` use and ``lent`` lie within ``nominal``, ``borrowed`` beyond."""

    own: float
    lent: float
    borrowed: float
    nominal: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A queue's quota of one resource of one flavor."""

    flavor: str
    unit: str
    nominal: str
    used: str
    borrowed: str
    lent: str
    bar: Bar


@dataclass(frozen=True, slots=True)
class Head:
    """One of the first in line. ``name`` is empty where it is none of the caller's business."""

    place: int
    name: str
    project: str
    user: str
    href: str
    need: str
    reason: str
    message: str
    helps: tuple[str, ...]
    queued_at: str | None
    start: str | None
    firm: bool


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    weight: float
    waiting: int
    href: str  # its jobs
    waiting_href: str  # those that wait
    lines: tuple[Line, ...]
    heads: tuple[Head, ...]


@dataclass(frozen=True, slots=True)
class Cohort:
    """Queues that lend to each other; ``name`` is None for those that stand alone."""

    name: str | None
    queues: tuple[Queue, ...]
    summary: str
    limited: bool  # any of them has a quota


def cohorts(report: Mapping[str, Any], waiting: Mapping[str, Any] | None) -> tuple[Cohort, ...]:
    """Cohorts by name, queues without one last."""
    by_queue: dict[str, list[Mapping[str, Any]]] = {}
    for item in report.get("items") or ():
        by_queue.setdefault(str(item["queue"]), []).append(item)
    heads: dict[str, list[Head]] = {}
    for item in (waiting or {}).get("items") or ():
        heads.setdefault(str(item["queue"]), []).append(head(item))
    groups: dict[str | None, list[list[Mapping[str, Any]]]] = {}
    for rows in by_queue.values():
        groups.setdefault(rows[0].get("cohort"), []).append(rows)
    order = sorted(groups, key=lambda name: (name is None, name or ""))
    return tuple(_cohort(name, groups[name], heads) for name in order)


def _cohort(
    name: str | None, members: Sequence[Sequence[Mapping[str, Any]]], heads: Mapping[str, Sequence[Head]]
) -> Cohort:
    widest: dict[tuple[str, str], float] = {}
    for row in (row for rows in members for row in rows):
        cell = _cell(row)
        widest[cell] = max(widest.get(cell, 0.0), _amount(row, "used"), _amount(row, "nominal"))
    queues = tuple(
        Queue(
            name=str(rows[0]["queue"]) + ("" if rows[0].get("in_file", True) else " (not in the file)"),
            weight=float(rows[0].get("weight") or 1.0),
            waiting=int(rows[0].get("waiting") or 0),
            href=f"/?queue={quote(str(rows[0]['queue']), safe='')}",
            waiting_href=f"/?queue={quote(str(rows[0]['queue']), safe='')}&phase=Pending",
            lines=tuple(_line(row, widest[_cell(row)]) for row in rows),
            heads=tuple(heads.get(str(rows[0]["queue"]), ())),
        )
        for rows in members
    )
    limited = any(row.get("nominal") is not None for rows in members for row in rows)
    return Cohort(name, queues, _summary(members), limited)


def _summary(members: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """What there is and what is used of the scarcest resource, which is the first that its queues name."""
    rows = [row for rows in members for row in rows]
    gpus = [row for row in rows if row.get("resource") == "gpus"] or rows
    if not gpus:
        return ""
    resource = str(gpus[0]["resource"])
    used = sum(_amount(row, "used") for row in gpus if row["resource"] == resource)
    limited = [row for row in gpus if row["resource"] == resource and row.get("nominal") is not None]
    nominal = sum(_amount(row, "nominal") for row in limited)
    told = _shown(resource, used)
    whole = f" of {_shown(resource, nominal)}" if limited else ""
    return f"{told}{whole} {_UNITS.get(resource, resource)} in use"


def _line(row: Mapping[str, Any], widest: float) -> Line:
    resource = str(row["resource"])
    nominal = row.get("nominal")
    used, borrowed, lent = _amount(row, "used"), _amount(row, "borrowed"), _amount(row, "lent")
    share = 100 / widest if widest > _NOTHING else 0.0
    own = max(0.0, used - borrowed)
    told = f"{_shown(resource, used)} used" + ("" if nominal is None else f" of {_shown(resource, float(nominal))}")
    if borrowed:
        told += f", {_shown(resource, borrowed)} of it borrowed"
    if _amount(row, "promised"):
        told += f", {_shown(resource, _amount(row, 'promised'))} kept for who waits until others have left"
    if lent:
        told += f", {_shown(resource, lent)} lent"
    return Line(
        flavor=str(row["flavor"]),
        unit=_UNITS.get(resource, resource),
        nominal="-" if nominal is None else _shown(resource, float(nominal)),
        used=_shown(resource, used),
        borrowed=_shown(resource, borrowed) if borrowed else "-",
        lent=_shown(resource, lent) if lent else "-",
        bar=Bar(own * share, lent * share, borrowed * share, None if nominal is None else float(nominal) * share, told),
    )


def head(item: Mapping[str, Any]) -> Head:
    name, project = str(item.get("name") or ""), str(item.get("project") or "")
    gpus, nodes = float(item.get("gpus") or 0), int(item.get("nodes") or 1)
    need = f"{gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else "no GPU"
    return Head(
        place=int(item.get("place") or 0),
        name=name,
        project=project,
        user=str(item.get("user") or ""),
        href=f"/jobs/{quote(project, safe='')}/{quote(name, safe='')}" if name else "",
        need=need + (f" on {nodes} nodes" if nodes > 1 else ""),
        reason=str(item.get("reason") or ""),
        message=str(item.get("message") or ""),
        helps=tuple(map(str, item.get("helps") or ())),
        queued_at=item.get("queued_at"),
        start=item.get("start_estimate"),
        firm=bool(item.get("firm")),
    )


def _cell(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row["flavor"]), str(row["resource"])


def _amount(row: Mapping[str, Any], key: str) -> float:
    return float(row.get(key) or 0.0)


def _shown(resource: str, amount: float) -> str:
    return (
        format_memory(int(amount))
        if resource == "memory"
        else f"{round(amount, 1):,g}"
        if amount < 1e6
        else f"{amount:,.0f}"
    )
