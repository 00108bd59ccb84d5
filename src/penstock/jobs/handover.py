"""Attempts on their way to engines that schedule themselves: handed over beside the cycles, so that nothing waits for a slow
site; an array's tasks together, and again where the site did not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from penstock.base.errors import PenstockError
from penstock.base.reasons import Reason
from penstock.engines.errors import Unreachable
from penstock.engines.several import Engines
from penstock.engines.spec import Engine, Launch, Observation, Stage

log = logging.getLogger("penstock.jobs")
AT_ONCE = 8  # submissions to one engine that are under way
TASKS = 500  # of an array in one of them
AGAIN_S = 3.0  # after an engine that did not answer
_NO_GRACE_S = 0.0


@dataclass(slots=True)
class Handover:
    """``tell`` takes what became of a submission that failed."""

    engines: Engines
    tell: Callable[[Observation], None]
    clock: Callable[[], float]
    _waiting: dict[str, dict[str, Launch]] = field(default_factory=dict)  # by engine and attempt
    _under_way: set[str] = field(default_factory=set)

    def put(self, engine: str, launch: Launch) -> None:
        self._waiting.setdefault(engine, {})[launch.attempt_id] = launch

    def take_back(self, engine: str, attempt_id: str) -> bool:
        """It is not to be submitted any more; False while that is being done."""
        self._waiting.get(engine, {}).pop(attempt_id, None)
        return attempt_id not in self._under_way

    def forget(self) -> None:
        """Another server decides now, and hands over what was not."""
        self._waiting.clear()

    async def run(self, name: object) -> float | None:
        """Submit all that waits for an engine; in how many seconds to try again with what still does."""
        engine = self.engines.find(str(name))
        waiting = self._waiting.pop(str(name), {})
        if engine is None or not waiting:
            return None
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(batch: Sequence[Launch]) -> None:
            async with gate:
                await self._submit(engine, batch)

        await asyncio.gather(*(one(batch) for batch in batches(waiting.values())))
        return AGAIN_S if self._waiting.get(engine.name) else None

    async def _submit(self, engine: Engine, batch: Sequence[Launch]) -> None:
        ids = {launch.attempt_id for launch in batch}
        self._under_way |= ids
        try:
            await (engine.submit(batch[0]) if len(batch) == 1 else engine.submit_array(batch))
        except Unreachable as error:
            since = engine.unknown_since if engine.unknown_since is not None else self.clock()
            for launch in batch:
                self.put(engine.name, launch)
                self.tell(
                    Observation(launch.attempt_id, Stage.QUEUED, self.clock(), message=str(error), unknown_since=since)
                )
        except Exception as error:  # whatever an engine's fault: the attempts end with a reason, the others go on
            log.exception("cannot submit %s to %s", batch[0].attempt_id, engine.name)
            for launch in batch:
                await self._failed(engine, launch, str(error))
        finally:
            self._under_way -= ids

    async def _failed(self, engine: Engine, launch: Launch, why: str) -> None:
        """Nothing of it is left behind: some of a batch may have been taken."""
        with contextlib.suppress(PenstockError):
            await engine.stop(launch.attempt_id, launch.run_dir, reason=Reason.LaunchFailed, grace_s=_NO_GRACE_S)
        now = self.clock()
        self.tell(
            Observation(launch.attempt_id, Stage.EXITED, now, ended_at=now, reason=Reason.LaunchFailed, message=why)
        )


def batches(launches: Iterable[Launch]) -> list[list[Launch]]:
    """Tasks of one array together, as many as go at once; everything else by itself."""
    found: list[list[Launch]] = []
    arrays: dict[str, list[Launch]] = {}
    for launch in launches:
        if launch.array is None:
            found.append([launch])
            continue
        batch = arrays.get(launch.array[0])
        if batch is None or len(batch) == TASKS:
            batch = arrays[launch.array[0]] = []
            found.append(batch)
        batch.append(launch)
    return found
