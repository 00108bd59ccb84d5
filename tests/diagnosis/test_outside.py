"""Jobs that were submitted to a Slurm itself: what its accounting and the nodes' findings make of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from penstock.base.errors import NotFound
from penstock.base.resource import Actor
from penstock.diagnosis.outside import Outside, named
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import NodeEvidence
from penstock.engines.several import Engines
from penstock.engines.slurm.accounting import Accounts
from penstock.engines.slurm.spec import Completed
from penstock.telemetry.spec import Finding, Severity

ROW = "12345|12345|9|train|ann|vision|gpu|{state}|1000|2000|cpu=8,mem=64G,gres/gpu=8|n1"


@dataclass
class Site:
    """An engine of which its accounting is asked here; ``said`` is sacct's answer."""

    said: str
    name: str = "slurm"
    node_prefix: str = ""
    asked: list[list[str]] = field(default_factory=list)

    @property
    def accounts(self) -> Accounts:
        return Accounts(self)  # type: ignore[arg-type]  # of a transport what is asked here

    async def run(self, argv: list[str], *, timeout_s: float) -> Completed:
        self.asked.append(list(argv))
        return Completed(0, self.said.encode(), b"")


async def history(node: str, _since: float, _until: float) -> NodeEvidence:
    lost = Finding("Xid", node, 1500.0, 1500.0, "Xid 79 on GPU GPU-a", Severity.CRITICAL, "GPU-a", "79")
    return NodeEvidence(node, findings=(lost,))


def collected(state: str, project: str, actor: Actor, *, telemetry: bool = True) -> tuple[str, list[str]]:
    outside = Outside(Engines(Site(ROW.format(state=state))), history if telemetry else None)  # type: ignore[arg-type]  # as above
    evidence = asyncio.run(outside.collect("slurm", "12345", project, actor, 3000.0))
    found = diagnose(evidence)
    assert found.missing[0].startswith("it was not submitted through Penstock")
    return found.verdict, [culprit.name for culprit in found.culprits]


ADMIN = Actor("root", "admin")
ANN = Actor("ann", projects={"vision": "member"})


def test_its_nodes_findings_tell() -> None:
    verdict, culprits = collected("FAILED", "vision", ANN)
    assert verdict == "gpu_off_bus"
    assert "n1" in culprits


@pytest.mark.parametrize(
    ("state", "cause"),
    [("NODE_FAIL", "node_down"), ("PREEMPTED", "preempted"), ("OUT_OF_MEMORY", "host_oom"), ("COMPLETED", "unknown")],
)
def test_its_state_tells(state: str, cause: str) -> None:
    verdict, _ = collected(state, "default", ADMIN, telemetry=False)
    assert verdict == cause


def test_not_yours_is_not_there() -> None:
    with pytest.raises(NotFound):
        collected("FAILED", "default", ANN)


def test_names() -> None:
    assert named("slurm:12345") == ("slurm", "12345")
    assert named("site-a:12_3") == ("site-a", "12_3")
    assert named("train") is None
    assert named("slurm:1;rm") is None
