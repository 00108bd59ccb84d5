"""argparse in the house's manners: no abbreviations, errors raised instead of printed, an example in every help."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from penstock.base.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.cli.catalogue import Entry
    from penstock.client.verb import Verb

FORMATS = ("table", "json", "yaml")
_WIDTH = 100  # columns of help where the terminal's width is not known


class Parser(argparse.ArgumentParser):
    """Raises InvalidInput where argparse would print and leave."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, hint=f"`{self.prog} --help` explains the verb, with an example.")


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
    shared = parser.add_argument_group("options of every verb")
    shared.add_argument("--url", help="the server (PENSTOCK_URL); default: the one of the data folder")
    shared.add_argument("--data-dir", metavar="DIR", help="the data folder (PENSTOCK_DATA_DIR)")
    shared.add_argument("--project", metavar="NAME", help="the project (PENSTOCK_PROJECT)")
    shared.add_argument("-o", "--output", choices=FORMATS, metavar="FORMAT", help="table, json or yaml")
    shared.add_argument("--no-color", action="store_true", help="no colours (NO_COLOR)")
    return parser
