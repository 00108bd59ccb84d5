"""What is said of a site, from what a real one of Slurm 22.05 printed; variations of it are made here, by hand."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.adding import Stored, Verdict
from penstock.engines.slurm import parsing, plugin
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.facts import Facts, models, number, parameters, version
from penstock.engines.slurm.options import problems
from penstock.engines.slurm.probe import findings
from penstock.engines.slurm.spec import Site, SlurmConfig, SlurmNode
from penstock.engines.slurm.transport import LocalTransport

RECORDED = Path(__file__).parent / "recorded"
CONFIG = parsing.settings((RECORDED / "scontrol-show-config-22.05.txt").read_text())
PARTITIONS = tuple(parsing.partitions((RECORDED / "scontrol-show-partition-22.05.txt").read_text()))
NODES = tuple(parsing.nodes((RECORDED / "scontrol-show-node-22.05.txt").read_text()))


def site(**changes: str) -> Site:
    """As recorded, with settings of slurm.conf in the place of its own."""
    config = CONFIG | changes
    return Site(
        config["SLURM_VERSION"],
        config["ClusterName"],
        PARTITIONS,
        ("gpu",),
        config["TopologyPlugin"],
        config["AccountingStorageType"],
        tuple(filter(None, config["AccountingStorageEnforce"].split(","))),
        config["SelectType"],
        config,
    )


ROOT = Facts(site(), SlurmConfig("c1"), NODES, "root", True, False, "slurm-wlm 22.05.8", "Administrator", True, "nfs")


def said(facts: Facts) -> dict[str, tuple[Verdict, str]]:
    """By topic; of several the last."""
    return {one.topic: (one.verdict, one.text) for one in findings(facts)}


def verdicts(facts: Facts) -> dict[str, str]:
    return {topic: str(verdict) for topic, (verdict, _) in said(facts).items()}


def test_the_recorded_site() -> None:
    assert verdicts(ROOT) == {
        "version": "works",
        "users": "works",
        "partition": "works",
        "gpus": "works",
        "topology": "works",
        "sharing": "works",
        "memory": "limited",
        "memory limit": "not",
        "gpu fence": "limited",
        "accounting": "works",
        "quotas": "works",
        "preemption": "not",
        "arrays": "works",
        "sessions": "works",
        "comments": "works",
        "files": "works",
        "manage": "limited",
    }
    told = said(ROOT)
    assert told["version"][1] == "Slurm 22.05.8, cluster history"
    assert told["gpus"][1] == "16 x a100 on 4 nodes"
    texts = [one.text for one in findings(ROOT) if one.topic == "partition"]
    assert texts == ["gpu (default): 4 nodes, jobs run at most 1h", "urgent: 4 nodes, jobs may run for ever"]


@pytest.mark.parametrize(
    ("changes", "topic", "verdict", "words"),
    [
        ({"SLURM_VERSION": "20.02.7"}, "version", "limited", "older"),
        ({"TopologyPlugin": "topology/none"}, "topology", "limited", "which nodes are near"),
        ({"TopologyPlugin": "topology/block"}, "topology", "works", "topology/block"),
        ({"SelectType": "select/linear"}, "sharing", "limited", "whole nodes"),
        ({"SelectType": "select/cons_res"}, "sharing", "limited", "--gpus"),
        ({"SelectTypeParameters": "CR_CORE_MEMORY"}, "sharing", "works", "shared between jobs"),
        (
            {"TaskPlugin": "task/affinity,task/cgroup", "ConstrainRAMSpace": "yes"},
            "memory limit",
            "works",
            "OutOfMemory",
        ),
        ({"JobAcctGatherParams": "OverMemoryKill"}, "memory limit", "limited", "late"),
        ({"AccountingStorageType": "accounting_storage/none"}, "accounting", "limited", "10m"),
        ({"AccountingStorageType": "accounting_storage/none"}, "quotas", "not", "without accounting"),
        ({"AccountingStorageEnforce": ""}, "quotas", "not", "none"),
        ({"AccountingStorageEnforce": "associations"}, "quotas", "not", "not held"),
        ({"AccountingStorageEnforce": "associations,limits"}, "quotas", "limited", "any QoS"),
        ({"AccountingStorageEnforce": "associations,limits,qos,safe"}, "quotas", "works", "held"),
        ({"MinJobAge": "4 sec"}, "memory of jobs", "limited", "asked of slurmdbd"),
        ({"MinJobAge": "4 sec", "AccountingStorageType": ""}, "memory of jobs", "not", "may be missed"),
        ({"PreemptType": "preempt/qos", "PreemptMode": "REQUEUE"}, "preemption", "works", "qos"),
        ({"PreemptType": "preempt/qos", "PreemptMode": "GANG,SUSPEND"}, "preemption", "limited", "GPUs' memory"),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "CANCEL"}, "preemption", "limited", "new attempt"),
        ({"JobRequeue": "0"}, "node failure", "limited", "anew"),
        ({"MaxArraySize": "100001"}, "arrays", "works", "100000 tasks"),
    ],
)
def test_variations(changes: dict[str, str], topic: str, verdict: str, words: str) -> None:
    found, text = said(replace(ROOT, site=site(**changes)))[topic]
    assert str(found) == verdict
    assert words in text


@pytest.mark.parametrize(
    ("changes", "topic", "verdict", "words"),
    [
        ({"srun": ""}, "sessions", "unknown", "not found"),
        ({"srun": "slurm 20.02.7"}, "sessions", "not", "--overlap"),
        ({"root": False, "user": "ann"}, "users", "limited", "all jobs run as ann"),
        ({"root": False, "user": "ann", "sudo": True}, "users", "works", "sudo"),
        ({"user": "", "root": None}, "users", "unknown", "not known"),
        ({"accounting_answers": False}, "accounting", "unknown", "does not answer now"),
        ({"file_system": "ext2/ext3"}, "files", "unknown", "disk of that machine"),
        ({"file_system": ""}, "files", "unknown", "not known"),
        ({"closed_at": "/srv"}, "folder", "limited", "cannot write in /srv"),
        ({"closed_at": "/srv", "root": False, "user": "ann"}, "folder", "not", "ann cannot write in /srv"),
        ({"nodes": ()}, "gpus", "unknown", "no nodes"),
        ({"nodes": (SlurmNode("n1", "IDLE", 8, 1),)}, "gpus", "not", "none of 1 nodes"),
        ({"nodes": (SlurmNode("n1", "IDLE", 8, 1, "gpu:2"),)}, "gpus", "limited", "2 GPUs of no model"),
        ({"config": SlurmConfig("c1", managed=True)}, "manage", "works", "as you ask"),
        (
            {"config": SlurmConfig("c1", managed=True), "root": False, "admin": "None", "user": "ann"},
            "manage",
            "not",
            "ann",
        ),
        ({"config": SlurmConfig("c1", managed=True), "root": None, "admin": ""}, "manage", "unknown", "tried"),
        ({"config": SlurmConfig("c1", shared=False)}, "files", "limited", "4096 KiB"),
        ({"config": SlurmConfig("c1", partition="cpu")}, "partition", "not", "'cpu'"),
        ({"commands": False, "root": None, "user": "ann"}, "users", "limited", "all jobs run as ann"),
        ({"commands": False}, "users", "works", "the token is root's"),
        ({"commands": False}, "sessions", "not", "no shell"),
        ({"commands": False}, "files", "limited", "carries no files"),
    ],
)
def test_facts(changes: dict[str, Any], topic: str, verdict: str, words: str) -> None:
    found, text = said(replace(ROOT, **changes))[topic]
    assert str(found) == verdict
    assert words in text


def test_a_partition_that_is_not_there_is_wrong_with_what_was_asked_for() -> None:
    asked = findings(replace(ROOT, config=SlurmConfig("c1", partition="nosuch")))
    assert [one.topic for one in asked if one.wrong] == ["partition"]
    assert not any(one.wrong for one in findings(ROOT))


def test_a_closed_node_and_a_closed_partition_are_told() -> None:
    bad = replace(NODES[0], state="IDLE+DRAIN", reason="bad DIMM", reason_by="root", reason_at=1_790_000_000.0)
    assert said(replace(ROOT, nodes=(bad, *NODES[1:])))["nodes"][1].startswith("n1: drained in Slurm by root at 2026-")
    down = replace(ROOT.site, partitions=(replace(PARTITIONS[0], state="DOWN", default=False),))
    texts = [(str(one.verdict), one.text) for one in findings(replace(ROOT, site=down)) if one.topic == "partition"]
    assert texts[0][0] == "not" and "its state is DOWN" in texts[0][1] and "no default partition" in texts[1][1]


def test_private_data_hides_others() -> None:
    private = replace(ROOT, site=site(PrivateData="jobs,usage"))
    assert "other users" not in verdicts(private)
    assert verdicts(replace(private, root=False, user="ann", admin="None"))["other users"] == "not"


def test_slurmrestd_alone_says_what_it_cannot_know() -> None:
    bare = Site("22.05.8", "", PARTITIONS, ("gpu",), "", "accounting_storage/slurmdbd", (), "", {}, "v0.0.38")
    found = verdicts(replace(ROOT, site=bare, commands=False))
    assert found["sharing"] == found["memory limit"] == "unknown" and "quotas" not in found
    assert "v0.0.38" in said(replace(ROOT, site=bare))["version"][1]


def test_every_finding_that_does_not_work_says_what_would_help_or_why_none_is_needed() -> None:
    for one in findings(replace(ROOT, site=site(AccountingStorageType="accounting_storage/none"))):
        assert one.text and "\n" not in one.text + one.help
        assert one.verdict is not Verdict.NOT or one.help


@given(
    st.dictionaries(st.sampled_from(sorted(CONFIG)), st.text(max_size=12), max_size=8),
    st.booleans(),
    st.text(max_size=6),
)
def test_whatever_slurm_conf_says_there_is_an_answer(changes: dict[str, str], known: bool, user: str) -> None:
    facts = Facts(site(**changes), SlurmConfig("c1", managed=known), NODES if known else (), user)
    assert {"version", "users", "files", "manage"} <= verdicts(facts).keys()


def test_words_of_slurm() -> None:
    assert models("gpu:h100:8(S:0-1),gpu:2,nic:1,gpu:h100:1") == {"h100": 9, "": 2}
    assert models("") == models("(null)") == {} and number("600 sec") == 600 and number(None) is None
    assert version("slurm 23.11.4") == (23, 11) and version("") == (0, 0)
    assert parameters("bf_continue,max_script_size=8388608") == {"bf_continue": "", "max_script_size": "8388608"}
    assert parameters("(null)") == parameters(None) == {}


def test_a_folder_is_tried_where_it_is_or_will_be(tmp_path: Path) -> None:
    async def tried(path: Path) -> str:
        return await plugin._closed_at(LocalTransport({}), str(path), "nobody" if os.geteuid() == 0 else None)

    with tempfile.TemporaryDirectory(prefix="penstock-folder-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        assert asyncio.run(tried(folder)) == asyncio.run(tried(folder / "not/yet")) == ""
        (folder / "file").touch()
        folder.chmod(0o555)
        assert asyncio.run(tried(folder / "not/yet")) == name
        assert asyncio.run(tried(folder / "file")) == f"{name}/file"
        folder.chmod(0o755)


def test_what_is_built_of_options() -> None:
    options = {
        "ssh": "ann@login1:22",
        "folder": "/srv/x",
        "shared": False,
        "slurm_conf": "/etc/s.conf",
        "options": {"account": "ml"},
    }
    assert problems(options) == []
    built = plugin.config(Stored("c1", options, managed=True, secret="t"))
    assert built == SlurmConfig(
        "c1", "ann@login1:22", None, "t", "/srv/x", False, managed=True, environment={"SLURM_CONF": "/etc/s.conf"},
        options={"account": "ml"},
    )  # fmt: skip
    assert plugin.config(Stored("c1")) == SlurmConfig("c1")


def test_a_site_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        asyncio.run(plugin.probe(Stored("c1", {"rest": "http://127.0.0.1:1"}, folder=str(tmp_path))))
