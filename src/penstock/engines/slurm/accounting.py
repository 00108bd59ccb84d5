"""slurmdbd by sacctmgr and sacct, over whatever transport reaches the site."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from penstock.base.text import one_line
from penstock.engines.slurm import accounts, history, limits, parsing
from penstock.engines.slurm.accounts import Accounting, Change
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.history import Run, Told
from penstock.engines.slurm.limits import Associations
from penstock.engines.slurm.spec import Transport

LONG_S = 120.0  # for answers that may be long


class Accounts:
    """What the queue compiler and the import of jobs from outside ask of one site."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def read(self) -> Accounting:
        """Raises Unreachable, Refused."""
        commands = (accounts.CONFIG, accounts.ASSOCIATIONS, accounts.QOS, accounts.TRES)
        config, associations, qos, tres = await asyncio.gather(*(self._ask(command) for command in commands))
        return accounts.read(config, associations, qos, tres)

    async def change(self, change: Change, cluster: str) -> None:
        """Raises Refused in sacctmgr's words, Unreachable."""
        await self._ask(accounts.command(change, cluster))

    async def runs(self, since: float) -> list[Run]:
        """Jobs that ran at any time since then, and those that run. Raises Unreachable, Refused."""
        return history.read(await self._ask(history.command(since), timeout_s=LONG_S))

    async def of_job(self, job: str) -> list[Run]:
        """The runs of one job, by its number (12345, 12345_7). Raises Unreachable, Refused."""
        return history.read(await self._ask(history.of_job(job)))

    async def limits(self) -> Associations:
        """slurmctld's own view of the limits and of what is used of them. Raises Unreachable, Refused."""
        return limits.read(await self._ask(limits.COMMAND))

    async def told(self) -> Told:
        """How far slurmdbd knows. Raises Unreachable, Refused."""
        return history.told(await self._ask(history.DIAGNOSIS))

    async def _ask(self, argv: Sequence[str], *, timeout_s: float = 30.0) -> str:
        done = await self._transport.run(argv, timeout_s=timeout_s)
        said = one_line(done.err.decode(errors="replace"))
        if parsing.unavailable(said):
            raise Unreachable(f"Slurm's accounting does not answer: {said[:300]}")
        out = done.out.decode(errors="replace")
        if done.code != 0:
            words = said or one_line(out)
            raise Refused(words.removeprefix("sacctmgr: ").removeprefix("sacct: ").removeprefix("error: ")[:300])
        return out


@runtime_checkable
class Accounted(Protocol):
    """An engine whose site keeps accounts."""

    name: str
    accounts: Accounts
    node_prefix: str
