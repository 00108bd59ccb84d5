"""Evidence of a job that was not submitted through Penstock: ``slurm:12345``. Its site's accounting and its nodes' telemetry tell."""

from __future__ import annotations

import re
from typing import Final

from penstock.base.errors import Conflict, NotFound, Unavailable
from penstock.base.resource import Actor
from penstock.diagnosis.evidence import NodeHistory
from penstock.diagnosis.state import Evidence, Happened, NodeEvidence
from penstock.engines.several import Engines
from penstock.engines.slurm.accounting import Accounted
from penstock.engines.slurm.history import Run
from penstock.tenancy.plan import visible

_NAME: Final = re.compile(r"([a-z0-9][a-z0-9-]{0,62}):([0-9]{1,10}(?:_[0-9]{1,10})?)")
_PHASES: Final = {"RUNNING": "Running", "SUSPENDED": "Running", "COMPLETED": "Succeeded"}
_EVENTS: Final = {
    "PREEMPTED": "Preempted",
    "NODE_FAIL": "NodeLost",
    "BOOT_FAIL": "NodeLost",
    "OUT_OF_MEMORY": "OutOfMemory",
}
_UNKNOWN: Final = "it was not submitted through Penstock: its steps, its logs and what its processes do are not known"


def named(name: str) -> tuple[str, str] | None:
    """The engine and the job's number there; None for a job's name of ours."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match is not None else None


class Outside:
    def __init__(self, engines: Engines, history: NodeHistory | None) -> None:
        self._engines = engines
        self._history = history

    async def collect(self, engine: str, job: str, project: str, actor: Actor, now: float) -> Evidence:
        """Raises NotFound where there is none, or it is not of that project; Unavailable where its accounting does not answer."""
        found = self._engines.named(engine)
        if not isinstance(found, Accounted):
            raise Conflict(f"the engine {engine!r} keeps no accounts: jobs of others there are not known")
        runs = sorted(await found.accounts.of_job(job), key=lambda run: run.started_at)
        if not runs or (visible(actor) is not None and runs[-1].account != project):
            raise NotFound(f"there is no job {engine}:{job} in project {project!r}")
        last = runs[-1]
        if not last.whole:
            words = f"slurmdbd has not been told yet how {engine}:{job} began"
            raise Unavailable(words, hint="Ask again in some seconds.")
        nodes = [f"{found.node_prefix}{node}" for node in last.nodes]
        missing, seen = [_UNKNOWN], [NodeEvidence(node) for node in nodes]
        if self._history is None:
            missing.append("no telemetry of its nodes is kept")
        else:
            seen = [await self._history(node, last.started_at, last.ended_at or now) for node in nodes]
            missing += [f"no telemetry of {one.name}" for one in seen if not one.series and not one.findings]
        return Evidence(
            f"{engine}:{job}", project, _PHASES.get(last.state, "Failed"), now, nodes=tuple(seen),
            happened=tuple(event for run in runs for event in _events(run)), missing=tuple(missing),
        )  # fmt: skip


def _events(run: Run) -> list[Happened]:
    where = ", ".join(run.nodes)
    told = [Happened(run.started_at, "Started", f"{run.shown} ({run.name}) of {run.user} runs on {where}")]
    if run.ended_at is not None:
        what = _EVENTS.get(run.state, "Ended")
        facts = {"node": run.nodes[0]} if what == "NodeLost" and len(run.nodes) == 1 else {}
        told.append(Happened(run.ended_at, what, f"Slurm calls it {run.state}", facts))
    return told
