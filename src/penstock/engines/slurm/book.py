"""The attempts that are under way on a cluster, and what has been told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from penstock.engines.slurm.attempts import Attempt
from penstock.engines.spec import Observation

MANY = 50  # attempts, of so many more not every word is told
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
        attempt.told = replace(seen, happened=(), failures=())  # these are told once
        self.sink(seen)

    async def finish(self, attempt: Attempt, seen: Observation, *, tell: bool = True) -> None:
        """Write the end down, then tell it. Raises OSError while it cannot be written; then it is tried again."""
        await self.finish_all([(attempt, seen)], tell=tell)

    async def finish_all(self, ends: Sequence[tuple[Attempt, Observation]], *, tell: bool = True) -> None:
        """As ``finish``, those that end together in one go."""
        new = [(attempt, seen) for attempt, seen in ends if attempt.attempt_id not in self._over or attempt.end is None]
        before = [attempt.end for attempt, _ in new]
        for attempt, seen in new:
            attempt.end = seen
        written, fault = await asyncio.to_thread(_save, [attempt for attempt, _ in new])
        for (attempt, _), was in zip(new[written:], before[written:], strict=True):
            attempt.end = was
        for attempt, seen in new[:written]:
            self.forget(attempt)
            self.end_told(attempt.attempt_id)
            if tell:
                self.sink(seen)
        if fault is not None:
            raise fault

    def forget(self, attempt: Attempt) -> None:
        self.live.pop(attempt.attempt_id, None)
        attempt.launch = None

    def end_told(self, attempt_id: str) -> None:
        self._over[attempt_id] = None
        if len(self._over) > _REMEMBERED:
            del self._over[next(iter(self._over))]


def _save(attempts: Sequence[Attempt]) -> tuple[int, OSError | None]:
    """Blocking. How many could be written, and why not the next."""
    for count, attempt in enumerate(attempts):
        try:
            attempt.save()
        except OSError as error:
            return count, error
    return len(attempts), None


def _same(last: Observation, seen: Observation) -> bool:
    known = last.start_estimate is not None and seen.start_estimate is not None
    if known and abs((last.start_estimate or 0) - (seen.start_estimate or 0)) < _ESTIMATES_S:
        seen = replace(seen, start_estimate=last.start_estimate)
    return replace(seen, at=last.at) == last
