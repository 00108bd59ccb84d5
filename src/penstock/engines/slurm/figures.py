"""The figures in what is said of those who wait: of partitions and of limits, asked for only while somebody waits for one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from penstock.engines.slurm import limits, reasons
from penstock.engines.slurm.accounting import Accounts
from penstock.engines.slurm.attempts import Attempt
from penstock.engines.slurm.errors import Refused
from penstock.engines.slurm.limits import Associations
from penstock.engines.slurm.reasons import Why
from penstock.engines.slurm.spec import Controller, Site, SlurmJob

_AGAIN_S = 60.0
_MIB = 1 << 20


class Figures:
    """Of one site."""

    def __init__(self) -> None:
        self._site: Site | None = None
        self._associations: Associations = {}
        self._asked_at = -_AGAIN_S
        self._wanted: set[str] = set()  # how the reasons begin that were met since it was last asked

    def why(self, attempt: Attempt, job: SlurmJob) -> Why:
        """What is said of a job that waits, with what is known by now."""
        self._wanted |= {start for start in ("Assoc", "Partition") if job.reason.startswith(start)}
        return reasons.why(job, self._site, limits.find(self._associations, job, asks(attempt)))

    async def refresh(self, controller: Controller, accounts: Accounts) -> None:
        """Raises Unreachable."""
        if not self._wanted or time.monotonic() - self._asked_at < _AGAIN_S:
            return
        wanted, self._wanted, self._asked_at = self._wanted, set(), time.monotonic()
        with suppress(Refused):
            if "Partition" in wanted:
                self._site = await controller.site()
            if "Assoc" in wanted:
                self._associations = await accounts.limits()


def asks(attempt: Attempt) -> Mapping[str, float]:
    """By TRES, memory in MiB."""
    groups = attempt.asked.groups
    memory = sum(group.memory or 0 for group in groups) / _MIB
    told = {
        "cpu": sum(group.cpus for group in groups),
        "node": float(len(groups)),
        "gres/gpu": float(attempt.gpus * len(groups)),
    }
    return told | ({"mem": memory} if memory else {})
