"""Each mistake is told with its file, its line and what to do; files without any are left in peace."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.provisioning.lint import ERROR, lint
from penstock.provisioning.plan import parse
from penstock.provisioning.slurm import render
from tests.provisioning.fleets import full, text

CLEAN = {
    "slurm.conf": """\
# ours
ClusterName=c1
SlurmctldHost=ctl1
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=4000
TaskPlugin=task/cgroup,task/affinity
TopologyPlugin=topology/tree
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=dbd1
AccountingStorageEnforce=associations,limits
NodeName=DEFAULT Sockets=2 CoresPerSocket=48 ThreadsPerCore=2 RealMemory=2000000
NodeName=gpu[01-04] Gres=gpu:h100:8 State=UNKNOWN
NodeName=cpu1 State=UNKNOWN
PartitionName=gpu Nodes=gpu[01-04] Default=YES AllowAccounts=ml
PartitionName=cpu Nodes=cpu1
""",
    "gres.conf": """\
NodeName=gpu[01-04] Name=gpu Type=h100 File=/dev/nvidia[0-3] Cores=0-47
NodeName=gpu[01-04] Name=gpu Type=h100 File=/dev/nvidia[4-7] Cores=48-95
""",
    "cgroup.conf": "ConstrainRAMSpace=yes\n",
    "topology.conf": "SwitchName=leaf1 Nodes=gpu[01-04],cpu1\n",
    "slurmdbd.conf": "DbdHost=dbd1\nStorageType=accounting_storage/mysql\n",
}


def found(file: str = "", old: str = "", new: str = "", **changes: str) -> list[str]:
    files = dict(CLEAN)
    if file:
        assert old in files[file]
        files[file] = files[file].replace(old, new, 1)
    files.update({name.replace("_", "."): body for name, body in changes.items()})
    return [str(one) for one in lint(files)]


def test_clean_files_are_left_in_peace() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "message"),
    [
        # gres counts that differ: the node is drained
        ("slurm.conf", "h100:8", "h100:16", "gres.conf:1: error", "8 gpu here and 16 in slurm.conf (line 14)"),
        ("gres.conf", "[4-7]", "[4-6]", "gres.conf:1: error", "gres count reported lower than configured"),
        ("slurm.conf", "cpu1 State", "cpu1 Gres=gpu:2 State", "slurm.conf:15: error", "gres.conf has no line for it"),
        ("slurm.conf", "gpu:h100:8", "gpu:H100:8", "slurm.conf:14: error", "type H100, and gres.conf says h100"),
        # cores beyond Slurm's range
        ("gres.conf", "48-95", "96-191", "gres.conf:2: error", "Cores has 191, and gpu01 has the cores 0 to 95"),
        # double records
        ("gres.conf", "NodeName=gpu[01-04] Name", "AutoDetect=nvml\nNodeName=gpu[01-04] Name", "gres.conf:2: error", "AutoDetect=nvml (line 1) and Name=gpu"),
        ("gres.conf", "[4-7]", "[3-6]", "gres.conf:1: error", "/dev/nvidia3 stands in more than one line"),
        # no NodeName
        ("gres.conf", "NodeName=gpu[01-04] Name", "Name", "gres.conf:1: warning", "names no nodes"),
        ("gres.conf", "NodeName=gpu[01-04] Name", "NodeName=gpu[01-05] Name", "gres.conf:1: error", "gpu05 is no node"),
        ("slurm.conf", "GresTypes=gpu\n", "", "slurm.conf:13: error", "is no GresTypes"),
        # empty values
        ("slurm.conf", "Nodes=cpu1", "Nodes=cpu1 Topology= State=UP", "slurm.conf:17: error", "Topology= has no value"),
        ("cgroup.conf", "=yes", "=", "cgroup.conf:1: error", "ConstrainRAMSpace= has no value"),
        # words and format
        ("slurm.conf", "DefMemPerCPU", "DefMemPerCpus", "slurm.conf:7: error", "Did you mean DefMemPerCPU?"),
        ("slurm.conf", "cpu1 State", "cpu1 Sate", "slurm.conf:15: error", "Did you mean State?"),
        ("slurm.conf", "DefMemPerCPU=4000", "DefMemPerCPU=4000 now", "slurm.conf:7: error", "'now' is no Key=value"),
        ("slurm.conf", "gpu[01-04] Gres", "gpu[01-0 Gres", "slurm.conf:14: error", "brackets"),
        ("slurm.conf", "gpu:h100:8", "gpu=8", "slurm.conf:14: error", "is no gres"),
        ("slurm.conf", "DefMemPerCPU", "FastSchedule=1\nDefMemPerCPU", "slurm.conf:7: warning", "was taken out of Slurm"),
        ("slurm.conf", "DefMemPerCPU", "SallocDefaultCommand=sh\nDefMemPerCPU", "slurm.conf:7: error", "use_interactive_step"),
        # nodes and partitions
        ("slurm.conf", "NodeName=cpu1", "NodeName=gpu03", "slurm.conf:15: error", "gpu03 is defined a second time"),
        ("slurm.conf", "cpu1 State", "cpu1 CPUs=100 State", "slurm.conf:15: error", "96 cores and 192 threads"),
        ("slurm.conf", "Nodes=cpu1", "Nodes=cpu2", "slurm.conf:17: error", "cpu2 is no node here"),
        ("slurm.conf", "Nodes=cpu1", "Nodes=cpu1 Default=YES", "slurm.conf:17: error", "is the default too"),
        ("slurm.conf", "=associations,limits", "=limits", "slurm.conf:16: warning", "AllowAccounts is not held to"),
        # limits and accounting
        ("slurm.conf", "DefMemPerCPU=4000", "JobAcctGatherParams=OverMemoryKill\nDefMemPerCPU=4000", "slurm.conf:7: error", "slurmd does not start"),
        ("slurm.conf", "task/cgroup,", "", "slurm.conf:8: warning", "no effect without TaskPlugin=task/cgroup"),
        ("slurm.conf", "DefMemPerCPU=4000\n", "", "slurm.conf:6: warning", "is given all of a node's"),
        ("slurm.conf", "CR_Core_Memory", "CR_Core", "slurm.conf:6: warning", "ConstrainRAMSpace has no effect"),
        ("slurm.conf", "accounting_storage/slurmdbd", "accounting_storage/none", "slurm.conf:12: error", "no effect"),
        ("slurmdbd.conf", "dbd1", "dbd2", "slurmdbd.conf:1: warning", "DbdHost=dbd2"),
        # topology
        ("topology.conf", ",cpu1", "", "topology.conf: error", "cpu1 is in no leaf"),
        ("topology.conf", "cpu1", "cpu1\nSwitchName=leaf2 Nodes=gpu01", "topology.conf:2: error", "gpu01 is in leaf1 too"),
        ("topology.conf", "cpu1", "cpu1\nSwitchName=s Switches=leaf[1-2]", "topology.conf:2: error", "leaf2 is no switch"),
        ("topology.conf", ",cpu1", "\nSwitchName=leaf2 Nodes=cpu1", "topology.conf: warning", "no job can span them"),
        ("slurm.conf", "TopologyPlugin=topology/tree\n", "", "topology.conf: warning", "is not looked at"),
    ],
)  # fmt: skip
def test_a_mistake(file: str, old: str, new: str, where: str, message: str) -> None:
    told = found(file, old, new)
    assert any(one.startswith(f"{where}:") and message in one for one in told), told


def test_one_host_shares_no_folder() -> None:
    lines = (
        "ClusterName=c\nSlurmdSpoolDir=/var/spool/slurmd\nNodeName=n[1-2] NodeHostname=box CPUs=4 Port=[7001-7002]\n"
    )
    (told,) = (str(one) for one in lint({"slurm.conf": lines}))
    assert told.startswith("slurm.conf:2: error: n[1-2] run on one host")


def test_each_hosts_own_gres_conf_is_held_against_nodes_that_have_such_a_thing() -> None:
    (told,) = found(gres_conf="Name=gpu Type=h100 File=/dev/nvidia[0-7]\n")
    assert "names no nodes" in told
    assert any(
        "4 gpu here and 8" in one and "warning" in one for one in found(gres_conf="Name=gpu File=/dev/nvidia[0-3]\n")
    )


def test_autodetect_of_some_nodes_and_files_of_others_are_no_double_records() -> None:
    gres = "AutoDetect=nvml\nNodeName=gpu[01-04] AutoDetect=off Name=gpu Type=h100 File=/dev/nvidia[0-7]\n"
    assert [one for one in found(gres_conf=gres) if "error" in one] == []


def test_the_inventory_is_compared() -> None:
    fleet = parse(text(full()))
    files = {file.name: str(file) for file in render(fleet)}
    files["slurm.conf"] = files["slurm.conf"].replace(
        "Gres=gpu:h100:8 Feature=ib Weight", "Gres=gpu:h100:4 Feature=ib Weight"
    )
    files["slurm.conf"] = files["slurm.conf"].replace("NodeName=cpu1", "NodeName=cpu2")
    told = [str(one) for one in lint(files, fleet)]
    assert any("gpu[009-016] has 4 GPUs here, and 8 in the fleet file" in one for one in told)
    assert any("cpu1 of the pool cpu is not there" in one for one in told)
    assert any("cpu2 is in no pool" in one for one in told)
    assert sum("gres.conf" in one and "8 gpu here and 4" in one for one in told) == 1


@given(st.dictionaries(st.sampled_from(sorted(CLEAN)), st.text(alphabet='Nodeam=gpu[01-4],:hF/ \n#\\"', max_size=80)))
def test_any_text_can_be_linted(files: dict[str, str]) -> None:
    for one in lint(files):
        assert one.level in (ERROR, "warning")
        assert one.help


@given(st.data())
def test_a_cut_file_can_be_linted(data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(CLEAN)))
    lint({**CLEAN, name: CLEAN[name][: data.draw(st.integers(0, len(CLEAN[name])))]})
