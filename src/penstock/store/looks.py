"""A look at the whole fleet that several people ask for at once is taken once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy.engine import Connection

from penstock.store.store import Store

T = TypeVar("T")
LONG_S = 0.1


class Look(Generic[T]):
    """``read(conn, now)`` in a thread; its answer serves everybody within ``fresh_s``, or within ten times what it took where
    that was ``LONG_S`` or more.
    """

    def __init__(self, store: Store, read: Callable[[Connection, float], T], fresh_s: float) -> None:
        self._store, self._read, self._fresh_s = store, read, fresh_s
        self._lock = asyncio.Lock()
        self._found: tuple[float, T] | None = None
        self._until = 0.0  # on the event loop's clock

    async def take(self) -> tuple[float, T]:
        """When it was looked, on the store's clock, and what was seen."""
        async with self._lock:
            clock = asyncio.get_running_loop().time
            began = clock()
            if self._found is None or began >= self._until:
                at = self._store.clock()
                self._found = (at, await self._store.read_long(lambda conn: self._read(conn, at)))
                took = clock() - began
                self._until = began + took + max(self._fresh_s, 10 * took if took >= LONG_S else 0.0)
            return self._found
