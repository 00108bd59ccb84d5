"""``penstock version`` and ``doctor``: what is here, and what is at the other end."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from penstock.base.errors import PenstockError, Unavailable
from penstock.base.version import VERSION
from penstock.client.verb import Column, Invocation, Verb, no_arguments

if TYPE_CHECKING:
    from argparse import Namespace

LOOPBACK = ("localhost", "::1")
_STYLES = {"ok": "green", "warning": "yellow", "FAILED": "red"}
COLUMNS = (
    Column("CHECK", lambda row, _: str(row["check"])),
    Column("RESULT", lambda row, _: str(row["result"]), style=lambda text: _STYLES.get(text, "")),
    Column("WHAT", lambda row, _: str(row["what"])),
)


def _version(call: Invocation, _arguments: Namespace) -> int:
    own, server = VERSION, None
    try:
        server = call.client.version().get("version")
    except PenstockError as error:
        if call.output.format == "table":
            call.output.note(f"server: {error}")
    if call.output.format == "table":
        call.output.line(f"penstock {own}")
        if server is not None:
            call.output.line(f"server {server} at {call.client.url}")
    else:
        call.output.document({"version": own, "server": server})
    return 0


def _doctor(call: Invocation, _arguments: Namespace) -> int:
    rows: list[dict[str, Any]] = []
    failed: PenstockError | None = None
    try:
        _checks(call, rows)
    except PenstockError as error:
        failed = error
        rows.append({"check": "error", "result": "FAILED", "what": str(error)})
    if call.output.format == "table":
        call.output.table(COLUMNS, rows, call.now)
    else:
        call.output.document({"items": rows})
    if failed is not None:
        raise failed
    return 0


def _checks(call: Invocation, rows: list[dict[str, Any]]) -> None:
    """Appends a row for each thing that is well; raises at the first that is not."""

    def tell(check: str, what: str, result: str = "ok") -> None:
        rows.append({"check": check, "result": result, "what": what})

    tell("python", f"{platform.python_version()} on {platform.machine()}")
    client = call.client
    tell("server", f"{client.url}, learnt from {client.place.source}")
    address = client.transport.address
    if address.scheme == "http" and address.host not in LOOPBACK and not address.host.startswith("127."):
        tell("encryption", "the token and all else travel readable: use https", "warning")
    client.transport.request("GET", "/healthz")
    tell("reachable", "it answers")
    own, there = VERSION, str(client.version().get("version"))
    tell("versions", f"{own} here, {there} there", "ok" if own == there else "warning")
    if client.transport.token is None:
        raise Unavailable(
            "there is no token to show", hint="Set PENSTOCK_TOKEN, or run as the user who runs the server."
        )
    who = client.whoami()
    roles = ", ".join(f"{role} of {project}" for project, role in (who.get("projects") or {}).items())
    tell(
        "token",
        f"you are {who['user']}" + (f", {who['role']}" if who.get("role") else "") + (f" ({roles})" if roles else ""),
    )
    nodes = list(client.nodes.list())
    ready = sum(bool(node["ready"]) and not node["cordoned"] for node in nodes)
    tell("nodes", f"{ready} of {len(nodes)} take jobs", "ok" if ready else "warning")


VERBS = {
    "version": Verb("penstock version", no_arguments, _version),
    "doctor": Verb("penstock doctor\npenstock doctor --url https://penstock.example", no_arguments, _doctor),
}
