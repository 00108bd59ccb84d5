"""One request to slurmrestd and its answer: over TCP, TLS or a Unix socket, in a thread, so that nobody waits for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from penstock.base.text import one_line
from penstock.engines.slurm.errors import Refused, Unreachable

_MOST = 256 << 20  # bytes of an answer: some 100,000 jobs


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class Answered:
    """``doc`` is empty where the answer was no JSON object."""

    status: int
    doc: Mapping[str, Any]
    text: str


class RestClient:
    """``url``: http(s)://host:port, or unix:/path. With a ``token`` each request says as whom it comes."""

    def __init__(self, url: str, token: str | None, user: str, *, timeout_s: float = 20.0, at_once: int = 4) -> None:
        self.url, self._token, self.user = url.rstrip("/"), token, user
        self._timeout_s = timeout_s
        self._at_once = asyncio.Semaphore(at_once)

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, user: str | None = None
    ) -> Answered:
        """Raises Unreachable where nothing of Slurm answers; Refused where it does not know us. All else is an answer."""
        async with self._at_once:
            found = await asyncio.to_thread(self._exchange, method, path, body, user or self.user)
        if found.status in {401, 403}:
            raise Refused(f"slurmrestd does not let {user or self.user or 'us'} in: {found.text or found.status}")
        return found

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None, user: str) -> Answered:
        connection = self._connection()
        headers = {"Accept": "application/json"}
        if self._token:
            headers |= {"X-SLURM-USER-TOKEN": self._token, "X-SLURM-USER-NAME": user}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode("utf-8", "surrogateescape")
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, payload, headers)
            answer = connection.getresponse()
            raw = answer.read(_MOST)
        except (OSError, http.client.HTTPException) as error:
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(f"slurmrestd at {self.url} does not answer: {words}") from error
        finally:
            connection.close()
        text = raw.decode("utf-8", "replace")
        try:
            doc = json.loads(text) if text else {}
        except ValueError:
            doc = {}
        shown = one_line(text[:300]) if not isinstance(doc, dict) or not doc else ""
        return Answered(answer.status, doc if isinstance(doc, dict) else {}, shown)

    def _connection(self) -> http.client.HTTPConnection:
        if self.url.startswith("unix:"):
            return _SocketConnection(self.url.removeprefix("unix:"), self._timeout_s)
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        return kind(address.hostname or "", address.port, timeout=self._timeout_s)
