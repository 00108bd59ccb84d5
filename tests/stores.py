"""Stores for tests: a clock that is set by hand, a store opened and closed, events to write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store.store import Store, Tx

NOON = 1_795_000_000.0  # epoch seconds: some time in November 2026


class Clock:
    """Epoch seconds; goes where it is told, also back."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(url: str, clock: Clock | None = None) -> AsyncIterator[Store]:
    store = Store.open(url, clock=clock or Clock())
    try:
        yield store
    finally:
        await store.close()


def emit(tx: Tx, name: str = "digits", count: int = 1) -> None:
    for _ in range(count):
        tx.emit(Ref("Job", name, "default", "01J"), Reason.Created, "made", actor="ann", data={"cpus": [1, 2.5]})
