"""Writes docs/cli.md from the verbs themselves: ``python -m tools.cli_reference``. tests/cli holds the two together."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from penstock.cli.catalogue import CATALOGUE, Entry, help_text
from penstock.cli.main import parser_of

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100

HEAD = """\
# The command line

This page is written by `python -m tools.cli_reference` from the verbs themselves; a test holds the two together.

A server is found by `--url` or `PENSTOCK_URL`, else by the data folder's `server.json`; the token is `PENSTOCK_TOKEN`,
else the data folder's own, which is sent to the server of that folder and to no other.

Exit codes: 0 well; 2 wrong input; 3 no or too small a permission; 4 not found; 5 conflict; 6 no server, or busy;
7 out of space; 8 the engine failed; 9 the ledger is broken; 1 anything else; 130 Ctrl-C; 141 a closed pipe. `penstock run`
and `exec` pass the job's, or the command's, own exit code on (128 + the signal's number where a signal ended it).
Errors go to standard error: `error: ...`, a line for each detail, and `hint: ...` with what to do.

`-o json` and `-o yaml` write what the API answered. Tables to a pipe are plain aligned text.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "```text", help_text(), "```", ""]
    for title, entries in CATALOGUE:
        parts.append(f"## {title}\n")
        parts += [_verb(entry) for entry in entries]
    return "\n".join(parts)


def _verb(entry: Entry) -> str:
    parser = parser_of(entry, import_module(entry.module).VERBS[entry.name], WIDTH)
    helps = [parser.format_help().rstrip()]
    for action in parser._actions:  # noqa: SLF001 - argparse tells of its subcommands nowhere else
        if isinstance(action.choices, dict):
            helps += [_sub(each, parser) for each in action.choices.values()]
    return f"### penstock {entry.name}\n\n" + "\n".join(f"```text\n{text}\n```\n" for text in helps)


def _sub(sub: argparse.ArgumentParser, parser: argparse.ArgumentParser) -> str:
    """A subcommand's help, less the options of every verb, which stand above."""
    sub.formatter_class = parser.formatter_class
    return sub.format_help().split("\noptions of every verb:")[0].rstrip()


if __name__ == "__main__":
    PATH.write_text(reference())
