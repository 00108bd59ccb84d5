"""Who decides: of several servers on one database, the one that holds the lease. The others serve reads and wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from penstock.base.errors import Conflict, PenstockError
from penstock.store.leases import Lease
from penstock.store.store import Tx

log = logging.getLogger("penstock.leadership")
TTL_S = 4.0
RENEW_S = 1.0


@dataclass(slots=True)
class Leadership:
    """``lead`` is called when the lease was won, ``follow`` when it was lost. ``sole``: the database is this process's
    alone (SQLite under the data folder's lock), so nobody can win it away and no renewal is needed.
    """

    lease: Lease
    lead: Callable[[], Awaitable[None]]
    follow: Callable[[], Awaitable[None]]
    sole: bool
    leading: bool = False
    _task: asyncio.Task[None] | None = None
    _failures: int = field(default=0)

    def fence(self, tx: Tx) -> int:
        """The epoch in force. Raises Conflict, and so undoes the transaction, when this server does not lead (any more)."""
        epoch = self.lease.epoch
        if epoch is None:
            raise Conflict("this server does not lead", hint="Another one does; it takes over when that one ends.")
        if not self.sole:
            self.lease.check(tx, epoch)
        return epoch

    async def start(self) -> None:
        """Try once now; where others may lead, go on trying and renewing in the background."""
        await self._try()
        if not self.sole:
            self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Let go, so that another server need not wait for the lease to run out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.leading and not self.sole:
            try:
                await self.lease.release()
            except PenstockError as error:
                log.warning("the lease could not be released, it runs out by itself: %s", error)
        self.leading = False

    async def _try(self) -> None:
        if await self.lease.acquire(sole=self.sole) is None:
            return
        self.leading = True
        log.info("leading, epoch %s", self.lease.epoch)
        await self.lead()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                if not self.leading:
                    await self._try()
                elif not await self.lease.renew():
                    await self._lost("another server took it")
            except PenstockError as error:
                self._failures += 1
                if self.leading and self._failures * RENEW_S >= TTL_S:
                    await self._lost(f"the database does not answer: {error}")
            else:
                self._failures = 0

    async def _lost(self, why: str) -> None:
        log.warning("no longer leading: %s", why)
        self.leading = False
        self.lease.epoch = None
        await self.follow()
