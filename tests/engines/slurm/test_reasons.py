"""Every reason of Slurm is told in words; what is not known is passed on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.engines.slurm import states
from penstock.engines.slurm.checks import problems
from penstock.engines.slurm.reasons import Limit, known, why
from penstock.engines.slurm.spec import Partition, Site, SlurmConfig, SlurmJob
from penstock.engines.spec import JobNeeds, NodeOffer

RECORDED = Path(__file__).parent / "recorded" / "reasons.txt"
NAMES = [line for line in RECORDED.read_text().split("\n") if line and not line.startswith("#")]
GPU = Partition("gpu", True, "UP", 3600.0, None, ("n1", "n2"), max_nodes=2)
SITE = Site("22.05.8", "c1", (GPU,), ("gpu",), "topology/none", "", (), "select/cons_tres", {})


def job(reason: str, partition: str = "gpu") -> SlurmJob:
    return SlurmJob(7, "train.1", "PENDING", reason, user="ann", account="vision", partition=partition, qos="high")


@pytest.mark.parametrize("name", NAMES)
def test_every_reason_of_slurms_own_list_has_words(name: str) -> None:
    assert known(name)
    told = why(job(name), SITE)
    assert told.message
    assert not told.message.startswith("Slurm says")
    assert "{" not in told.message + told.help


def test_the_list_is_slurms() -> None:
    assert len(NAMES) > 200
    assert {"AssocGrpGRES", "QOSMaxJobsPerUserLimit", "ReqNodeNotAvail", "MaxGRESRunMinsPerUser"} <= set(NAMES)


@pytest.mark.parametrize(
    ("said", "reason", "words"),
    [
        ("Resources", Reason.WaitingForResources, "first in line in partition gpu"),
        ("Priority", Reason.WaitingBehind, "higher priority"),
        ("Dependency", Reason.WaitingForDependency, "depends on"),
        ("JobHeldUser", Reason.HeldByAdministrator, "held by its owner"),
        ("JobHeldAdmin", Reason.HeldByAdministrator, "administrator"),
        ("BeginTime", Reason.BackingOff, "begin time"),
        ("JobArrayTaskLimit", Reason.WaitingForArraySlot, "array"),
        ("PartitionTimeLimit", Reason.Unschedulable, "partition gpu allows (1h)"),
        ("PartitionNodeLimit", Reason.Unschedulable, "(2 nodes at the most, 2 in all)"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", Reason.WaitingForResources, "reserved): n[1-2]"),
        ("ReqNodeNotAvail,_UnavailableNodes:n3", Reason.WaitingForResources, "reserved): n3"),
        ("ReqNodeNotAvail, May be reserved for other job", Reason.WaitingForResources, "May be reserved"),
        ("ReqNodeNotAvail, Reserved for maintenance", Reason.WaitingForResources, "maintenance"),
        ("AssocGrpGRES", Reason.QuotaExceeded, "account vision (or one above it) has no room for it within its limit"),
        ("QOSMaxJobsPerUserLimit", Reason.QuotaExceeded, "ann in QoS high has no room"),
        ("QOSMaxGRESPerUser", Reason.QuotaExceeded, "GPUs"),
        ("QOSMaxWallDurationPerJobLimit", Reason.Unschedulable, "more wall time than QoS high allows"),
        ("AssocMaxCpuPerJobLimit", Reason.Unschedulable, "more CPUs than ann in account vision allows of one job"),
        ("QOSMinGRES", Reason.Unschedulable, "fewer GPUs"),
        ("MaxGRESPerAccount", Reason.QuotaExceeded, "account vision in QoS high"),
        ("launch failed requeued held", Reason.HeldByAdministrator, "launched"),
        ("launch_failed_requeued_held", Reason.HeldByAdministrator, "launched"),
        ("Nodes required for job are DOWN, DRAINED or reserved", Reason.WaitingForResources, "down, drained"),
        ("", Reason.WaitingForResources, "not looked at it yet"),
    ],
)
def test_what_people_are_told(said: str, reason: Reason, words: str) -> None:
    told = why(job(said), SITE)
    assert told.reason is reason
    assert words in told.message


def test_a_requeue_of_which_the_scheduler_has_said_nothing_yet_backs_off() -> None:
    assert why(job("None")).reason is Reason.WaitingForResources
    requeued = why(replace(job("None"), restarts=1))
    assert (requeued.reason, requeued) == (Reason.BackingOff, why(job("BeginTime")))


def test_the_figures_of_a_limit_are_told() -> None:
    told = why(job("AssocGrpGRES"), SITE, Limit("account vision", limit=16, used=12, asked=8))
    assert told.reason is Reason.QuotaExceeded
    assert told.message == (
        "account vision has no room for it within its limit of GPUs (or another generic resource): "
        "needs 8, limit 16, in use 12 (AssocGrpGRES of Slurm)"
    )
    assert told.help == (
        "waits for others under the same limit to end; or an administrator raises GrpTRES=gres/gpu of account vision"
    )


def test_what_is_more_than_the_limit_can_never_start() -> None:
    told = why(job("AssocGrpGRES"), SITE, Limit("account vision", limit=16, used=0, asked=24))
    assert told.reason is Reason.Unschedulable
    assert "needs more GPUs" in told.message
    assert "needs 24, limit 16, in use 0" in told.message
    assert "GrpTRES of account vision" in told.help


def test_memory_and_time_are_told_in_their_units() -> None:
    assert "limit 16Gi" in why(job("AssocGrpMemLimit"), None, Limit(limit=16 * 2**30)).message
    wall = why(job("QOSMaxWallDurationPerJobLimit"), None, Limit(limit=3600, asked=7200)).message
    assert "needs 2h, limit 1h" in wall


def test_what_is_not_known_is_passed_on() -> None:
    told = why(job("SomethingOf2031"))
    assert told.message == "Slurm says: SomethingOf2031"
    assert not known("SomethingOf2031")


@given(st.text(max_size=80), st.text(max_size=20), st.sampled_from(NAMES))
def test_any_text_and_any_name_is_answered(text: str, name: str, reason: str) -> None:
    assert why(job(text, name)).message
    assert why(job(reason, name), SITE, Limit(name, 1, 2, 3)).message
    assert why(SlurmJob(1, text, "PENDING", f"{reason}, {text}", user="{account}{job}")).message


def test_a_start_that_is_a_year_off_is_no_estimate() -> None:
    """Slurm counts a year for whoever has no time limit."""
    asked, now = states.Asked("a.1", ()), 1_000_000.0
    for off, told in ((3600.0, now + 3600.0), (365 * 86_400.0, None)):
        waits = replace(job("Resources"), start_estimate=now + off)
        assert states.going(asked, waits, now).start_estimate == told


@pytest.mark.parametrize(("gib", "wrong"), [(16, []), (17, ["resources.memory"])])
def test_more_memory_than_any_node_has_is_refused_at_once(gib: int, wrong: list[str]) -> None:
    nodes = [NodeOffer("n1", 8, 8 << 30), NodeOffer("n2", 8, 16 << 30)]
    found = problems(JobNeeds("none", 1, 1, {}, memory=gib << 30), nodes, SlurmConfig("c1"))
    assert [one.path for one in found] == wrong
