"""The cluster that every real Slurm test uses: that it is what tests/slurm_cluster.py says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.measure import until
from penstock.provisioning.lint import lint
from tests.slurm_cluster import Cluster, Place, cluster, started

pytestmark = [pytest.mark.real, pytest.mark.timeout(600), pytest.mark.needs("slurmdbd", "root")]


def _submitted(slurm: Cluster, *words: str, user: str = "nobody") -> str:
    return slurm.run("sbatch", "--parsable", "--output=/dev/null", *words, user=user).strip()


def _ends(slurm: Cluster, job: str, state: str) -> None:
    until(lambda: slurm.state(job) == state, f"job {job} {state}", timeout=60, every=0.1)


def test_partitions_and_accounts(slurm_cluster: Cluster) -> None:
    pairs = slurm_cluster.run("sinfo", "-h", "-N", "-o", "%P %N").splitlines()
    assert sorted(line for line in pairs if line.startswith("pair")) == ["pair node-0", "pair node-1"]
    assert len(pairs) == 3 * 8 + 2
    job = _submitted(slurm_cluster, "-p", "pair", "-N2", "--gres=gpu:4", "--wrap", "srun true")
    _ends(slurm_cluster, job, "COMPLETED")
    sacct = ("sacct", "-n", "-P", "-X", "-j", job, "-o", "Account,State,AllocTRES")
    until(lambda: "COMPLETED" in slurm_cluster.run(*sacct), "slurmdbd told", timeout=60, every=0.2)
    told = slurm_cluster.run(*sacct)
    assert told.startswith("research|")
    assert "gres/gpu:h100=8" in told


def test_who_takes_too_much_memory_is_killed(slurm_cluster: Cluster) -> None:
    take = "head -c 400m /dev/zero | tail | sleep 0"
    job = _submitted(slurm_cluster, "--mem=64", "--wrap", take)
    _ends(slurm_cluster, job, "OUT_OF_MEMORY" if slurm_cluster.contained else "FAILED")
    fine = _submitted(slurm_cluster, "--mem=600", "--wrap", take)
    _ends(slurm_cluster, fine, "COMPLETED")


def test_a_higher_tier_preempts(slurm_cluster: Cluster) -> None:
    every = ("--exclusive", "-N8", "--wrap", "sleep 60")
    spare = _submitted(slurm_cluster, "-p", "spare", *every)
    _ends(slurm_cluster, spare, "RUNNING")
    usual = _submitted(slurm_cluster, *every)
    _ends(slurm_cluster, spare, "PREEMPTED")
    _ends(slurm_cluster, usual, "RUNNING")
    urgent = _submitted(slurm_cluster, "-p", "urgent", "-N1", "--exclusive", "--wrap", "sleep 1", user="daemon")
    _ends(slurm_cluster, urgent, "COMPLETED")
    assert "Restarts=1" in slurm_cluster.run("scontrol", "show", "job", usual)
    slurm_cluster.clear()


@pytest.mark.needs("slurmrestd")
def test_slurmrestd_answers(slurm_cluster: Cluster) -> None:
    url = slurm_cluster.start_restd()
    try:
        headers = {"X-SLURM-USER-NAME": "root", "X-SLURM-USER-TOKEN": slurm_cluster.token()}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/slurm/v0.0.38/ping", headers=headers)) as answer:
            assert answer.status == 200
    finally:
        slurm_cluster.stop_restd()


def test_daemons_stop_and_start_and_nodes_share_nothing(tmp_path: Path) -> None:
    private = f"/tmp/penstock-private-{os.getpid()}"
    with cluster(min_job_age=2, private_mounts=[private]) as slurm:
        job = _submitted(slurm, "-N2", "-D", private, "--wrap", "srun touch $SLURM_JOB_ID; srun ls; sleep 60")
        _ends(slurm, job, "RUNNING")
        node = slurm.run("squeue", "-h", "-j", job, "-o", "%B").strip()
        slurm.wait_saved()
        slurm.kill_ctld()
        slurm.start_ctld()
        assert slurm.state(job) == "RUNNING"
        slurm.kill_slurmd(node)
        slurm.start_slurmd(node)
        slurm.stop_dbd()
        slurm.start_dbd()
        slurm.run("scancel", job)
        until(lambda: slurm.state(job) == "", "job forgotten", timeout=90, every=0.2)
        assert list(Path(private).iterdir()) == []
        assert [len(list(slurm.disk(name, private).glob(job))) for name in ("node-0", "node-1", "node-2")] == [1, 1, 0]
    Path(private).rmdir()


# A new slurmctld has nothing saved, and Debian's packages bring no PMIx.
AT_FIRST = re.compile(
    r"Could not open \w+ state file|Trying backup state save file|No fed_mgr state file|[Pp][Mm][Ii]x"
)


def test_rendered_files_start_without_a_complaint() -> None:
    with cluster() as slurm:
        told = slurm.run("scontrol", "show", "topology")
        assert re.findall(r"SwitchName=(\w+) Level=(\d) LinkSpeed=1 Nodes=(\S+)", told) == [
            ("leaf1", "0", "node-[0-3]"),
            ("leaf2", "0", "node-[4-7]"),
            ("spine", "1", "node-[0-7]"),
        ]
        nodes = slurm.run("sinfo", "-h", "-N", "-p", "all", "-o", "%N %T %G").splitlines()
        assert nodes == [f"node-{i} idle gpu:h100:4" for i in range(8)]
        devices = slurm.run(
            "srun", "-p", "all", "-N8", "--gres=gpu:4", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"
        ).split()
        assert devices == ["0,1,2,3"] * 8
        for log in ("slurmctld", *(f"slurmd.{node}" for node in slurm.nodes)):
            lines = (slurm.folder / f"{log}.log").read_text().splitlines()
            assert lines
            assert [line for line in lines if re.search(r"error:|fatal:", line) and not AT_FIRST.search(line)] == []
        texts = {path.name: path.read_text() for path in slurm.folder.glob("*.conf")}
        assert (
            sorted(texts)
            == ["cgroup.conf", "gres.conf", "slurm.conf", "slurmdbd.conf", "topology.conf"][
                0 if slurm.contained else 1 :
            ]
        )
        assert lint(texts) == []


def test_what_lint_calls_a_drained_node_is_drained() -> None:
    """The mistake of gres counts that differ, made for real: what lint says is what Slurm then does."""
    with cluster() as slurm:
        conf, gres = slurm.folder / "slurm.conf", slurm.folder / "gres.conf"
        conf.write_text(conf.read_text().replace("gpu:h100:4", "gpu:h100:8"))
        assert "8 in slurm.conf" in str(lint({"slurm.conf": conf.read_text(), "gres.conf": gres.read_text()}))
        slurm.stop_slurmd("node-0")
        slurm.restart_ctld()
        slurm.start_slurmd("node-0")
        node = ("sinfo", "-h", "-n", "node-0", "-p", "all", "-o", "%T %E")
        until(lambda: "gres/gpu count" in slurm.run(*node), "the node is drained", timeout=60, every=0.2)


def test_odd_text_stays_what_it_is(tmp_path: Path) -> None:
    """In front of the real daemons: one value each, and nothing of it runs."""
    canary = tmp_path / "canary"
    odd = f"it's; $(touch {canary}) `touch {canary}` | A=B NodeName=evil State=DOWN %s"

    def fleet(place: Place) -> dict[str, object]:
        return {
            "kind": "Fleet",
            "name": "odd",
            "controllers": [{"host": place.host, "address": "127.0.0.1"}],
            "pools": [{**place.pool("n[1-2]", cpus=2, memory=1000), "extra": {"Reason": odd}}],
            "partitions": [{"name": "all"}],
            "slurm": {**place.slurm({"MailDomain": odd}), "cgroup": {"plugin": "none"}},
        }

    with started(fleet) as slurm:
        assert re.search(rf"^MailDomain\s+= {re.escape(odd)}$", slurm.run("scontrol", "show", "config"), re.MULTILINE)
        assert slurm.run("sinfo", "-h", "-N", "-o", "%N").split() == ["n1", "n2"]
        slurm.run("srun", "-N2", "true")
    assert not canary.exists()


KILLED = """
import os, signal
from tests.slurm_cluster import cluster
with cluster() as slurm:
    slurm.run("sbatch", "--output=/dev/null", "--wrap", "sleep 600")
    print(slurm.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_test_that_is_killed_leaves_nothing() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=root, capture_output=True, text=True, check=False)
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("penstock-slurm-"), done.stderr

    def gone() -> bool:
        mark = f"SLURM_CONF={folder}/slurm.conf".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if mark in Path(f"/proc/{entry}/environ").read_bytes():
                    return False
        return not folder.exists()

    until(gone, "nothing left", timeout=60, every=0.1)
