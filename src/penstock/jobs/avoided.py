"""Nodes that a job is kept off, as its row has them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from penstock.base.quantities import format_time


@dataclass(frozen=True, slots=True)
class Avoided:
    """A node that a job is kept off until then. ``lost``: because it went, and it may come back in order."""

    node: str
    why: str
    at: float
    until: float
    lost: bool = False

    def words(self) -> str:
        return f"avoids node {self.node} until {format_time(self.until)}: {self.why}"


def load(text: str | None, now: float) -> tuple[Avoided, ...]:
    """Those that it is kept off now."""
    return tuple(one for one in (Avoided(**each) for each in json.loads(text)) if one.until > now) if text else ()


def dump(known: Iterable[Avoided]) -> str:
    return json.dumps([asdict(one) for one in known])
