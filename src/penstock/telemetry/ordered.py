"""Checks that the server asks a node's agent to run: one order after the other, each once, by a program of its own.

The program is health/'s, a room above this one, and so is what its answers mean; here they become findings, which go to the server
as all others do. A check that hangs holds up nothing but the checks behind it, and is given up by that program.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from penstock.base.text import one_line
from penstock.telemetry.push import Order
from penstock.telemetry.spec import Finding, Severity

log = logging.getLogger("penstock.agent")

PROGRAM: Final = "penstock.health.checks.here"
RULE: Final = "CheckFailed"
SOURCE: Final = "check"
MOST_S: Final = 3600.0  # for all of an order
_KNOWN = 1000  # orders that are remembered
_WAITING = 8

Run = Callable[[Order], Sequence[Finding]]


class Ordered(threading.Thread):
    """``run`` None: nothing is run here, and orders are left to whoever comes after."""

    def __init__(self, run: Run | None, told: Callable[[Sequence[Finding]], None]) -> None:
        super().__init__(name="checks", daemon=True)
        self._run = run
        self._told = told
        self._known: OrderedDict[str, None] = OrderedDict()
        self._queue: queue.Queue[Order | None] = queue.Queue()

    def take(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if self._run is None or order.id in self._known or self._queue.qsize() >= _WAITING:
                continue
            self._known[order.id] = None
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
            self._queue.put(order)

    def run(self) -> None:
        while (order := self._queue.get()) is not None:
            if self._run is not None:
                self._told(self._run(order))

    def stop(self) -> None:
        self._queue.put(None)


def by_program(node: str) -> Run:
    def run(order: Order) -> Sequence[Finding]:
        command = [sys.executable, "-m", PROGRAM, *order.checks]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=MOST_S)
            said = done.stdout.decode("utf-8", "replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("checks %s: %s", ", ".join(order.checks), error)
            said = ""
        return list(findings(order, node, said, time.time()))

    return run


def findings(order: Order, node: str, said: str, now: float) -> Iterator[Finding]:
    """A line of JSON for each check; one that said nothing could not be run. Pure."""
    told: dict[str, dict[str, Any]] = {}
    for line in said.splitlines():
        try:
            row = json.loads(line)
            told[str(row["check"])] = row
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    for check in order.checks:
        row = told.get(check, {})
        result, words = str(row.get("result", "not run")), one_line(str(row.get("message", "it gave no answer")), 500)
        figures = row.get("figures")
        numbers = (
            {str(name)[:64]: value for name, value in figures.items() if isinstance(value, int | float)}
            if isinstance(figures, dict)
            else {}
        )
        devices = row.get("devices")
        where = [one_line(str(one), 60) for one in devices[:16]] if isinstance(devices, list) else []
        yield Finding(
            RULE,
            node,
            now,
            now,
            f"{check}: {result}: {words}",
            Severity.CRITICAL if result == "failed" else Severity.INFO,
            code=check,
            source=SOURCE,
            active=result == "failed",
            evidence=(words, *where),
            facts={"order": order.id, "result": result, **dict(list(numbers.items())[:20])},
        )
