"""Envoy's admin socket: a question, an answer, the connection closed. It lies in a folder that is the server's user's alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from penstock.base.errors import Unavailable
from penstock.serving.gateway.words import ADMIN
from penstock.serving.processes import connected


class Admin:
    """``ask`` raises Unavailable where nobody answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def ask(self, path: str, *, method: str = "GET", timeout: float = 5.0) -> str:
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(method, path)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            raise Unavailable(f"Envoy's admin socket does not answer: {error!r}") from error

    async def _exchange(self, method: str, path: str) -> str:
        reader, writer = await asyncio.open_unix_connection(sock=connected(self.folder, ADMIN), limit=1 << 20)
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            chunked = "transfer-encoding: chunked" in head
            body = await _chunks(reader) if chunked else await reader.read()
        finally:
            writer.close()
        status = int(head.split(" ", 2)[1])
        if status != 200:
            raise ValueError(f"{path} answers {status}")
        return body.decode()

    async def stats(self, pattern: str) -> Mapping[str, str]:
        """By name, as text; ``pattern`` is a regular expression. What was never counted is left out: ten times quicker."""
        text = await self.ask(f"/stats?usedonly&filter={quote(pattern)}")
        pairs = (line.split(": ", 1) for line in text.splitlines() if ": " in line)
        return {name: value.strip('"') for name, value in pairs}


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts)
