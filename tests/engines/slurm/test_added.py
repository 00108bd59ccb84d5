"""As a new user would: a server, a real Slurm added to it by the command line, nodes closed from both sides."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.sshd import sshd
from tests.slurm_cluster import Cluster
from tests.system.house import House, until

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


@pytest.fixture(scope="module")
def site(slurm_cluster: Cluster) -> Iterator[House]:
    """Nodes have a prefix: the server's own is called node-0 too."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-runs-", dir="/tmp"))  # every user makes its jobs' folders there
    folder.chmod(0o1777)
    with House() as house:
        conf = slurm_cluster.environment["SLURM_CONF"]
        words = ("--name", "c1", "--slurm-conf", conf, "--folder", str(folder), "--node-prefix", "c1-")
        house.cli("engines", "add", "slurm", *words)
        until(lambda: len(house.get("nodes")["items"]) == 9, "the site's nodes are there")
        yield house
        slurm_cluster.clear()
    shutil.rmtree(folder)


def engine(house: House) -> dict[str, Any]:
    return next(item for item in house.get("engines")["items"] if item["name"] == "c1")


def node(house: House, name: str) -> dict[str, Any]:
    return dict(house.get(f"nodes/{name}"))


def shown(slurm: Cluster, name: str) -> str:
    return slurm.run("scontrol", "-o", "show", "node", name)


def test_what_the_probe_says(site: House, slurm_cluster: Cluster) -> None:
    conf = slurm_cluster.environment["SLURM_CONF"]
    before = site.get("events?limit=1&newest=true")
    said = site.cli("engines", "probe", "slurm", "--slurm-conf", conf).stdout
    assert "+ version: Slurm 22.05.8, cluster test" in said
    assert "+ gpus: 32 x h100 on 8 nodes" in said
    assert "+ partition: all (default): 8 nodes" in said
    assert "+ users: commands run as root there" in said
    assert "+ accounting: slurmdbd" in said and "+ quotas: limits of accounts are held" in said
    assert "~ manage: read-only" in said
    assert site.get("events?limit=1&newest=true") == before
    dry = site.cli("engines", "add", "slurm", "--name", "c2", "--slurm-conf", conf, "--dry-run").stdout
    assert dry == said and len(site.get("engines")["items"]) == 2
    found = engine(site)
    assert (found["version"], found["nodes"], found["reachable"], found["managed"]) == ("22.05.8", 8, True, False)


def test_a_site_that_is_not_there_is_refused_with_its_own_words(site: House) -> None:
    words = ("engines", "add", "slurm", "--name", "c2", "--slurm-conf", "/nonexistent/slurm.conf")
    said = site.cli(*words, code=5).stderr
    assert "this machine:" in said and "--force" in said
    assert len(site.get("engines")["items"]) == 2


def test_a_partition_that_is_not_there_is_refused(site: House, slurm_cluster: Cluster) -> None:
    conf = slurm_cluster.environment["SLURM_CONF"]
    words = ("engines", "add", "slurm", "--name", "c2", "--slurm-conf", conf, "--partition", "nosuch")
    said = site.cli(*words, code=5).stderr
    assert "there is no partition 'nosuch' here" in said and "There are: all, pair," in said
    assert len(site.get("engines")["items"]) == 2


def test_nodes_are_closed_and_opened_where_slurm_is(site: House, slurm_cluster: Cluster) -> None:
    refused = site.cli("cordon", "c1-node-3", code=5).stderr
    assert "only reads" in refused and "penstock engines set c1 --manage" in refused
    site.cli("engines", "set", "c1", "--manage")
    until(lambda: node(site, "c1-node-3")["ready"], "its nodes are there again")
    canary = Path(site.data_dir, "canary")
    site.cli("cordon", "c1-node-3", "--reason", f"bad DIMM $(touch {canary}) State=DOWN")
    assert "State=IDLE+DRAIN" in shown(slurm_cluster, "node-3")
    assert f"Reason=penstock: bad DIMM $(touch {canary}) State=DOWN (admin) [root@" in shown(slurm_cluster, "node-3")
    assert not canary.exists()
    found = node(site, "c1-node-3")
    assert found["cordoned"] and found["closed"] == ""
    site.cli("uncordon", "c1-node-3")
    assert "DRAIN" not in shown(slurm_cluster, "node-3")


def test_what_the_site_closed_stays_closed(site: House, slurm_cluster: Cluster) -> None:
    site.cli("engines", "set", "c1", "--manage")
    slurm_cluster.run("scontrol", "update", "nodename=node-4", "state=drain", "reason=noisy fan")
    try:  # also before it was seen: the engine asks
        refused = site.cli("uncordon", "c1-node-4", code=None)
        until(lambda: node(site, "c1-node-4")["closed"], "it is seen", 40)
        found = node(site, "c1-node-4")
        assert found["closed"].startswith("drained in Slurm by root at 20") and found["closed"].endswith(": noisy fan")
        assert "Drained" in site.cli("nodes").stdout and "noisy fan" in site.cli("nodes").stdout
        refused = site.cli("uncordon", "c1-node-4", code=5)
        assert "noisy fan" in refused.stderr and "DRAIN" in shown(slurm_cluster, "node-4")
        site.cli("uncordon", "c1-node-4", "--force")
        assert "DRAIN" not in shown(slurm_cluster, "node-4") and node(site, "c1-node-4")["closed"] == ""
    finally:
        slurm_cluster.tried("scontrol", "update", "nodename=node-4", "state=resume")


def test_drain_moves_our_jobs_and_leaves_those_of_others(site: House, slurm_cluster: Cluster) -> None:
    site.cli("engines", "set", "c1", "--manage")
    name = site.run(["sleep", "300"], engine="c1", max_restarts=1, grace_period="1s")
    site.reach(name, "Running")
    held = re.search(r"c1-(node-\d)", json.dumps(site.get(f"projects/default/jobs/{name}/attempts")))
    assert held is not None
    words = ("sbatch", "--parsable", "-w", held[1], "--output=/dev/null", "--wrap", "sleep 300")
    other = slurm_cluster.run(*words, user="nobody").strip()
    until(lambda: slurm_cluster.state(other) == "RUNNING", "the other's job runs")
    site.cli("drain", held[0], "--reason", "new disk")

    def moved() -> bool:
        tries = site.get(f"projects/default/jobs/{name}/attempts")["items"]
        return len(tries) > 1 and site.phase(name) == "Running" and held[0] not in json.dumps(tries[-1])

    until(moved, "it runs on another node")
    assert slurm_cluster.state(other) == "RUNNING" and "DRAIN" in shown(slurm_cluster, held[1])
    site.cli("cancel", name)
    slurm_cluster.run("scancel", other)
    site.cli("uncordon", held[0])


def test_after_a_restart_it_is_there_again(site: House) -> None:
    site.end()
    site.start()
    until(lambda: engine(site)["nodes"] == 8 and engine(site)["reachable"], "the engine is there again")
    assert engine(site)["managed"]
    until(lambda: engine(site)["jobs"] == 0, "what was cancelled before has ended")
    site.cli("engines", "remove", "c1")
    until(lambda: len(site.get("nodes")["items"]) == 1, "its nodes went with it")


def test_slurmrestd_with_a_token(slurm_cluster: Cluster, tmp_path: Path) -> None:
    url = slurm_cluster.start_restd()
    secret = slurm_cluster.token()
    (tmp_path / "token").write_text(f"SLURM_JWT={secret}\n")
    try:
        with House() as house:
            words = ("--name", "r1", "--rest", url, "--token-file", str(tmp_path / "token"), "--node-prefix", "r1-")
            said = house.cli("engines", "add", "slurm", *words).stdout
            assert "slurmrestd v0.0.38" in said and "the token is root's" in said and secret not in said
            until(lambda: len(house.get("nodes")["items"]) == 9, "the site's nodes are there")
            kept = os.path.join(house.data_dir, "engines/r1/token")
            assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600 and Path(kept).read_text() == secret
            assert secret not in json.dumps(house.get("engines")) + house.log() + house.cli("events").stdout
            for file in Path(house.data_dir).glob("penstock.db*"):
                assert secret.encode() not in file.read_bytes()
    finally:
        slurm_cluster.stop_restd()


def test_by_ssh(slurm_cluster: Cluster, tmp_path: Path) -> None:
    conf = slurm_cluster.environment["SLURM_CONF"]
    with sshd() as login, House() as house:
        words: tuple[str, ...] = ("--ssh", f"root@127.0.0.1:{login.port}", "--ssh-config", str(login.folder / "config"))
        words += ("--slurm-conf", conf, "--node-prefix", "s1-")
        said = house.cli("engines", "probe", "slurm", *words).stdout
        assert "+ version: Slurm 22.05.8" in said and "+ users: commands run as root there" in said
        assert "+ sessions: shell, exec and port-forward" in said
        house.cli("engines", "add", "slurm", "--name", "s1", *words)
        until(lambda: len(house.get("nodes")["items"]) == 9, "the site's nodes are there")
        before = len(login.connections())
        house.cli("engines", "show", "s1", "--probe")
        assert len(login.connections()) == before == 1  # a probe has its own, and leaves the engine's alone
        login.stop()
        refused = house.cli("engines", "show", "s1", "--probe", code=5).stderr
        assert f"root@127.0.0.1:{login.port} by ssh" in refused
        until(lambda: not house.get("engines/s1")["reachable"], "it is seen that the site is gone", 60)
        assert "unknown since" in house.cli("engines").stdout
        login.start()
        until(lambda: house.get("engines/s1")["reachable"], "it is seen that the site is back", 90)
        assert len(house.get("nodes")["items"]) == 9
