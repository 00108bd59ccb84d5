"""What a kind of engine that can be added by name says of itself: its options, what a site has, how it is built. Pure.

A kind is a package of ``engines/`` with two modules, found by name (``kinds.py``): ``options``, light enough for the command
line, with ``OPTIONS``, ``where`` and ``problems``; and ``plugin``, with ``build`` and ``probe``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from penstock.engines.spec import Engine


@dataclass(frozen=True, slots=True)
class Option:
    """``name`` in the API; ``flag`` on the command line. A ``switch`` is true or false, ``pairs`` are KEY=VALUE, many."""

    name: str
    flag: str
    help: str
    form: Literal["text", "switch", "pairs"] = "text"
    metavar: str = "TEXT"
    default: Any = None


class Verdict(StrEnum):
    WORKS = "works"
    LIMITED = "limited"
    NOT = "not"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a site, in a person's words; ``help``: what would change it."""

    topic: str
    verdict: Verdict
    text: str
    help: str = ""
    wrong: bool = False  # with what was asked for: an engine is not added so

    def to_dict(self) -> dict[str, str]:
        return {"topic": self.topic, "verdict": str(self.verdict), "text": self.text, "help": self.help}


@dataclass(frozen=True, slots=True)
class Probed:
    """What a site has. Nothing was changed there."""

    version: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """An engine as it was added. ``folder``: its own, on the server; ``secret``: what it shows to the site; ``url``: where
    jobs find this server.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    managed: bool = False
    secret: str | None = None
    folder: str = ""
    url: str | None = None


class Plugin(Protocol):
    """The module ``plugin`` of a kind."""

    def build(self, stored: Stored, clock: Callable[[], float]) -> Engine:
        """Reaches nothing yet."""

    async def probe(self, stored: Stored) -> Probed:
        """Read-only. Raises EngineFailure where the site does not answer."""
