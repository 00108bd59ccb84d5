"""``penstock apply``: YAML documents become jobs, all or none."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, TooLarge
from penstock.client.verb import Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

MAX_FILE = 16 << 20  # bytes; the server takes less, and says what is wrong with it


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the YAML file; - is standard input")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")


def _apply(call: Invocation, arguments: Namespace) -> int:
    text = _read(arguments.file)
    base = "." if arguments.file == "-" else os.path.dirname(arguments.file) or "."
    answer = call.client.apply(text, dry_run=arguments.dry_run, max_bytes=call.settings.snapshot_max_bytes, base=base)
    out = call.output
    if out.format != "table":
        out.document(answer)
        return 0
    for item in answer["items"]:
        out.line(f"{item['kind']} {item['project']}/{item['name']}: {_word(item['action'], dry_run=arguments.dry_run)}")
        for line in [*(f"change {change}" for change in item.get("changes") or ()), *(item.get("plan") or ())]:
            out.line(f"  {line}")
    if not answer["items"]:
        out.note("there is no document in it")
    return 1 if any(item["action"] == "conflict" for item in answer["items"]) else 0


def _word(action: str, *, dry_run: bool) -> str:
    done = {"create": "created", "update": "updated"}
    return f"would be {done[action]}" if dry_run and action in done else done.get(action, action)


def _read(path: str) -> bytes:
    """Raises InvalidInput or TooLarge."""
    try:
        if path == "-":
            data: Any = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidInput(
            f"cannot read {path}: {error.strerror}", hint="Name a file, or - for standard input."
        ) from error
    if len(data) > MAX_FILE:
        raise TooLarge(f"{path} is larger than {MAX_FILE >> 20} MiB", hint="Split it into several files.")
    return bytes(data)


VERBS = {
    "apply": Verb(
        "penstock apply -f job.yaml --dry-run\npenstock apply -f job.yaml",
        _arguments,
        _apply,
        about="Every error of the file is told at once, with its line. The work folders that its jobs name are carried along.",
    )
}
