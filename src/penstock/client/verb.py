"""What a room says of its command-line verbs, in words that need no command line: the entrance supplies the rest.

A room's ``commands`` holds ``VERBS``, verbs by name. ``cli/catalogue.py`` says which module has which verb, so that one
verb imports one room's commands and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from penstock.base.errors import InvalidInput

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.base.settings import Settings
    from penstock.client.client import Client


class Column(NamedTuple):
    """One column of a table: ``value`` is given a resource and the time now (epoch seconds)."""

    title: str
    value: Callable[[Mapping[str, Any], float], str]
    right: bool = False
    style: Callable[[str], str] | None = None  # from the cell's text to a colour ("" for none)


class Live(Protocol):
    """A line below the output that is redrawn: a progress bar. Without a terminal nothing is drawn."""

    def show(self, parts: Progress | str) -> None: ...
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Progress(NamedTuple):
    """What a progress bar shows. ``done`` is a fraction where the total is known; ``text`` stands behind the bar."""

    done: float | None
    text: str


class Output(Protocol):
    """Where a verb's words go. Text is made harmless on its way, except by ``raw``."""

    format: str  # "table", "json" or "yaml"
    terminal: bool  # whether standard output is one

    def document(self, body: object) -> None:
        """Writes JSON or YAML, as ``format`` says (JSON for "table")."""

    def table(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], now: float) -> None: ...

    def line(self, text: str = "") -> None:
        """To standard output."""

    def note(self, text: str) -> None:
        """To standard error: what is not the answer itself."""

    def raw(self, data: bytes) -> None:
        """To standard output, as it is, at once."""

    def live(self) -> Live: ...


class Invocation:
    """One call of the command line: the settings it came with, where to write, and a client made when first asked for."""

    def __init__(self, settings: Settings, output: Output, serve: Callable[[Settings], int]) -> None:
        self.settings = settings
        self.output = output
        self.serve = serve
        self.now = time.time()

    @cached_property
    def client(self) -> Client:
        from penstock.client.client import Client  # noqa: PLC0415 - `up` and `version` need none

        return Client.of(self.settings)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


class Verb(NamedTuple):
    """``configure`` adds arguments; ``run`` answers the exit code. ``example`` stands in the verb's help."""

    example: str
    configure: Callable[[ArgumentParser], object]
    run: Callable[[Invocation, Namespace], int]
    takes_command: bool = False  # words behind "--" are a command: arguments.command
    about: str = ""  # a paragraph for the verb's help, below its one line


def no_arguments(parser: ArgumentParser) -> None:
    """For a verb that takes none."""


def pairs(items: Iterable[str] | None, option: str) -> dict[str, str]:
    """``["A=1", "B=x=y"]`` -> ``{"A": "1", "B": "x=y"}``. Raises InvalidInput naming the option."""
    found: dict[str, str] = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidInput(f"{option} {item!r}: write NAME=VALUE")
        found[name] = value
    return found
