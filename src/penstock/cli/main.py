"""From words to a verb: ``run`` finds it, parses its arguments, calls it, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from penstock.base.errors import InvalidInput, PenstockError
from penstock.cli.catalogue import ENTRIES, Entry, help_text
from penstock.cli.output import Screen, print_error

if TYPE_CHECKING:
    from argparse import Namespace

    from penstock.base.settings import Settings
    from penstock.cli.arguments import Parser
    from penstock.client.verb import Verb

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
PIPE_CLOSED = 141  # 128 + SIGPIPE
_VALUED = frozenset({"--url", "--data-dir", "--project", "-o", "--output"})


def run(argv: Sequence[str], settings: Settings, serve: Callable[[Settings], int]) -> int:
    """Runs ``penstock ARGV...`` and answers its exit code; errors are printed. ``serve`` is what ``penstock up`` calls."""
    try:
        code = _dispatch(list(argv), settings, serve)
        sys.stdout.flush()
        return code
    except PenstockError as error:
        print_error(error, sys.stderr, color=settings.color and "--no-color" not in argv)
        return error.exit_code
    except SystemExit as leaving:  # argparse's way out after --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `penstock logs JOB | head`: nothing more is wanted, nor may the exit flush to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _dispatch(argv: list[str], settings: Settings, serve: Callable[[Settings], int]) -> int:
    position = _verb_position(argv)
    if position is None:
        if "--version" in argv:
            argv, position = ["version"], 0
        else:
            asked = not argv or "-h" in argv or "--help" in argv
            if not asked:
                raise InvalidInput(f"{argv[-1]!r} is no verb", hint="`penstock --help` lists the verbs.")
            sys.stdout.write(help_text() + "\n")
            return 0
    name = argv.pop(position)
    if name == "help":
        argv, name = ([*argv[1:], "--help"], argv[0]) if argv else (["--help"], "")
    if name == "" and argv == ["--help"]:
        sys.stdout.write(help_text() + "\n")
        return 0
    return _call(_entry(name), argv, settings, serve)


def _call(entry: Entry, argv: list[str], settings: Settings, serve: Callable[[Settings], int]) -> int:
    from penstock.client.verb import Invocation  # noqa: PLC0415 - the first help needs none of this

    verb: Verb = import_module(entry.module).VERBS[entry.name]
    command: list[str] = []
    if verb.takes_command and "--" in argv:
        at = argv.index("--")
        argv, command = argv[:at], argv[at + 1 :]
    parser = parser_of(entry, verb, settings.width)
    arguments, rest = parser.parse_known_args(argv)
    if rest and verb.takes_command and not rest[0].startswith("-"):
        hint = f"Write it behind two dashes: penstock {entry.name} ... -- {' '.join(rest)}"
        raise InvalidInput("the command does not stand behind --", hint=hint)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if verb.takes_command:
        arguments.command = command
    settings = _completed(settings, arguments)
    invocation = Invocation(settings, Screen(arguments.output or "table", settings), serve)
    try:
        return verb.run(invocation, arguments)
    finally:
        invocation.close()


def parser_of(entry: Entry, verb: Verb, width: int | None = None) -> Parser:
    """The argument parser of one verb."""
    from penstock.cli.arguments import make_parser  # noqa: PLC0415 - brings argparse

    parser = make_parser(entry, verb, width)
    verb.configure(parser)
    return parser


def _completed(settings: Settings, arguments: Namespace) -> Settings:
    """Settings with what the flags of every verb say."""
    given = {
        "url": arguments.url,
        "data_dir": os.path.abspath(arguments.data_dir) if arguments.data_dir else None,
        "project": arguments.project,
        "color": False if arguments.no_color else None,
    }
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _verb_position(argv: Sequence[str]) -> int | None:
    """Where the verb stands: the first word that is no option, nor an option's value."""
    skip = False
    for position, word in enumerate(argv):
        if skip:
            skip = False
        elif word in _VALUED:
            skip = True
        elif word == "--":
            return None
        elif not word.startswith("-"):
            return position
    return None


def _entry(name: str) -> Entry:
    if name in ENTRIES:
        return ENTRIES[name]
    from difflib import get_close_matches  # noqa: PLC0415 - after a typing error only

    near = get_close_matches(name, ENTRIES, n=1)
    raise InvalidInput(
        f"{name!r} is no verb" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint="`penstock --help` lists the verbs.",
    )
