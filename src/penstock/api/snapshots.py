"""Work folders on their way in: a gzip tar per content, verified while it is written, never unpacked here.

A file lies at ``<data>/snapshots/<sha256>`` once it is whole. Who uploaded it is tenancy's record: knowing a hash is not
having the files, so to anybody else it is not there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence

from penstock.base.errors import InvalidInput, NotFound, Problem
from penstock.base.routes import Call, Endpoint, Reply
from penstock.store.store import Store
from penstock.tenancy import snapshots

_PATH = "/api/v1/snapshots/{sha256}"
_PARTIAL = ".partial"
_GZIP = b"\x1f\x8b"  # RFC 1952, section 2.3.1
_BATCH = 1 << 20  # bytes that are hashed and written together, in a thread


def folder(data_dir: str) -> str:
    return os.path.join(data_dir, "snapshots")


def sweep(data_dir: str) -> None:
    """Drop what uploads left behind that a crash cut off. Before the server takes requests."""
    partial = os.path.join(folder(data_dir), _PARTIAL)
    os.makedirs(partial, mode=0o700, exist_ok=True)
    for name in os.listdir(partial):
        os.unlink(os.path.join(partial, name))


class _Upload:
    """One body on its way to the disk. Only ``finish`` gives it its name."""

    def __init__(self, target: str) -> None:
        self.size = 0
        self._target = target
        self._digest = hashlib.sha256()
        home, name = os.path.split(target)
        self._path = os.path.join(home, _PARTIAL, f"{name}.{secrets.token_hex(8)}")
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)

    def write(self, data: bytes) -> None:
        if self.size == 0 and not data.startswith(_GZIP):
            raise InvalidInput("a snapshot is a gzip tar", details=[Problem("body", "does not begin as gzip does")])
        self.size += len(data)
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        """Durable under its name, or InvalidInput."""
        found = self._digest.hexdigest()
        if found != os.path.basename(self._target):
            problem = Problem("body", f"its SHA-256 is {found}, the path names another")
            raise InvalidInput("the body is not what the path names", details=[problem])
        os.fsync(self._descriptor)
        os.rename(self._path, self._target)
        home = os.open(os.path.dirname(self._target), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(home)
        finally:
            os.close(home)

    def close(self) -> None:
        os.close(self._descriptor)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass  # it was renamed


class _Routes:
    def __init__(self, store: Store, data_dir: str) -> None:
        self.store = store
        self.home = folder(data_dir)

    async def head(self, call: Call) -> Reply:
        sha256 = _sha256(call)
        user = call.actor.user
        known = await self.store.read(lambda conn: snapshots.holds(conn, user, sha256))
        if not known or not await asyncio.to_thread(os.path.isfile, os.path.join(self.home, sha256)):
            raise NotFound("you have uploaded no such snapshot", hint="Send it with PUT.")
        return Reply(media_type="application/gzip")

    async def put(self, call: Call) -> dict[str, object]:
        sha256 = _sha256(call)
        assert call.raw is not None
        upload = await asyncio.to_thread(_Upload, os.path.join(self.home, sha256))
        try:
            async for batch in _batched(call.raw):
                await asyncio.to_thread(upload.write, batch)
            await asyncio.to_thread(upload.finish)
        finally:
            await asyncio.to_thread(upload.close)
        user, size = call.actor.user, upload.size
        await self.store.write(lambda tx: snapshots.record(tx, user, sha256, size))
        return {"sha256": sha256, "size": size}


def _sha256(call: Call) -> str:
    sha256 = call.path["sha256"]
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise InvalidInput("not a snapshot's name", details=[Problem("path.sha256", "is not 64 digits of 0-9 and a-f")])
    return sha256


async def _batched(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= _BATCH:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def endpoints(store: Store, data_dir: str, max_bytes: int) -> Sequence[Endpoint]:
    do = _Routes(store, data_dir)
    return [
        Endpoint("HEAD", _PATH, "snapshots.read", do.head, "Whether I have uploaded this snapshot", kind="bytes"),
        Endpoint(
            "PUT",
            _PATH,
            "snapshots.write",
            do.put,
            "Upload a work folder as a gzip tar",
            status=201,
            takes_bytes=True,
            max_body=max_bytes,
        ),
    ]
