"""``slurm:ID`` of a job that somebody gave to a real Slurm himself: its accounting tells where it ran and how it ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.base.errors import NotFound, Unavailable
from penstock.base.resource import Actor
from penstock.diagnosis.outside import Outside
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Evidence, NodeEvidence
from penstock.engines.several import Engines
from penstock.telemetry.spec import Finding, Severity
from tests.engines.slurm_world import slurm_world
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
ADMIN = Actor("root", "admin")
PATIENCE_S = 60.0
SITE = "c1"


async def history(node: str, since: float, until: float) -> NodeEvidence:
    """Of its first node an agent has told."""
    lost = Finding("Xid", node, since, until, "Xid 79 on GPU GPU-a", Severity.CRITICAL, "GPU-a", "79")
    return NodeEvidence(node, findings=(lost,) if node == "node-0" else ())


def test_a_job_that_was_given_to_slurm_itself(slurm_cluster: Cluster, data: Path) -> None:
    plain = (
        "--parsable",
        "--output=/dev/null",
        "-D",
        "/tmp",
        "--uid=nobody",
        "-A",
        "research",
        "-N2",
        "-w",
        "node-0,node-1",
    )
    number = slurm_cluster.run("sbatch", *plain, "-J", "theirs", "--wrap", "sleep 1; exit 3").strip()

    async def body() -> Evidence:
        async with slurm_world(slurm_cluster, data) as world:
            outside = Outside(Engines(world.engine), history)
            with pytest.raises(NotFound, match=r"there is no job .*:99999999"):
                await outside.collect(SITE, "99999999", "research", ADMIN, 0.0)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        found = await outside.collect(SITE, number, "research", ADMIN, 0.0)
                    except (NotFound, Unavailable):  # slurmdbd has not heard of it yet, or of its end alone
                        found = None
                    if found is not None and found.phase != "Running":
                        return found
                    await asyncio.sleep(0.5)

    found = asyncio.run(body())
    assert (found.job, found.phase, [node.name for node in found.nodes]) == (
        f"{SITE}:{number}",
        "Failed",
        ["node-0", "node-1"],
    )
    began, ended = found.happened
    assert "theirs" in began.message
    assert "runs on node-0, node-1" in began.message
    assert ended.message == "Slurm calls it FAILED"
    said = diagnose(found)
    assert (said.verdict, [culprit.name for culprit in said.culprits]) == ("gpu_off_bus", ["node-0/GPU-a", "node-0"])
