"""One injection: checked, noted, done, and undone, however it ends."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.base.errors import Conflict, InvalidInput
from penstock.diagnosis.injecting import notes, programs
from penstock.diagnosis.injecting.catalogue import ACTS
from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import HOOK, NEEDS_WORDS, NETWORK, ROOT, Fault, Order, Target
from penstock.engines.local import procs

FOR_S = 60.0  # how long a fault lasts, unless it is told


def order(
    fault: Fault,
    targets: tuple[Target, ...],
    peers: tuple[Target, ...],
    *,
    strength: float | None = None,
    until: float | None = None,
    place: str = "",
) -> Order:
    """What is not given is the fault's own, for a minute."""
    value = fault.strength.default if strength is None else strength
    if not 0 < value < math.inf:
        raise InvalidInput("a strength is a number above 0")
    chosen = peers if fault.everywhere else targets
    return Order(fault, value, chosen, peers, time.time() + FOR_S if until is None else until, place)


def refusal(asked: Order) -> str:
    """Why it cannot be done here, in words; "" where it can."""
    needs = asked.fault.needs
    if not asked.targets:
        return "none of the chosen ranks runs on this machine"
    if ROOT in needs and os.geteuid() != 0:
        return f"{asked.fault.name} needs {NEEDS_WORDS[ROOT]}"
    if HOOK in needs and not all(target.hook for target in asked.targets):
        return f"{asked.fault.name} needs {NEEDS_WORDS[HOOK]}"
    if NETWORK in needs and not all(programs.own_network(target.pid) for target in asked.targets):
        return f"{asked.fault.name} needs {NEEDS_WORDS[NETWORK]}: on a shared network it would strike others too"
    gone = [target.rank for target in asked.targets if procs.start_time(target.pid) != target.start]
    return f"rank {gone[0]} has ended" if gone else ""


@contextmanager
def injected(asked: Order, job: str, root: Path = notes.ROOT) -> Iterator[Note]:
    """Broken inside the block, whole after it. Raises Conflict where it cannot be, or could not be put back."""
    why = refusal(asked)
    if why:
        raise Conflict(why)
    note = Note.new(asked.fault.name, job, root)
    try:
        ACTS[asked.fault](asked, note)
        yield note
    finally:
        failures = note.undo()
        programs.reap()
    if failures:
        raise Conflict("not all could be undone: " + "; ".join(failures), hint="`penstock inject --undo` tries again.")


def hold(asked: Order, stopped: Callable[[], bool]) -> None:
    """Wait until the injection's time is over, or the job has ended, or somebody says so."""
    while time.time() < asked.until and not stopped():
        if not any(procs.start_time(target.pid) == target.start for target in asked.peers):
            return
        time.sleep(min(0.1, max(0.0, asked.until - time.time())))
