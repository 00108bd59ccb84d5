"""Trainings on a real Slurm that a real server added: what is known of those on this machine is known of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_cluster import Cluster
from tests.system.house import House, until

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
PATIENCE_S = 120.0
RANK = """
import json, os, time
told = [os.environ.get(name, "-") for name in ("PENSTOCK_NNODES", "PENSTOCK_NODE_RANK", "RANK", "WORLD_SIZE")]
print(*told, open(os.environ["PENSTOCK_HOSTFILE"]).read().count("slots=2"), flush=True)
for step in range(10_000):
    os.write(int(os.environ["PENSTOCK_REPORT_FD"]), json.dumps({"step": step}).encode() + b"\\n")
    time.sleep(0.1)
"""


@pytest.fixture
def site(slurm_cluster: Cluster) -> Iterator[House]:
    with House() as house:
        runs = Path(house.data_dir, "runs")
        runs.mkdir()
        runs.chmod(0o1777)
        conf = slurm_cluster.environment["SLURM_CONF"]
        words = ("--name", "c1", "--slurm-conf", conf, "--folder", str(runs), "--node-prefix", "c1-")
        house.cli("engines", "add", "slurm", *words, "--partition", "pair", "--manage")
        until(lambda: len(house.get("nodes")["items"]) == 3, "the site's nodes are there")
        yield house
    slurm_cluster.clear()


def lines(house: House, name: str, attempt: int, count: int) -> list[str]:
    """Of all ranks, the first ``count`` that are there, in the order of ranks."""

    def there() -> list[str]:
        said = [line.rpartition("] ")[2] for line in house.logs(name, attempt=str(attempt)).splitlines()]
        return sorted(said, key=lambda line: line.split()[2]) if len(said) == count else []

    return list(until(there, house.log()))


def test_it_runs_on_the_nodes_that_there_are_and_on_fewer_after_a_loss(site: House) -> None:
    name = site.run(
        ["python3", "-c", RANK], engine="c1", nodes=2, min_nodes=1, procs=2, launcher="none", max_restarts=3,
        grace_period="1s", resources={"cpus": 1, "memory": "500Mi"},
    )  # fmt: skip
    status = site.reach(name, "Running", patience_s=PATIENCE_S)["status"]
    assert status["nodes"] == ["c1-node-0", "c1-node-1"]
    assert lines(site, name, 1, 4) == ["2 0 0 4 2", "2 0 1 4 2", "2 1 2 4 2", "2 1 3 4 2"]
    site.client.nodes.lose("c1-node-1")

    def second() -> dict[str, Any] | None:
        now = site.job(name)["status"]
        return now if now["attempt"] == 2 and now["phase"] == "Running" else None

    status = until(second, site.log(), PATIENCE_S)
    assert (status["nodes"], status["restarts"]) == (["c1-node-0"], 1)
    assert lines(site, name, 2, 2) == ["1 0 0 2 1", "1 0 1 2 1"]
    attempts = site.get(f"projects/default/jobs/{name}/attempts")["items"]
    assert {one["number"]: (one["reason"], len(one["nodes"])) for one in attempts} == {
        1: ("NodeLost", 2), 2: ("Started", 1),
    }  # fmt: skip
    events = site.get(f"projects/default/jobs/{name}/events")["items"]
    assert any("on c1-node-0, 1 of the 2 nodes that it would have" in event["message"] for event in events)
    site.client.nodes.restore("c1-node-1")
