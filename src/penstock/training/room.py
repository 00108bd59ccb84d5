"""What the server holds of this room from its start on: little. The accounts are loaded when first asked for, or when the
first attempt that reported steps has ended.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from penstock.base.errors import PenstockError
from penstock.base.reasons import Reason
from penstock.jobs import history
from penstock.jobs.room import Room
from penstock.store.events import EventRow

if TYPE_CHECKING:
    from penstock.training.accounts import Accounts

log = logging.getLogger(__name__)
_CHANGES = frozenset({Reason.AttemptEnded, Reason.RankRestarted, Reason.RankHung, Reason.Requeued, Reason.HangEnded})
_AFTER_S = 1.0  # an attempt's last words are in its folder by then; those that end together are looked at together
_WAITING = 10_000  # ended attempts that are not looked at yet; of more, the fleet's page finds them later


class Training:
    def __init__(self, room: Room) -> None:
        self.room = room
        self._accounts: Accounts | None = None
        self._ended: dict[tuple[str, int], None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def accounts(self) -> Accounts:
        if self._accounts is None:
            from penstock.training.accounts import Accounts  # noqa: PLC0415 - the server is ready without it

            self._accounts = Accounts(self.room.store, self.room.engines, self.room.progress)
        return self._accounts

    def start(self) -> None:
        """Begin to keep what attempts that end were; call once the event loop runs."""
        self.room.store.listen(self._heard)

    def _heard(self, events: list[EventRow]) -> None:
        for event in events:
            if self._accounts is not None and event.reason in _CHANGES:
                self._accounts.forget(event.subject_id)
            if event.reason == Reason.AttemptEnded and len(self._ended) < _WAITING:
                self._ended[event.subject_id, int(event.data["attempt"])] = None
        if self._ended and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._keep())

    async def _keep(self) -> None:
        while self._ended:
            await asyncio.sleep(_AFTER_S)
            ended, self._ended = list(self._ended), {}
            try:
                reported = await self._reported(ended)
                if reported:
                    await self.accounts.keep(reported)
            except PenstockError as error:
                log.warning("what %d attempts came to is not kept yet: %s", len(ended), error)

    async def _reported(self, ended: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those of jobs that ever reported a step: most jobs of a busy fleet never do."""
        found = set(await self.room.store.read(lambda conn: history.reported(conn, {job_id for job_id, _ in ended})))
        return [key for key in ended if key[0] in found]

    async def close(self) -> None:
        if self._accounts is not None:
            await self._accounts.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
