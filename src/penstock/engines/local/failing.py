"""Which rank brought the ranks down, at which step, and what it wrote last: one entry for each time that they failed.

Launchers end every rank when one fails, and peers fail because one is gone: the root is the first in time of what is
no such consequence (``ending.root_cause``).
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from penstock.engines.local.ending import Failure, root_cause

MOST_TOLD = 8  # entries that are kept, the newest
_MOST_EXITS = 64  # of one failure: beyond it ranks are brought down, they bring nothing down
_TAIL = 8192
_LINES = 4
_LINE = 200
_BYTES = 1500  # as JSON, all in ASCII: they must go into a note to the server
_TRACEBACK = "Traceback (most recent call last)"


class Failings:
    """Of one attempt. ``reached`` is the highest step that any rank has reported since the ranks were last started."""

    def __init__(self, logs: str) -> None:
        self.known: list[dict[str, Any]] = []
        self._logs = logs
        self._exits: list[tuple[Failure, dict[str, Any]]] = []
        self._began = time.time()

    def exited(self, failure: Failure, rank: int | None, node: str) -> None:
        """A rank ended badly, and what it wrote lies in its log by now."""
        if len(self._exits) < _MOST_EXITS:
            stream = "" if rank is None else str(rank)
            lines = last_lines(f"{self._logs}/{stream}") if stream and len(self._exits) < MOST_TOLD else []
            self._exits.append((failure, {"rank": rank, "node": node, "lines": lines}))

    def settle(self, restart: int, reached: int | None) -> dict[str, Any] | None:
        """All ranks of the start ``restart`` are over: its entry, if one of them failed."""
        exits, self._exits = self._exits, []
        began, self._began = self._began, time.time()
        root = root_cause([failure for failure, _ in exits])
        if root is None:
            return None
        of_root = next(fields for failure, fields in exits if failure is root)
        entry = {
            "restart": restart,
            **of_root,
            "exit_code": root.exit_code,
            "signal": root.signal,
            "step": reached,
            "at": root.at,
            "ran_s": round(max(root.at - began, 0.0), 3),
        }
        self.known = [*self.known[1 - MOST_TOLD :], entry]
        return entry


def last_lines(folder: str) -> list[str]:
    """The last lines that a rank wrote; of a traceback its end."""
    try:
        newest = max((name for name in os.listdir(folder) if name.endswith(".log")), key=lambda name: int(name[:-4]))
        with open(f"{folder}/{newest}", "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            text = file.read().decode("utf-8", "replace")
    except (OSError, ValueError):
        return []
    return tail_of(text)


def tail_of(text: str) -> list[str]:
    lines = [line.rstrip()[:_LINE] for line in text.replace("\r", "\n").split("\n") if line.strip()]
    begins = max((at for at, line in enumerate(lines) if _TRACEBACK in line), default=-1)
    told = ["".join(c for c in line if c.isprintable()) for line in lines[begins + 1 :][-_LINES:]]
    while told and len(json.dumps(told)) > _BYTES:
        told = told[1:]
    return told
