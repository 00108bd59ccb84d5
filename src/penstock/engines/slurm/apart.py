"""Nodes that share no files: what an attempt wrote lies on each node's own disk, and is fetched while its job still has them.

While it runs it is read through a step on each node, and only while somebody reads. At its end the batch script says so
in the job's comment and waits, for a bounded time, until all of it is in the server's run folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.files import FarFiles, File, Files, NearFiles, Want, reader
from penstock.engines.slurm.runfolder import Facts, facts
from penstock.engines.slurm.sessions import Place, step
from penstock.engines.slurm.spec import Transport

T = TypeVar("T")
OVER = "penstock: over"  # the comment of a job whose files wait to be fetched
FETCHED = "fetched"
LONGEST = 256 << 20  # bytes of each file that are fetched; a rank may have written more
_PIECE = 1 << 20
_MARK = ': >"$1/fetched"'


class NodesFiles:
    """Of a running job, each node's; each file is where its rank is."""

    def __init__(self, transport: Transport, place: Place, folder: str) -> None:
        self._nodes = {node: _files(transport, place, node, folder) for node in place.nodes}
        self._where: dict[str, str] = {}

    async def look(self) -> dict[str, File]:
        found: dict[str, File] = {}
        for node, seen in zip(self._nodes, await self._all(lambda files: files.look()), strict=True):
            for name, file in seen.items():
                if name not in found or file.size > found[name].size:
                    found[name], self._where[name] = file, node
        return found

    async def read(self, wants: Sequence[Want]) -> list[bytes]:
        return [(await self._nodes[self._where[want.name]].read([want]))[0] for want in wants]

    async def close(self) -> None:
        await self._all(lambda files: files.close())

    async def _all(self, what: Callable[[FarFiles], Awaitable[T]]) -> list[T]:
        return list(await asyncio.gather(*(what(files) for files in self._nodes.values())))


def _files(transport: Transport, place: Place, node: str, folder: str) -> FarFiles:
    async def command() -> Sequence[str]:
        return step(place, node, reader(folder), name="penstock-logs")

    return FarFiles(transport, place.user, command)


class ApartFiles:
    """Wherever they are now: here, once they were fetched; on the nodes, while the job runs."""

    def __init__(self, run_dir: str, running: Callable[[], Files | None]) -> None:
        self._here = NearFiles(run_dir, os.geteuid())
        self._run_dir = run_dir
        self._running = running
        self._there: Files | None = None

    async def look(self) -> dict[str, File]:
        return await (await self._current()).look()

    async def read(self, wants: Sequence[Want]) -> list[bytes]:
        return await (await self._current()).read(wants)

    async def close(self) -> None:
        if self._there is not None:
            await self._there.close()

    async def _current(self) -> Files:
        if await asyncio.to_thread(os.path.exists, f"{self._run_dir}/{FETCHED}"):
            return self._here
        self._there = self._there or self._running()
        return self._there or self._here


async def fetch(transport: Transport, place: Place, folder: str, run_dir: str) -> None:
    """Bring all that is there into the server's run folder, and tell the batch script. Raises Unreachable, OSError."""
    files = NodesFiles(transport, place, folder)
    try:
        found = await files.look()
        for name, file in found.items():
            await _copy(files, name, min(file.size, LONGEST), f"{run_dir}/{name}")
    finally:
        await files.close()
    await asyncio.to_thread(_mark, run_dir)
    words = step(place, place.nodes[0], ("sh", "-c", _MARK, "sh", folder), name="penstock-fetched")
    await transport.run(words, user=place.user)


async def _copy(files: Files, name: str, size: int, path: str) -> None:
    await asyncio.to_thread(os.makedirs, os.path.dirname(path), 0o700, True)
    with open(f"{path}.part", "wb") as copy:  # noqa: ASYNC230 - a write to our own disk
        while copy.tell() < size:
            [data] = await files.read([Want(name, copy.tell(), min(_PIECE, size - copy.tell()))])
            if not data:
                raise Unreachable(f"{name} became shorter while it was fetched")
            copy.write(data)
    os.replace(f"{path}.part", path)


def _mark(run_dir: str) -> None:
    with open(f"{run_dir}/{FETCHED}", "w", encoding="ascii"):
        return


def kept(run_dir: str) -> Facts:
    """Blocking. What the batch script left, as it was fetched."""
    return facts("\n".join(line for pair in _last_lines(run_dir) for line in pair))


def _last_lines(run_dir: str) -> Iterator[tuple[str, str]]:
    names = ["claim", "started", "ended", "restarts"]
    with contextlib.suppress(OSError):
        names += [f"ranks/{name}" for name in os.listdir(f"{run_dir}/ranks") if name.isdecimal()]
    for name in names:
        with contextlib.suppress(OSError), open(f"{run_dir}/{name}", "rb") as file:
            lines = file.read(1 << 16).decode("utf-8", "replace").splitlines()
            yield f"==> {name} <==", lines[-1] if lines else ""


def by_attempt(run_dirs: Mapping[str, str]) -> dict[str, Facts]:
    """Blocking."""
    return {attempt: kept(run_dir) for attempt, run_dir in run_dirs.items()}
