"""Restarts in place, as a run folder's file ``restarts`` tells of them: a line for each. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(\d{1,7}) (\d{1,7}) (\d{1,7}) (\d{1,12}(?:\.\d{1,9})?)")


@dataclass(frozen=True, slots=True)
class Start:
    """The ``total``-th of the attempt, the ``restart``-th of the run after so many ``requeues``."""

    total: int
    requeues: int
    restart: int
    at: float

    @property
    def index(self) -> int:
        """Of the life that it began, in the attempt."""
        return self.requeues + self.total


def start(line: str) -> Start | None:
    found = _LINE.fullmatch(line)
    return None if found is None else Start(int(found[1]), int(found[2]), int(found[3]), float(found[4]))


def starts(text: str) -> list[Start]:
    return [found for line in text.splitlines() if (found := start(line)) is not None]
