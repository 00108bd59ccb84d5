"""``penstock causes [ID]``: what is known of each cause, without a server."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from penstock.base.errors import NotFound
from penstock.client.verb import Column, Invocation, Verb
from penstock.diagnosis.knowledge.catalogue import CAUSES, LAYERS, Cause

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_STYLES = {"critical": "red", "warning": "yellow"}
COLUMNS = (
    Column("ID", lambda row, _: str(row["id"])),
    Column("LAYER", lambda row, _: str(row["layer"])),
    Column("SEVERITY", lambda row, _: str(row["severity"]), style=lambda text: _STYLES.get(text, "")),
    Column("CAUSE", lambda row, _: str(row["name"])),
)


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", metavar="ID", help="one cause; without it all are listed")
    parser.add_argument("--layer", choices=LAYERS, help="only those of one layer")


def _causes(call: Invocation, arguments: Namespace) -> int:
    if arguments.id is not None:
        _show(call, _named(arguments.id))
        return 0
    rows: list[dict[str, Any]] = [asdict(cause) for cause in CAUSES.values() if arguments.layer in {None, cause.layer}]
    if call.output.format == "table":
        call.output.table(COLUMNS, rows, call.now)
    else:
        call.output.document({"items": rows})
    return 0


def _named(name: str) -> Cause:
    if name in CAUSES:
        return CAUSES[name]
    near = get_close_matches(name, CAUSES, n=1)
    raise NotFound(
        f"{name!r} is no cause" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint="`penstock causes` lists them.",
    )


def _show(call: Invocation, cause: Cause) -> None:
    if call.output.format != "table":
        call.output.document(asdict(cause))
        return
    for line in text(cause):
        call.output.line(line)


def text(cause: Cause) -> list[str]:
    """A cause as a terminal shows it."""
    parts = [f"{cause.id}: {cause.name}", f"{cause.severity}, layer {cause.layer}", "", cause.what_it_is, ""]
    sections = (
        ("What to do", [f"{number}. {what}" for number, what in enumerate(cause.what_to_do, 1)]),
        ("What tells it from others", [cause.evidence]),
        ("Easily taken for", [f"{other.cause}: {other.how}" for other in cause.look_alikes]),
        ("Where it shows", list(cause.signals)),
    )
    for title, lines in sections:
        parts += [f"{title}:", *(f"  {line}" for line in lines), ""]
    return parts[:-1]


VERBS = {
    "causes": Verb(
        "penstock causes\npenstock causes cgroup_throttle",
        _configure,
        _causes,
        about="What is known of each cause that a diagnosis may name: what it is, what to do, what tells it from others. "
        "No server is asked. docs/causes/ has the same as pages.",
    )
}
