"""``penstock events`` and ``audit``: what happened, and whether the record of it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.base.errors import LedgerBroken, NotFound
from penstock.client.verb import Column, Invocation, Verb
from penstock.jobs.commands.view import age

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Resource


def _subject(event: Resource) -> str:
    project, name = event.get("project") or "", event.get("name") or ""
    return f"{event.get('kind') or ''} {project}/{name}".replace(" /", " ").strip()


COLUMNS = (
    Column("SEQ", lambda event, _: str(event["seq"]), right=True),
    Column("AGE", lambda event, now: age(event.get("at"), now), right=True),
    Column("SUBJECT", lambda event, _: _subject(event)),  # type: ignore[arg-type]  # a table's rows are resources
    Column("REASON", lambda event, _: str(event["reason"])),
    Column("ACTOR", lambda event, _: str(event["actor"])),
    Column("MESSAGE", lambda event, _: str(event.get("message") or "")),
)


def _events(call: Invocation, arguments: Namespace) -> int:
    filters = {"kind": arguments.kind, "name": arguments.name, "reason": arguments.reason, "actor": arguments.actor}
    filters["project"] = call.settings.project if arguments.name and arguments.kind in (None, "Job") else None
    out, newest = call.output, call.client.events.newest(arguments.limit, **filters)
    only_name = arguments.name and not (newest or arguments.follow or arguments.reason or arguments.actor)
    if only_name:
        where = f" in project {filters['project']!r}" if filters["project"] else ""
        raise NotFound(
            f"nothing ever happened to a {arguments.kind or 'Job'} named {arguments.name!r}{where}",
            hint="`penstock get jobs` lists the names; --project and --kind look elsewhere.",
        )
    if out.format != "table" and not arguments.follow:
        out.document({"items": newest})
        return 0
    if not arguments.follow:
        out.table(COLUMNS, newest, call.now)
        return 0
    after = max((int(event["seq"]) for event in newest), default=None)
    for event in newest:
        out.line(_line(event))
    wanted = {name: value for name, value in filters.items() if value is not None}
    for event in call.client.events.follow(after=after):
        if all(event.get(name) == value for name, value in wanted.items()):
            out.line(_line(event))
            out.raw(b"")
    return 0


def _line(event: Resource) -> str:
    words = [str(event["at"]), _subject(event), str(event["reason"]), f"by {event['actor']}"]
    return "  ".join(words) + (f": {event['message']}" if event.get("message") else "")


def _events_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="JOB", help="of this job (or of what --kind names)")
    add("-f", "--follow", action="store_true", help="go on as they happen")
    add("--kind", metavar="KIND", help="Job, Node, User, Token, Server ...")
    add("--reason", metavar="REASON", help="RankExited, Cordoned ...")
    add("--actor", metavar="USER", help="of what this user did; system for the server")
    add("-n", "--limit", type=int, default=50, metavar="N", help="the newest N (default 50)")


def _audit(call: Invocation, arguments: Namespace) -> int:
    if arguments.what == "list":
        newest = call.client.events.newest(arguments.limit)
        if call.output.format == "table":
            call.output.table((*COLUMNS, Column("HASH", lambda event, _: str(event["hash"])[:16])), newest, call.now)
        else:
            call.output.document({"items": newest})
        return 0
    found = call.client.audit_verify()
    if call.output.format != "table":
        call.output.document(found)
    elif found["ok"]:
        head = found.get("head") or {}
        call.output.line(f"ok: {found['rows']} rows" + (f", the last hash is {head['hash']}" if head else ""))
    if not found["ok"]:
        raise LedgerBroken(
            f"row {found.get('first_bad_seq')} of the ledger is not as it was written: {found['problem']}"
        )
    return 0


def _audit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("verify", "list"), default="verify", help="default: verify")
    parser.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="rows of `list` (default 50)")


VERBS = {
    "events": Verb(
        "penstock events digits\npenstock events -f --kind Node\npenstock events --reason RankExited -n 200",
        _events_arguments,
        _events,
    ),
    "audit": Verb(
        "penstock audit verify\npenstock audit list -n 20 -o json",
        _audit_arguments,
        _audit,
        about="Every row of the ledger holds the hash of the one before: the first altered, removed or reordered one is named.",
    ),
}
