"""What belongs to the server as a whole: health, version, its own description, metrics, backup and restore."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from penstock.api import ledger, openapi, snapshots
from penstock.api.asgi import App
from penstock.api.metrics import Metrics, Source
from penstock.base.errors import Busy
from penstock.base.routes import Call, Endpoint, Reply, Sample, Stream
from penstock.base.settings import Settings
from penstock.store import backup, events
from penstock.store.store import Store

Restore = Callable[[IO[bytes], str], Awaitable[Mapping[str, Any]]]  # the dump, the actor's name -> what was restored
_BATCH = 1 << 20
_LARGEST_DUMP = 64 << 30  # bytes; only an administrator can send one


@dataclass(slots=True)
class House:
    """What ``app.py`` hands in."""

    store: Store
    settings: Settings
    version: str
    restore: Restore | None = None  # default: the store's own, with nothing stopped meanwhile
    sources: Sequence[Source] = ()  # one per room that reports metrics
    app: App | None = None  # set once it is built: it needs these endpoints first


class _Routes:
    def __init__(self, house: House) -> None:
        self.house = house
        self._document: bytes | None = None
        self._restoring = asyncio.Lock()

    async def healthz(self, _call: Call) -> dict[str, str]:
        """Answers once the database does."""
        await self.house.store.read(events.last_seq)
        return {"status": "ok"}

    async def version(self, _call: Call) -> dict[str, str]:
        return {"version": self.house.version, "api": "v1", "python": platform.python_version()}

    async def openapi(self, _call: Call) -> Reply:
        if self._document is None:
            described = self.house.app.endpoints() if self.house.app else ()
            self._document = openapi.render(described, self.house.version)
        return Reply(self._document)

    async def backup(self, call: Call) -> Stream:
        """Written to an unnamed file first: a dump is of one moment, and a slow reader must not hold that moment."""
        file = tempfile.TemporaryFile(dir=self.house.settings.data_dir)  # noqa: SIM115 - closed by ``_sent``
        try:
            await backup.dump(self.house.store, file, actor=call.actor.user)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        headers = {
            "content-length": str(size),
            "content-disposition": 'attachment; filename="penstock-backup.zip"',
        }
        return Stream(_sent(file), "application/zip", headers)

    async def restore(self, call: Call) -> dict[str, Any]:
        if self._restoring.locked():
            raise Busy("another restore is under way")
        assert call.raw is not None
        async with self._restoring:
            with tempfile.TemporaryFile(dir=self.house.settings.data_dir) as file:
                async for chunk in call.raw:
                    await asyncio.to_thread(file.write, chunk)
                file.seek(0)
                return dict(await self._restore(file, call.actor.user))

    async def _restore(self, file: IO[bytes], actor: str) -> Mapping[str, Any]:
        if self.house.restore is not None:
            return await self.house.restore(file, actor)
        return (await backup.restore(self.house.store, file, actor=actor)).to_dict()


async def _sent(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while chunk := await asyncio.to_thread(file.read, _BATCH):
            yield chunk


def endpoints(house: House) -> list[Endpoint]:
    do = _Routes(house)
    metrics = Metrics(house.version, lambda: house.app)
    for source in (_of_store(house.store), *house.sources):
        metrics.add(source)
    v1 = "/api/v1"
    return [
        Endpoint("GET", "/healthz", "version.read", do.healthz, "Whether the server is well", public=True),
        Endpoint("GET", "/metrics", "metrics.read", metrics.scrape, "Prometheus metrics", kind="text"),
        Endpoint("GET", v1 + "/version", "version.read", do.version, "The server's version"),
        Endpoint("GET", v1 + "/openapi.json", "openapi.read", do.openapi, "This document"),
        Endpoint("GET", v1 + "/backup", "backup.read", do.backup, "Download a backup (zip)", kind="bytes"),
        Endpoint(
            "POST",
            v1 + "/restore",
            "backup.write",
            do.restore,
            "Put a backup in the place of everything",
            takes_bytes=True,
            max_body=_LARGEST_DUMP,
        ),
        *ledger.endpoints(house.store),
        *snapshots.endpoints(house.store, house.settings.data_dir, house.settings.snapshot_max_bytes),
    ]


def _of_store(store: Store) -> Source:
    commits = 0

    def seen(_rows: object) -> None:
        nonlocal commits
        commits += 1

    store.listen(seen)

    async def source() -> list[Sample]:
        last = await store.read(events.last_seq)
        return [
            Sample("store_commits", "counter", "Commits with events that this server has seen.", {}, commits),
            Sample("events", "counter", "Events in the ledger.", {}, last),
        ]

    return source
