"""How an attempt's logs are reached, and how a job that runs is entered."""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from penstock.base.errors import NotFound
from penstock.engines.slurm import apart
from penstock.engines.slurm.attempts import Attempt
from penstock.engines.slurm.files import FarFiles, Files, NearFiles, reader
from penstock.engines.slurm.logs import SlurmLogReader
from penstock.engines.slurm.sessions import Place
from penstock.engines.slurm.spec import Transport
from penstock.engines.slurm.transport import LocalTransport
from penstock.engines.spec import LogRequest, Stage

_NOWHERE = "/nonexistent"
_RECORD_S = 0.05  # between looks for the record of an attempt that is handed over just now


class LateReader:
    """Logs of an attempt whose record may not be written yet: who follows them waits until it is.

    ``find`` is the record's look-up, which may wait for the disk; ``reader`` makes the reader of what was found.
    """

    def __init__(self, find: Callable[[], Attempt | None], reader: Callable[[Attempt | None], SlurmLogReader]) -> None:
        self._find = find
        self._reader = reader

    async def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
        """As ``SlurmLogReader.read``."""
        while True:
            over = not request.follow or finished()
            known = await asyncio.to_thread(self._find)
            if known is not None or over:
                break
            await asyncio.sleep(_RECORD_S)
        async for piece in self._reader(known).read(request, finished):
            yield piece

    async def progress(self) -> list[Mapping[str, Any]]:
        return await self._reader(await asyncio.to_thread(self._find)).progress()

    async def watched(self) -> list[Mapping[str, Any]]:
        return await self._reader(await asyncio.to_thread(self._find)).watched()


def log_reader(attempt: Attempt | None, transport: Transport) -> SlurmLogReader:
    """``attempt`` is None where nothing was ever submitted: then there is nothing to read."""
    if attempt is None or not attempt.folder:
        return SlurmLogReader(_nothing, 1)
    return SlurmLogReader(shared(attempt, transport), attempt.asked.procs * len(attempt.asked.groups))


def shared(attempt: Attempt, transport: Transport) -> Callable[[], Awaitable[Files]]:
    """The run folder's files, where all nodes share them."""
    folder, user = attempt.folder, attempt.user

    async def command() -> Sequence[str]:
        return reader(folder)

    async def files() -> Files:
        if isinstance(transport, LocalTransport):
            return NearFiles(folder, None if user is None else pwd.getpwnam(user).pw_uid)
        return FarFiles(transport, user, command)

    return files


def apart_reader(
    attempt: Attempt, transport: Transport, live: Callable[[], Attempt | None], prefix: str
) -> SlurmLogReader:
    """Where nodes share no files: ``live`` is the attempt while it is under way."""

    def running() -> Files | None:
        now = live()
        try:
            return None if now is None else apart.NodesFiles(transport, place(now, prefix), attempt.folder)
        except NotFound:
            return None

    async def files() -> Files:
        return apart.ApartFiles(attempt.run_dir, running)

    return SlurmLogReader(files, attempt.asked.procs * len(attempt.asked.groups))


async def _nothing() -> Files:
    return NearFiles(_NOWHERE, None)


def place(attempt: Attempt | None, prefix: str) -> Place:
    """Raises NotFound of one that does not run."""
    told = attempt.told if attempt is not None else None
    if attempt is None or told is None or told.stage is not Stage.RUNNING:
        raise NotFound("it does not run", hint="A session needs a job that runs: `penstock get` shows which do.")
    nodes = tuple(group.node.removeprefix(prefix) for group in told.groups)
    return Place(int(attempt.slurm_id or attempt.key), attempt.attempt_id.rpartition(".")[0], attempt.user, nodes)
