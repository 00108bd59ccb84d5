"""argparse in the house's manners: no abbreviations, errors raised instead of printed, an example in every help."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.base.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.cli.catalogue import Entry
    from penstock.client.verb import Verb

FORMATS = ("table", "json", "yaml")
_WIDTH = 100  # columns of help where the terminal's width is not known


class Parser(argparse.ArgumentParser):
    """Raises InvalidInput where argparse would print and leave; its subcommands take the options of every verb too."""

    def add_subparsers(self, **keywords: Any) -> argparse._SubParsersAction[Any]:
        return super().add_subparsers(parser_class=_Sub, **keywords)

    def error(self, message: str) -> NoReturn:
        hint = f"`{self.prog} --help` explains the verb, with an example."
        if message.endswith("expected one argument"):
            name = message.removeprefix("argument ").split(":")[0].split("/")[-1]
            message = f"{name} has no value; one that begins with a dash is written {name}=-VALUE"
        raise InvalidInput(message, hint=hint)


class _Sub(Parser):
    """A verb's subcommand (``penstock token list``)."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        _share(self.add_argument_group("options of every verb"), default=argparse.SUPPRESS)


def make_parser(entry: Entry, verb: Verb, width: int | None) -> Parser:
    """A verb's parser with the options of every verb and no arguments of its own yet."""
    columns = min(width or _WIDTH, 120)
    description = entry.help[0].upper() + entry.help[1:] + "." + (f"\n\n{verb.about.strip()}" if verb.about else "")
    parser = Parser(
        prog=f"penstock {entry.name}",
        description=description,
        epilog="Example:\n" + "\n".join(f"  {line}" for line in verb.example.strip().splitlines()),
        # With a width of our own argparse does not import shutil, and with it three compression libraries.
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=columns, max_help_position=32),
        allow_abbrev=False,
        usage=f"penstock {entry.name} [OPTIONS] -- COMMAND..." if verb.takes_command else None,
    )
    _share(parser.add_argument_group("options of every verb"), default=None)
    return parser


def _share(group: argparse._ArgumentGroup, default: str | None) -> None:
    """``default`` SUPPRESS leaves what stood before the subcommand as it was."""
    add = group.add_argument
    add("--url", default=default, help="the server (PENSTOCK_URL); default: the one of the data folder")
    add("--data-dir", default=default, metavar="DIR", help="the data folder (PENSTOCK_DATA_DIR)")
    add("--project", default=default, metavar="NAME", help="the project (PENSTOCK_PROJECT)")
    add("-o", "--output", default=default, choices=FORMATS, metavar="FORMAT", help="table, json or yaml")
    add("--no-color", default=default or False, action="store_true", help="no colours (NO_COLOR)")
