"""How a drain stands back for the loop: it writes a little, pauses, and sees from the loop's own steps what that costs.

Niceness is not enough: on a small host the kernel's and the hypervisor's side of a write takes processor time that no
priority governs, and hashing takes memory bandwidth. What a pause costs is durability a little later; so there is none
while nobody makes steps, while somebody waits, or where the steps do not feel the drain.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from penstock.base.quantities import parse_duration
from penstock.worker.checkpoint.errors import CheckpointError

_FIRST: Final = 1 / 8  # the share of time in which the drain is at work, until steps have told more
_LEAST: Final = 1 / 32
_TOO_MUCH: Final = 0.07  # a slow-down of the steps above which the share is halved
_LITTLE: Final = 0.03  # one below which it grows
_WINDOW: Final = 0.25  # seconds of steps that are judged together
_STEPS: Final = 4
_IDLE: Final = 1.0  # seconds, or as many steps' time as _STEPS, without a step: the loop does something else
_LOOK: Final = 0.1  # seconds after which a pause looks whether it is still wanted


def interval(every: int | str) -> tuple[int | None, float]:
    """``every`` as steps, or None, and as seconds between saves."""
    if isinstance(every, int) and not isinstance(every, bool):
        if every < 1:
            raise CheckpointError(f"every={every}: must be at least one step")
        return every, math.inf
    if every == "auto":
        return None, 600.0
    try:
        found = parse_duration(every)
    except ValueError as error:
        raise CheckpointError(f"every={every!r}: {error}", hint='Or "auto", or a number of steps.') from None
    if found <= 0:
        raise CheckpointError(f"every={every!r}: must be more than no time")
    return None, found


class Throttle:
    """Between the loop, which says when it makes steps, and its drain, which asks when it may go on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = _FIRST
        self._clock = clock
        self._usual: deque[float] = deque(maxlen=256)  # seconds of steps beside which nothing drained
        self._window: list[float] = []
        self._left: float | None = None  # when the loop went on with its own work
        self._steps = 0
        self._draining: bool | None = False  # None: begun or ended amid a step, which then tells nothing
        self._due = math.inf
        self._hurry = threading.Event()

    # ----------------------------------------------------------------------------------------------- the loop's side

    def step(self, draining: bool) -> None:
        """A step has ended; ``draining`` says whether a save is in flight."""
        now = self._clock()
        took = now - self._left if self._left is not None and self._steps else None
        self._steps += 1
        if took is not None and draining == self._draining:
            if draining:
                self._judge(took)
            else:
                self._usual.append(took)
        self._draining = draining

    def go_on(self) -> None:
        """The loop leaves this package's code: what follows is a step's time."""
        self._left = self._clock()

    def usual(self) -> float | None:
        """Seconds of a step without a drain, once some were seen."""
        return sum(self._usual) / len(self._usual) if len(self._usual) >= _STEPS else None

    def patience(self, every_steps: int | None, interval: float) -> float:
        """Seconds within which a save is to be on the disk, though it disturbs the loop: half of those to the next."""
        return (interval if every_steps is None else every_steps * (self.usual() or math.inf)) / 2

    def begin(self, due_in: float) -> None:
        """A save begins, which is to be done within so many seconds."""
        self._due = self._clock() + due_in
        self._window.clear()
        self._draining = None
        self._hurry.clear()

    def hurry(self) -> None:
        """Somebody waits for the save: no more pauses."""
        self._hurry.set()

    def _judge(self, took: float) -> None:
        usual = self.usual()
        self._window.append(took)
        if usual is None or len(self._window) < _STEPS or sum(self._window) < _WINDOW:
            return
        cost = sum(self._window) / len(self._window) / usual - 1
        self._window.clear()
        if cost > _TOO_MUCH:
            self.share = max(_LEAST, self.share / 2)
        elif cost < _LITTLE:
            self.share = min(1.0, self.share * 1.5)

    # ---------------------------------------------------------------------------------------------- the drain's side

    def pause(self, since: float, worked: float, pieces: int) -> None:
        """Before the next of ``pieces`` that are left: one took ``worked`` seconds, the last was begun at ``since``."""
        while (left := self._until(since, worked, pieces) - self._clock()) > 0 and self._stepping():
            self._hurry.wait(min(left, _LOOK))

    def _until(self, since: float, worked: float, pieces: int) -> float:
        """When the next piece is to begin: late enough for the loop, early enough for all of them to be in time."""
        return since + min(worked / self.share, max(0.0, self._due - since) / pieces)

    def _stepping(self) -> bool:
        """Whether a loop is there to stand back for."""
        if self._hurry.is_set() or self._left is None or not self._steps:
            return False
        usual = self.usual()
        return self._clock() - self._left < max(_IDLE, _STEPS * usual if usual is not None else 0.0)
