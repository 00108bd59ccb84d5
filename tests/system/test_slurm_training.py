"""Trainings on a real Slurm that a real server added: what is known of those on this machine is known of these."""

from __future__ import annotations

import sys
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
TRAIN = """
import os, time
import torch, torch.distributed as dist
import penstock
dist.init_process_group("gloo")
torch.manual_seed(0)
ckpt = penstock.checkpoint.Checkpointer(model=torch.nn.Linear(8, 8), every=10)
life, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), dist.get_rank()
for step in range(ckpt.load(), 160):
    if step == 24 and life == 0 and rank == 1:
        time.sleep(3600)
    dist.all_reduce(torch.ones(8))
    time.sleep(0.05)
    penstock.report(step=step, total_steps=160)
    if ckpt.step(step):
        break
ckpt.close()
dist.destroy_process_group()
"""
# Torch-free: under torchrun each life comes to step 7, says so in its own words, and dies.
LOOP = """
import json, os, sys, time
rank, life = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
print("life", life, flush=True)
for step in range(8):
    os.write(int(os.environ["PENSTOCK_REPORT_FD"]), json.dumps({"step": step}).encode() + b"\\n")
    time.sleep(0.2)
if rank == "1":
    sys.exit(f"bad batch in life {life}")
time.sleep(600)
"""
VENV = {"venv": str(Path(sys.executable).parent.parent)}


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


def told(house: House, name: str, reason: str) -> list[dict[str, Any]]:
    events = house.get(f"projects/default/jobs/{name}/events?limit=500")["items"]
    return [event for event in events if event["reason"] == reason]


def test_a_rank_that_hangs_is_named_and_the_training_goes_on_from_its_checkpoint(site: House) -> None:
    name = site.run(
        ["python", "-c", TRAIN], engine="c1", nodes=2, launcher="torchrun", environment=VENV, hang_limit="3s",
        max_restarts=3, resources={"cpus": 1, "memory": "2Gi"}, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    [hung] = until(lambda: told(site, name, "RankHung"), site.log(), PATIENCE_S)
    assert (hung["data"]["ranks"], hung["data"]["blamed_nodes"]) == ([1], [])
    assert hung["data"]["answer"] == "restart in place"
    assert "rank 1 on c1-node-1 is in <module>" in hung["message"]
    assert "while rank 0 waits in all_reduce" in hung["message"]
    [again] = until(lambda: told(site, name, "RankRestarted"), site.log(), PATIENCE_S)
    assert again["data"]["restart"] == 1
    path = f"projects/default/jobs/{name}"
    until(lambda: (site.job(name)["status"]["progress"] or {}).get("step", 0) > 30, site.log(), PATIENCE_S)
    site.cli("checkpoint", "save", name)
    status = site.ended(name, PATIENCE_S)["status"]
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Succeeded", 1, 1)
    found = site.get(f"{path}/goodput")
    spent = {row["part"]: row["ms"] for row in found["parts"]}
    assert sum(spent.values()) == found["wall_ms"]
    assert found["measured"]
    assert [attempt["lives"] for attempt in found["attempts"]] == [2]
    assert 160 * 50 <= spent["steps"] < 160 * 50 + 15_000
    assert 3000 <= spent["hang"] < 20_000
    assert spent["lost"] > 0
    assert spent["restart"] > 0
    assert spent["unmeasured"] == 0
    saves = site.get(f"{path}/checkpoints")
    assert [load["step"] for load in saves["loads"] if load["state"] == "loaded"] == [19]
    assert {19, 29, 159} <= {save["step"] for save in saves["saves"]}
    assert any(save["why"] == "asked" for save in saves["saves"])
    assert "Checkpoints: every 10 steps" in site.cli("describe", name).stdout


def test_a_crash_loop_in_place_is_the_scripts_fault(site: House) -> None:
    name = site.run(
        ["python", "-c", LOOP], engine="c1", procs=2, launcher="torchrun", environment=VENV, max_restarts=20,
        grace_period="2s", resources={"cpus": 1, "memory": "2Gi"},
    )  # fmt: skip
    status = site.ended(name, PATIENCE_S)["status"]
    assert (status["phase"], status["reason"], status["attempt"]) == ("Failed", "CrashLoop", 1)
    words, *lines_ = status["message"].splitlines()
    assert "times in a row at step 7: rank 1 on c1-node-" in words
    assert "exited with code 1; " in words
    assert lines_[-1].strip().startswith("bad batch in life ")
    exits = told(site, name, "RankExited")
    assert {event["data"]["rank"] for event in exits} == {1}
    restarts = sorted(event["data"]["restart"] for event in told(site, name, "RankRestarted"))
    assert restarts == list(range(1, len(restarts) + 1))
    assert 2 <= len(restarts) < 8
