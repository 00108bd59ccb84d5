"""The only loop: a keyed queue, serial per key, parallel across keys, with back-off. Timers are the event loop's own,
so that tests run it in virtual time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

log = logging.getLogger("penstock.reconcile")
BACKOFF_FIRST_S = 0.5
BACKOFF_LIMIT_S = 30.0
Key = tuple[str, Hashable]


@dataclass(slots=True)
class _Slot:
    dirty: bool = False
    failures: int = 0
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Loop:
    """``reconcilers`` maps a key's first part to what is called with its second; it may answer a number of seconds
    after which to look again. A raised exception is logged and tried again later: this is the place of the broad except.
    """

    reconcilers: dict[str, Callable[..., Awaitable[float | None]]] = field(default_factory=dict)
    _slots: dict[Key, _Slot] = field(default_factory=dict)
    _closed: bool = False

    def enqueue(self, kind: str, item: Hashable, after_s: float = 0.0) -> None:
        """Ask for a look at ``item``; asks that come while it is being looked at are folded into one more look."""
        if self._closed:
            return
        key: Key = (kind, item)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot()
        if slot.task is not None and after_s <= 0:
            slot.dirty = True
        elif after_s > 0:
            loop = asyncio.get_running_loop()
            if slot.timer is None or slot.timer.when() > loop.time() + after_s:
                if slot.timer is not None:
                    slot.timer.cancel()
                slot.timer = loop.call_later(after_s, self._due, key)
        else:
            slot.task = asyncio.ensure_future(self._run(key, slot))

    def _due(self, key: Key) -> None:
        slot = self._slots.get(key)
        if slot is not None:
            slot.timer = None
            self.enqueue(*key)

    async def _run(self, key: Key, slot: _Slot) -> None:
        again: float | None = None
        try:
            while True:
                slot.dirty = False
                again = await self._once(key, slot)
                if not slot.dirty or self._closed:
                    break
        finally:
            slot.task = None
            if again is not None and not self._closed:
                self.enqueue(*key, after_s=max(again, 1e-3))
            elif slot.timer is None:
                self._slots.pop(key, None)

    async def _once(self, key: Key, slot: _Slot) -> float | None:
        try:
            again = await self.reconcilers[key[0]](key[1])
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the loop outlives any one key's trouble
            slot.failures += 1
            delay = min(BACKOFF_FIRST_S * 2.0 ** min(slot.failures - 1, 10), BACKOFF_LIMIT_S)
            log.warning("%s %s failed (%s), again in %.1f s: %s", *key, slot.failures, delay, error, exc_info=error)
            return delay
        slot.failures = 0
        return again

    async def close(self) -> None:
        """Let what runs come to its end; start nothing more."""
        self._closed = True
        for slot in self._slots.values():
            if slot.timer is not None:
                slot.timer.cancel()
        tasks = [slot.task for slot in self._slots.values() if slot.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        for task in tasks:
            task.cancel()

    def reopen(self) -> None:
        """After leadership came back."""
        self._closed = False
        self._slots.clear()
