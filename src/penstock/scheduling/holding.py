"""What holds a place, and who waits for one to become free, as a cycle books them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.scheduling.lines import Entry
from penstock.scheduling.state import Held


@dataclass(slots=True, eq=False)
class Holding:
    """A held workload as the cycle books it."""

    held: Held
    flavor: str
    asked: Mapping[str, float]
    path: tuple[str, ...]
    end: float  # by its limit, at the latest
    counted: bool = True  # against its queue's quota


@dataclass(slots=True)
class Awaiting:
    """A preemptor whose victims have not left yet: its nodes are kept from others."""

    entry: Entry
    flavor: str
    mask: int
    victims: set[str]
