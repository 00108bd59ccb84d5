"""A run folder's logs, rank by rank, until there is a better reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from penstock.engines.slurm import attempts
from penstock.engines.slurm.spec import SlurmConfig, Transport
from penstock.engines.spec import LogRequest


class PlainLogs:
    def __init__(self, transport: Transport, run_dir: str, config: SlurmConfig) -> None:
        self._transport, self._run_dir, self._config = transport, run_dir, config

    async def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
        sent = 0
        while True:
            last = finished()
            known = attempts.load(self._run_dir, self._config)
            if known is not None and known.folder:
                words = ("sh", "-c", 'cd "$1" && cat logs/[0-9]*.out', "sh", known.folder)
                data = (await self._transport.run(words, user=known.user)).out
                if data[sent:]:
                    yield data[sent:]
                    sent = len(data)
            if last or not request.follow:
                return
            await asyncio.sleep(0.1)

    async def progress(self) -> list[Mapping[str, Any]]:
        return []
