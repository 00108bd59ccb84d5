"""Reservations and maintenance windows that operators make while the server runs, as rows.

They stand beside those of the queue file: all of them hold, names are unique over both, and each is ended where it was
made. Nodes are chosen by name, pattern or label when a window is made, and named from then on: one that joins later is
not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, InvalidInput, NotFound, Problem
from penstock.base.ids import check_name
from penstock.base.quantities import format_time, parse_duration, parse_time
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.fleet import inventory
from penstock.scheduling import live
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Reservation
from penstock.scheduling.tables import reservations
from penstock.store.store import Tx
from penstock.tenancy import accounts

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler

LATE_S = 60.0  # a start this long ago is now: somebody typed
KEPT_S = 7 * 86400.0  # how long one that is over is still listed
LONGEST_S = 366 * 86400.0
_ALL = select(reservations).order_by(reservations.c.begins, reservations.c.name)


@dataclass(frozen=True, slots=True)
class Request:
    """As it was asked for: times in words, nodes by name or pattern."""

    name: str
    start: str | None = None
    end: str | None = None
    duration: str | None = None
    nodes: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    maintenance: bool = False
    drain: bool = False
    projects: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    reason: str = ""


def read(conn: Connection, request: Request, now: float) -> tuple[Reservation, list[str]]:
    """The window that is asked for, and what is to be said of it all the same. Raises InvalidInput with all that is wrong."""
    problems: list[Problem] = []
    wrong = check_name(request.name)
    if wrong is not None:
        problems.append(Problem("name", wrong.message))
    elif any(one.name == request.name for one in _known(conn, now)):
        problems.append(Problem("name", f"there is a reservation {request.name!r} already"))
    start, end = _times(request, now, problems)
    nodes = _nodes(conn, request, problems)
    problems += _who(conn, request)
    if request.maintenance and (request.projects or request.users):
        problems.append(Problem("maintenance", "nobody runs in a maintenance window: name no projects or users"))
    made = Reservation(
        request.name, start, end, frozenset(nodes), request.maintenance,
        frozenset(request.projects), frozenset(request.users), request.drain,
    )  # fmt: skip
    warnings: list[str] = []
    for other in _known(conn, now) if nodes and start < end else ():
        shared = sorted(made.nodes & other.nodes)
        if not shared or other.end <= start or end <= other.start:
            continue
        words = f"{_some(shared)} {'is' if len(shared) == 1 else 'are'} in {other.kind} {other.name}, {_span(other)}"
        if made.maintenance != other.maintenance:
            warnings.append(f"{words}: while both last, nobody runs there")
        else:
            problems.append(Problem("nodes", words))
    if problems:
        raise InvalidInput("the reservation cannot be made", details=problems)
    return made, warnings


def _times(request: Request, now: float, problems: list[Problem]) -> tuple[float, float]:
    """``end`` is 0 where either is wrong."""
    start = now if request.start is None else _instant(request.start, now, "start", problems)
    if request.end is None and request.duration is None:
        problems.append(Problem("end", "say until when, or for how long"))
        return start or now, 0.0
    if request.end is not None and request.duration is not None:
        problems.append(Problem("duration", "give an end or a duration, not both"))
    if start is not None and start < now - LATE_S:
        problems.append(Problem("start", f"lies in the past ({format_time(start)})"))
    end: float | None = None
    if request.end is not None:
        end = _instant(request.end, now, "end", problems)
    elif start is not None:
        try:
            end = start + parse_duration(request.duration or "")
        except ValueError as error:
            problems.append(Problem("duration", str(error)))
    if end is not None and end <= now:
        problems.append(Problem("end", f"lies in the past ({format_time(end)})"))
    elif start is not None and end is not None and not start < end <= start + LONGEST_S:
        words = "must be after the start" if end <= start else "lies more than a year after the start"
        problems.append(Problem("end" if request.end is not None else "duration", words))
    return (now, 0.0) if start is None or end is None else (max(start, now), end)


def _instant(text: str, now: float, path: str, problems: list[Problem]) -> float | None:
    """``now``, ``in 2h``, or RFC 3339 with its time zone."""
    said = text.strip()
    try:
        if said == "now":
            return now
        if said.startswith("in "):
            return now + parse_duration(said[3:])
        if not said.endswith("Z") and "+" not in said[10:] and "-" not in said[10:]:
            raise ValueError
        return parse_time(said)
    except (ValueError, OverflowError):
        problems.append(Problem(path, f"{text!r} is not a time: write 2026-12-01T08:00:00Z, or in 2h"))
        return None


def _nodes(conn: Connection, request: Request, problems: list[Problem]) -> list[str]:
    rows = inventory.all_nodes(conn)
    found: dict[str, None] = {}
    for at, pattern in enumerate(request.nodes):
        named = [row.name for row in rows if fnmatchcase(row.name, pattern)]
        if not named:
            there = _some(sorted(row.name for row in rows))
            problems.append(Problem(f"nodes[{at}]", f"no node is named {pattern!r} (there are: {there})"))
        found.update(dict.fromkeys(named))
    if request.labels:
        named = [row.name for row in rows if request.labels.items() <= inventory.labels_of(row).items()]
        if not named:
            asked = ", ".join(f"{key}={value}" for key, value in request.labels.items())
            problems.append(Problem("labels", f"no node has {asked}"))
        found.update(dict.fromkeys(named))
    if not request.nodes and not request.labels:
        problems.append(Problem("nodes", "say which nodes, by name, pattern or label"))
    return list(found)


def _who(conn: Connection, request: Request) -> Iterator[Problem]:
    for at, project in enumerate(request.projects):
        if not accounts.project_exists(conn, project):
            yield Problem(f"projects[{at}]", f"there is no project {project!r}")
    for at, user in enumerate(request.users):
        if accounts.actor_of(conn, user) is None:
            yield Problem(f"users[{at}]", f"there is no user {user!r}")


def _span(one: Reservation) -> str:
    return f"{format_time(one.start)} to {format_time(one.end)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# -- rows


def _known(conn: Connection, now: float) -> list[Reservation]:
    """All that are not over, the queue file's too."""
    return [*(one for one in live.current(conn).reservations if one.end > now), *current(conn, now)]


def current(conn: Connection, now: float) -> list[Reservation]:
    """Those made by operators that are not over. ``drain`` is false where everybody was told already."""
    return [_frozen(row) for row in conn.execute(_ALL.where(reservations.c.ends > now))]


def _frozen(row: Row[Any]) -> Reservation:
    return Reservation(
        row.name, row.begins, row.ends, frozenset(json.loads(row.nodes)), bool(row.maintenance),
        frozenset(json.loads(row.projects)), frozenset(json.loads(row.users)), bool(row.drain) and not row.drained,
    )  # fmt: skip


def create(tx: Tx, made: Reservation, *, reason: str, actor: str) -> None:
    """Of one that ``read`` found good in this transaction. One by its name that is over makes way."""
    tx.conn.execute(
        reservations.delete().where((reservations.c.name == made.name) | (reservations.c.ends < tx.now - KEPT_S))
    )
    tx.conn.execute(
        reservations.insert().values(
            name=made.name,
            begins=made.start,
            ends=made.end,
            nodes=json.dumps(sorted(made.nodes)),
            maintenance=made.maintenance,
            drain=made.drain,
            drained=False,
            projects=json.dumps(sorted(made.projects)),
            users=json.dumps(sorted(made.users)),
            reason=reason,
            created_by=actor,
            created_at=tx.now,
        )
    )
    words = f"{made.kind} of {_some(sorted(made.nodes))}, {_span(made)}" + (f": {reason}" if reason else "")
    data = {"start": made.start, "end": made.end, "nodes": sorted(made.nodes), "maintenance": made.maintenance}
    tx.emit(_ref(made.name), Reason.ReservationCreated, words, actor=actor, data=data)


def delete(tx: Tx, name: str, *, actor: str) -> None:
    """Ended early, or called off: its nodes are there for everybody. Raises NotFound, Conflict."""
    row = tx.conn.execute(select(reservations).where(reservations.c.name == name)).first()
    if row is None:
        if any(one.name == name for one in live.current(tx.conn).reservations):
            raise Conflict(
                f"{name} is written in the queue file", hint="Take it out there, and `penstock queues apply` the file."
            )
        raise NotFound(f"there is no reservation {name!r}", hint="`penstock reservations` lists them.")
    tx.conn.execute(reservations.delete().where(reservations.c.name == name))
    if row.ends > tx.now:
        words = "called off" if row.begins > tx.now else f"ended {row.ends - tx.now:.0f} s early"
        tx.emit(_ref(name), Reason.ReservationEnded, words, actor=actor)


def drained(tx: Tx, one: Reservation, jobs: Iterable[str]) -> None:
    """Who was to leave was told: once."""
    tx.conn.execute(reservations.update().where(reservations.c.name == one.name).values(drained=True))
    told = list(jobs)
    words = f"{one.kind} began; {len(told)} job{'s' if len(told) != 1 else ''} told to leave its nodes"
    tx.emit(_ref(one.name), Reason.ReservationBegan, words, actor="system", data={"jobs": told})


def _ref(name: str) -> Ref:
    return Ref("Reservation", name, id=name)


def take_over(conn: Connection, scheduler: Scheduler, now: float) -> None:
    """Make a scheduler's windows those that hold now."""
    wanted = {one.name: one for one in (*scheduler.setup.reservations, *current(conn, now)) if one.end > now}
    known = scheduler.reservations.known
    for name in [name for name in known if name not in wanted]:
        scheduler.drop_reservation(name)
    for one in wanted.values():
        if known.get(one.name) != one:
            scheduler.put_reservation(one)


def listed(conn: Connection, now: float, *, over: bool) -> list[dict[str, Any]]:
    """As JSON, the soonest first; with ``over`` those of the last days too."""
    found = [
        to_json(_frozen(row), now)
        | {
            "drain": bool(row.drain), "reason": row.reason, "source": "api", "created_by": row.created_by,
            "created_at": format_time(row.created_at),
        }
        for row in conn.execute(_ALL)
    ]  # fmt: skip
    found += [
        to_json(one, now) | {"reason": "", "source": "queue file", "created_by": None, "created_at": None}
        for one in live.current(conn).reservations
    ]
    found.sort(key=lambda item: (item["start"], item["name"]))
    return [item for item in found if over or item["state"] != "over"]


def to_json(one: Reservation, now: float) -> dict[str, Any]:
    return {
        "kind": "Reservation",
        "name": one.name,
        "state": "upcoming" if now < one.start else "active" if now < one.end else "over",
        "start": format_time(one.start),
        "end": format_time(one.end),
        "nodes": sorted(one.nodes),
        "maintenance": one.maintenance,
        "drain": one.drain,
        "projects": sorted(one.projects),
        "users": sorted(one.users),
    }


def check_names(conn: Connection, setup: Setup, now: float) -> None:
    """Raises InvalidInput where a queue file takes the name of a window that was made beside it."""
    made = {one.name for one in current(conn, now)}
    problems = [
        Problem(f"reservations[{at}].name", f"{one.name!r} is the name of a reservation made beside the queue file")
        for at, one in enumerate(setup.reservations)
        if one.name in made
    ]
    if problems:
        raise InvalidInput("the queue file cannot be applied", details=problems)


def refusal(conn: Connection, name: str, project: str, user: str, now: float) -> str | None:
    """Why a job may not name a reservation; None where it may."""
    one = next((one for one in _known(conn, now) if one.name == name), None)
    if one is None:
        return f"there is no reservation {name!r}, or it is over"
    if one.maintenance:
        return f"{name} is a maintenance window: nobody runs in it"
    if (one.projects or one.users) and project not in one.projects and user not in one.users:
        return f"reservation {name} is for others"
    return None
