"""Answers that stay open: ended when the client goes, when the server stops, and when the caller's access is withdrawn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from penstock.api.answers import Receive
from penstock.base.errors import Busy

RECHECK_S = 0.4  # with the 0.5 s that tenancy believes an answer, a revocation ends streams within a second
MOST_PER_USER = 512

StillAllowed = Callable[[], Awaitable[bool]]


class Live:
    """The open streams and sessions of one server."""

    def __init__(self) -> None:
        self._work: set[asyncio.Task[Any]] = set()
        self._count: Counter[str] = Counter()
        self.closing = False

    def __len__(self) -> int:
        return len(self._work)

    def close(self) -> None:
        """End all; new ones end at once."""
        self.closing = True
        for task in self._work:
            task.cancel()

    def check(self, user: str) -> None:
        """Raises Busy, before anything of an answer is sent."""
        if self._count[user] >= MOST_PER_USER:
            raise Busy(f"{user} has {MOST_PER_USER} streams open already", hint="Close some of them.")

    async def run(
        self, user: str, produce: Coroutine[Any, Any, None], gone: Receive | None, still: StillAllowed
    ) -> bool:
        """Run ``produce`` until it ends or must. True: it came to its end; False: it was ended. Raises what it raises.

        ``gone`` answers when the client has gone; None where ``produce`` itself will notice.
        """
        work = asyncio.create_task(produce)
        watch = asyncio.create_task(_until_gone(gone)) if gone else None
        self._work.add(work)
        self._count[user] += 1
        if self.closing:
            work.cancel()
        try:
            await self._wait(work, watch, still)
        finally:
            self._work.discard(work)
            self._count[user] -= 1
            if not self._count[user]:
                del self._count[user]
            await _end(work, watch)
        if work.cancelled():
            return False
        work.result()
        return True

    async def _wait(self, work: asyncio.Task[Any], watch: asyncio.Task[None] | None, still: StillAllowed) -> None:
        tasks: set[asyncio.Task[Any]] = {work, watch} if watch else {work}
        while True:
            done, _ = await asyncio.wait(tasks, timeout=RECHECK_S, return_when=asyncio.FIRST_COMPLETED)
            if done or not await still():
                return


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any] | None) -> None:
    open_ones = [task for task in tasks if task is not None and not task.done()]
    for task in open_ones:
        task.cancel()
    if open_ones:
        await asyncio.wait(open_ones)
