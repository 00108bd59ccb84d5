"""The attempts that are under way on a cluster, and what has been told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from penstock.engines.slurm.attempts import Attempt
from penstock.engines.spec import Observation

_REMEMBERED = 20_000  # ends told by this server, so that none is told twice
_ESTIMATES_S = 60.0  # an estimate that moves by less is no news


class Book:
    """``sink`` takes what is new; an end is written down before it is told."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.sink: Callable[[Observation], None] = lambda _seen: None
        self.live: dict[str, Attempt] = {}
        self._over: dict[str, None] = {}

    def add(self, attempt: Attempt) -> None:
        self.live[attempt.attempt_id] = attempt

    def told_end(self, attempt_id: str) -> bool:
        return attempt_id in self._over

    def tell(self, attempt: Attempt, seen: Observation) -> None:
        """Only what differs from what was told last."""
        last = attempt.told
        if last is not None and _same(last, seen):
            return
        attempt.told = seen
        self.sink(seen)

    async def finish(self, attempt: Attempt, seen: Observation, *, tell: bool = True) -> None:
        """Write the end down, then tell it. Raises OSError while it cannot be written; then it is tried again."""
        if attempt.attempt_id in self._over and attempt.end is not None:
            return
        previous, attempt.end = attempt.end, seen
        try:
            await asyncio.to_thread(attempt.save)
        except OSError:
            attempt.end = previous
            raise
        self.forget(attempt)
        self.end_told(attempt.attempt_id)
        if tell:
            self.sink(seen)

    def forget(self, attempt: Attempt) -> None:
        self.live.pop(attempt.attempt_id, None)
        attempt.launch = None

    def end_told(self, attempt_id: str) -> None:
        self._over[attempt_id] = None
        if len(self._over) > _REMEMBERED:
            del self._over[next(iter(self._over))]


def _same(last: Observation, seen: Observation) -> bool:
    known = last.start_estimate is not None and seen.start_estimate is not None
    if known and abs((last.start_estimate or 0) - (seen.start_estimate or 0)) < _ESTIMATES_S:
        seen = replace(seen, start_estimate=last.start_estimate)
    return replace(seen, at=last.at) == last
