"""As an operator would: a real Slurm added, the queue file compiled into it, jobs held by its limits, people beside us."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_cluster import Cluster, cluster
from tests.system.house import House, until

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
QUEUES = """\
queues:
- {name: default}
- {name: vision, projects: [default], quotas: {default: {gpus: 16}}}
"""
OUTSIDE_S = 150.0  # the first look begins the ledger, the second takes over


@pytest.fixture(scope="module")
def slurm_cluster() -> Iterator[Cluster]:
    """One of its own: accounts are made in it, and outlive a test."""
    with cluster() as started:
        yield started


@pytest.fixture(scope="module")
def site(slurm_cluster: Cluster) -> Iterator[House]:
    with House() as house:
        runs = Path(house.data_dir, "runs")
        runs.mkdir()
        runs.chmod(0o1777)
        conf = slurm_cluster.environment["SLURM_CONF"]
        words = ("--name", "c1", "--slurm-conf", conf, "--folder", str(runs), "--node-prefix", "c1-")
        house.cli("engines", "add", "slurm", *words, "--manage")
        until(lambda: len(house.get("nodes")["items"]) == 9, "the site's nodes are there")
        Path(house.data_dir, "queues.yaml").write_text(QUEUES)
        house.cli("queues", "apply", "-f", f"{house.data_dir}/queues.yaml")
        yield house
        slurm_cluster.clear()


def why(house: House, name: str) -> dict[str, Any]:
    return dict(house.get(f"projects/default/jobs/{name}/why"))


def test_a_queue_file_is_compiled_once_and_holds_jobs(site: House, slurm_cluster: Cluster) -> None:
    dry = site.cli("queues", "compile", "--engine", "c1", "--dry-run").stdout
    assert "+ account vision: fairshare=1 limit gres/gpu=16 parent=root (queue vision)" in dry
    assert "vision" not in slurm_cluster.run("sacctmgr", "-nP", "show", "account", "format=account")
    done = site.cli("queues", "compile", "--engine", "c1").stdout
    assert "changes made" in done
    assert "c1: nothing to change" in site.cli("queues", "compile", "--engine", "c1").stdout

    small = site.run(["sleep", "300"], engine="c1", queue="vision", resources={"gpus": 2, "cpus": 1})
    site.reach(small, "Running")
    big = site.run(["sleep", "300"], engine="c1", queue="vision", nodes=4, resources={"gpus": 4, "cpus": 1})
    shown = slurm_cluster.run("squeue", "-h", "-o", "%a %u %T").split("\n")
    assert "vision nobody RUNNING" in shown
    until(lambda: "in use 2" in why(site, big)["message"], why(site, big)["message"], 120)
    told = why(site, big)
    assert told["reason"] == "QuotaExceeded"
    assert told["message"].startswith("account vision has no room for it within its limit of GPUs")
    assert "needs 16, limit 16, in use 2 (AssocGrpGRES of Slurm)" in told["message"]
    site.cli("cancel", small)
    site.reach(big, "Running")
    site.cli("cancel", big)

    slurm_cluster.run("sacctmgr", "-i", "modify", "account", "where", "name=vision", "set", "GrpTRES=gres/gpu=99")
    drifted = site.cli("queues", "compile", "--engine", "c1").stdout
    assert "changed by hand: account vision: limit gres/gpu is 99, changed by hand from 16" in drifted
    assert "c1: nothing to change" in drifted
    assert "c1: 1 changes made" in site.cli("queues", "compile", "--engine", "c1", "--overwrite").stdout
    own = site.run(["sleep", "300"], engine="c1", queue="vision", engine_options={"account": "research"})
    site.reach(own, "Running")
    assert "research nobody RUNNING" in slurm_cluster.run("squeue", "-h", "-o", "%a %u %T")
    site.cli("cancel", own)


def test_people_who_submit_by_hand_are_in_the_report(site: House, slurm_cluster: Cluster) -> None:
    def items() -> list[dict[str, Any]]:
        return list(site.get("cost/report?by=job")["items"])

    time.sleep(1.1)
    words = ("--parsable", "--output=/dev/null", "-D", "/tmp", "--uid=sys", "-A", "research", "-N2", "--gres=gpu:3")
    by_hand = slurm_cluster.run("sbatch", *words, "--wrap", "sleep 200").strip()
    ours = site.run(["sleep", "200"], engine="c1", resources={"gpus": 1})
    site.reach(ours, "Running")
    until(lambda: any(item["key"]["job"] == f"c1/{by_hand}" for item in items()), f"{items()}", OUTSIDE_S)
    found = {item["key"]["job"]: item for item in items()}
    assert found[f"c1/{by_hand}"]["key"]["project"] == "outside"
    assert found[f"c1/{by_hand}"]["quantities"]["gpu_hours"] > 0
    assert [name for name in found if name.startswith("c1/")] == [f"c1/{by_hand}"]
    assert found[ours]["quantities"]["gpu_hours"] > 0
    assert "outside" in site.cli("cost", "report", "--all-projects").stdout
    slurm_cluster.run("scancel", by_hand)
    site.cli("cancel", ours)
    bill = site.get("cost/bill?by=project")
    assert sum(item["nanos"] for item in bill["items"]) == bill["nanos"] > 0
    assert "outside" in [item["name"] for item in bill["items"]]
