"""Asks a candidate's replicas what the stable version was asked. Connections are kept; nothing of an answer is.

The question carries what the caller sent, keys among it, because the stable version had it too. It is in memory while the
candidate answers, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import h11

from penstock.serving.gateway.spec import Backend
from penstock.serving.reply import Reply
from penstock.serving.wire import Asked, Broken, Header, NoConnection, Wire, ask, connect, onward

IDLE = 8  # connections that are kept for the next question, of each replica
# The gateway's own words, set anew for each hop, and what follows from the body as it is sent.
_OURS = (b"x-envoy-", b"x-forwarded-", b"x-penstock-")
_SET = frozenset({b"content-length", b"host", b"expect", b"accept-encoding"})


class Failed(Exception):
    """The candidate did not answer. The message tells how."""


@dataclass(frozen=True, slots=True)
class Question:
    method: bytes
    path: str
    host: bytes
    headers: tuple[Header, ...]
    body: bytes

    def asked(self) -> Asked:
        kept = [(key, value) for key, value in onward(self.headers) if key not in _SET and not key.startswith(_OURS)]
        length = [(b"content-length", str(len(self.body)).encode())] if self.body or self.method == b"POST" else []
        return Asked(self.method, self.path.encode("latin-1"), ((b"host", self.host), *length, *kept))


class Candidate:
    """All replicas of the candidate of one service."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[Wire]] = {}
        self._busy: dict[tuple[str, int], int] = {}

    async def ask(self, backends: Sequence[Backend], question: Question, limit: float, most: int) -> Reply:
        """Of the least busy one. ``limit``: seconds, ``most``: bytes of the answer. Raises Failed."""
        self._forget({(one.address, one.port) for one in backends})
        address = min(((one.address, one.port) for one in backends), key=lambda one: self._busy.get(one, 0))
        self._busy[address] = self._busy.get(address, 0) + 1
        try:
            async with asyncio.timeout(limit):
                return await self._asked(address, question, most)
        except TimeoutError as error:
            raise Failed(f"no answer in {limit:g} s") from error
        except (NoConnection, Broken) as error:
            raise Failed(str(error)) from error
        finally:
            self._busy[address] -= 1

    async def _asked(self, address: tuple[str, int], question: Question, most: int) -> Reply:
        idle = self._idle.setdefault(address, [])
        while idle:
            wire = idle.pop()
            try:
                head = await self._head(wire, question)
            except Broken:  # it was closed while it was kept: that says nothing of the candidate
                wire.abort()
                continue
            return await self._whole(address, wire, head, most)
        wire = await connect(*address)
        return await self._whole(address, wire, await self._head(wire, question), most)

    @staticmethod
    async def _head(wire: Wire, question: Question) -> h11.Response:
        async def body() -> AsyncIterator[bytes]:
            if question.body:
                yield question.body

        try:
            return await ask(wire, question.asked(), body())
        except BaseException:
            wire.abort()
            raise

    async def _whole(self, address: tuple[str, int], wire: Wire, head: h11.Response, most: int) -> Reply:
        chunks: list[bytes] = []
        size = 0
        try:
            async for data in wire.body():
                size += len(data)
                if size > most:
                    raise Broken(f"its answer has more than {most} bytes")
                chunks.append(data)
            if wire.sending is not None:
                await wire.sending
        except BaseException:
            wire.abort()
            raise
        idle = self._idle.get(address)
        if idle is not None and len(idle) < IDLE and wire.reusable():
            idle.append(wire)
        else:
            wire.abort()
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in head.headers}
        return Reply(head.status_code, headers, b"".join(chunks))

    def _forget(self, known: set[tuple[str, int]]) -> None:
        """Connections to replicas that are no more."""
        for address in [one for one in self._idle if one not in known]:
            for wire in self._idle.pop(address):
                wire.abort()
            self._busy.pop(address, None) if not self._busy.get(address) else None

    async def close(self) -> None:
        self._forget(set())
