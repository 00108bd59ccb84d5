"""The server's side of the activator and the comparator: started when a service first needs them, adopted by the next server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.serving.orders import Folder
from penstock.serving.processes import Detached, connected
from penstock.serving.shadowed import Shadowed, Tally, frozen

HOST = "127.0.0.1"  # the gateway is on this machine
AGAIN_S = 0.1  # between two tries to hear the activator
SOCKET = "activator.sock"
ORDERS, SEEN = "orders", "seen"
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}  # nothing of the server's own: no secrets, no proxies


@dataclass(frozen=True, slots=True)
class Demand:
    """``held`` requests wait for a replica of this service. 0: none does any more."""

    project: str
    name: str
    held: int


class _Sidecar:
    """``folder``: one for both, the server's own."""

    module: str
    name: str

    def __init__(self, folder: Path, env: Mapping[str, str] = ENV) -> None:
        self.folder = folder
        self.orders = Folder(folder / ORDERS)
        self.process = Detached(folder, self.name)
        self._env = env
        self._settled = False

    @property
    def address(self) -> tuple[str, int]:
        """Where the gateway reaches it, for as long as this server lives and, unless its port is taken, for ever."""
        if not self._settled:
            self._settled = True
            self.process.give_up_port(HOST)
        return HOST, self.process.port(HOST)

    async def keep(self) -> None:
        """See to it that it runs; to be cancelled. It lives on then, and the next server adopts it."""
        await self.process.keep(self._argv(), self._env)

    async def stop(self, grace: float = 5.0) -> None:
        """For good: no service is left."""
        await self.process.stop(grace)

    def _argv(self) -> Sequence[str]:
        host, port = self.address
        arguments = ("--host", host, "--port", str(port), "--folder", str(self.folder))
        return (sys.executable, "-m", self.module, *arguments)


class Activator(_Sidecar):
    module = "penstock.serving.activator"
    name = "activator"

    async def demands(self) -> AsyncIterator[Demand]:
        """Without an end. One line each time that somebody waits for a first replica; where it died, it is heard again."""
        while True:
            reader, writer = await self._heard()
            try:
                while line := await reader.readline():
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        body = json.loads(line)
                        yield Demand(str(body["project"]), str(body["name"]), int(body["held"]))
            except OSError:
                pass
            finally:
                writer.close()
            await asyncio.sleep(AGAIN_S)

    async def _heard(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            with contextlib.suppress(OSError):
                return await asyncio.open_unix_connection(sock=connected(self.folder, SOCKET))
            await asyncio.sleep(AGAIN_S)


class Comparator(_Sidecar):
    module = "penstock.serving.comparator"
    name = "comparator"

    def seen(self) -> Mapping[tuple[str, str], Shadowed]:
        """What was counted of the candidate that is, or was last, in shadow, by project and service: one read of small files."""
        found: dict[tuple[str, str], Shadowed] = {}
        for path in (self.folder / SEEN).glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError):
                found[path.parent.name, path.stem] = frozen(Tally.from_json(json.loads(path.read_text())))
        return found

    def forget(self, project: str, name: str) -> None:
        """The service is no more."""
        (self.folder / SEEN / project / f"{name}.json").unlink(missing_ok=True)
