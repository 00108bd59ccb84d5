"""``penstock reservations``: nodes kept for some, or for maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.client.verb import Column, Invocation, Verb, pairs

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _who(item: Mapping[str, Any], _now: float) -> str:
    if item["maintenance"]:
        return "nobody"
    return _some([*item["projects"], *item["users"]]) or "who names it"


def _minute(at: str) -> str:
    return at[:16].replace("T", " ")


_COLUMNS = [
    Column("NAME", lambda item, _: str(item["name"])),
    Column("KIND", lambda item, _: "maintenance" if item["maintenance"] else "reservation"),
    Column("STATE", lambda item, _: str(item["state"])),
    Column("START (UTC)", lambda item, _: _minute(item["start"])),
    Column("END (UTC)", lambda item, _: _minute(item["end"])),
    Column("NODES", lambda item, _: _some(item["nodes"])),
    Column("FOR", _who),
    Column("DRAINS", lambda item, _: "yes" if item["drain"] else "no"),
    Column("REASON", lambda item, _: str(item["reason"])),
]


def _reservations(call: Invocation, arguments: Namespace) -> int:
    if arguments.what == "list":
        if arguments.name:
            raise InvalidInput("`penstock reservations` lists all of them: name none")
        return _list(call, over=arguments.over)
    if not arguments.name:
        raise InvalidInput(f"say which: `penstock reservations {arguments.what} NAME`")
    if arguments.what == "create":
        return _create(call, arguments)
    call.client.end_reservation(arguments.name)
    call.output.note(f"reservation {arguments.name}: ended")
    return 0


def _list(call: Invocation, *, over: bool) -> int:
    items = call.client.reservations(over=over)
    if call.output.format != "table":
        call.output.document({"items": items})
    elif items:
        call.output.table(_COLUMNS, items, call.now)
    else:
        call.output.note("no reservations")
    return 0


def _create(call: Invocation, arguments: Namespace) -> int:
    given = {
        "name": arguments.name,
        "start": arguments.start,
        "end": arguments.end,
        "duration": arguments.duration,
        "nodes": [one for word in arguments.nodes or () for one in word.split(",") if one],
        "labels": pairs(arguments.label, "--label"),
        "maintenance": arguments.maintenance,
        "drain": arguments.drain,
        "projects": arguments.for_project or [],
        "users": arguments.for_user or [],
        "reason": arguments.reason,
    }
    made = call.client.reserve({key: value for key, value in given.items() if value}, dry_run=arguments.dry_run)
    if call.output.format != "table":
        call.output.document(made)
        return 0
    what = "would keep" if arguments.dry_run else "keeps"
    span = f"from {_minute(made['start'])} to {_minute(made['end'])} UTC"
    call.output.line(f"{made['name']} {what} {_some(made['nodes'])} {span}")
    for warning in made["warnings"]:
        call.output.note(f"note: {warning}")
    for job in made["jobs"]:
        until = f"until {_minute(job['ends_by'])} at the latest" if job["ends_by"] else "without a time limit"
        becomes = "is told to leave when it begins" if made["drain"] else "goes on beside it: --drain would move it"
        call.output.note(f"note: {job['project']}/{job['name']} runs on {_some(job['nodes'])} {until}; it {becomes}")
    return 0


def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("what", nargs="?", default="list", choices=("list", "create", "delete", "end"), help="default: list")
    add("name", nargs="?", metavar="NAME", help="create, delete, end: which")
    add(
        "--nodes",
        action="append",
        metavar="NODES",
        help="create: names or patterns, with commas between; again for more",
    )
    add("--label", action="append", metavar="NAME=VALUE", help="create: the nodes with this label; again: and this one")
    add("--start", "--from", dest="start", metavar="WHEN", help="create: in 2h, or 2026-12-01T08:00:00Z; default: now")
    add("--end", "--until", dest="end", metavar="WHEN", help="create: likewise")
    add("--duration", "--for", dest="duration", metavar="TIME", help="create: 4h, instead of an end")
    add("--maintenance", action="store_true", help="create: nobody runs there")
    add("--drain", action="store_true", help="create: at its start, tell who may not be there to leave")
    add("--for-project", action="append", metavar="PROJECT", help="create: whose jobs may name it; again for more")
    add("--for-user", action="append", metavar="USER", help="create: likewise")
    add("--reason", metavar="TEXT", help="create: why, for the ledger")
    add("--dry-run", action="store_true", help="create: check, say what is in its way, and change nothing")
    add("--over", action="store_true", help="list: those that are over too, for a week")


VERBS = {
    "reservations": Verb(
        "penstock reservations\n"
        "penstock reservations create dimm-swap --maintenance --nodes node-3 --from 'in 2h' --for 1h --drain\n"
        "penstock reservations create demo --nodes 'node-1*' --from 2026-12-01T08:00:00Z --until 2026-12-01T18:00:00Z "
        "--for-project vision\n"
        "penstock reservations end demo",
        _arguments,
        _reservations,
        about="No job starts on its nodes whose time limit reaches into a window, nor one without a limit, but those that "
        "name the reservation and may. Who still runs there when it begins goes on, unless it drains.",
    )
}
