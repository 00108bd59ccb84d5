"""What could never run says so before it speaks of quota, and names what of it would have to be another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.base.reasons import Reason
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Cohort, Flavor, Queue, Quota, Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Topology, Wait, Workload

MODEL = "NVIDIA H100 80GB HBM3"


def fleet(count: int = 8, *, queues: dict[str, Queue] | None = None) -> Scheduler:
    """Racks of four nodes with eight GPUs each."""
    setup = Setup(
        queues=queues or {"default": Queue("default")},
        cohorts={"all": Cohort("all")},
        flavors={"h100": Flavor("h100", (MODEL,)), "b200": Flavor("b200", ("NVIDIA B200",))},
    )
    scheduler = Scheduler(setup)
    for n in range(count):
        gpus = tuple(Gpu(f"g{at}", MODEL) for at in range(8))
        scheduler.put_node(
            NodeState(f"node-{n}", 64, 512 << 30, gpus, flavor="h100", topology=("b1", f"rack-{n // 4}"))
        )
    return scheduler


def job(name: str, ask: Ask, count: int = 1, **more: Any) -> Workload:
    return replace(Workload(name, name, 0.0, (Part(count, ask),), seq=1, limit_s=600.0), **more)


RACK = Topology("rack", required=True)
ONE = Ask(cpus=1, gpus=1)
NEVER = {
    "rack": job("rack", ONE, 5, topology=RACK),
    "size": job("size", Ask(cpus=1, gpus=9)),
    "mig": job("mig", Ask(cpus=1, gpus=1, mig="1g.10gb")),
    "model": job("model", Ask(cpus=1, gpus=1, gpu_models=("H900",))),
    "excluded": job("excluded", ONE, exclude=frozenset(f"node-{n}" for n in range(8))),
    "flavor": job("flavor", ONE, flavors=("b200",)),
}


@pytest.mark.parametrize("name", NEVER)
def test_it_says_the_same_whoever_uses_the_quota(name: str) -> None:
    """64 GPUs of quota, of which 60 are in use, or none: the same words."""
    queues = {"default": Queue("default", "all", {"h100": {"gpus": Quota(64)}})}
    w = NEVER[name]
    told: list[Wait] = []
    for use in (0, 60):
        scheduler = fleet(queues=queues)
        for n in range(use // 4):
            scheduler.submit(job(f"use-{n}", Ask(gpus=4)))
        scheduler.plan(0.0)
        scheduler.submit(w)
        scheduler.plan(1.0)
        told.append(scheduler.why(w.id, 1.0))
    assert told[0] == told[1]
    assert told[0].reason is Reason.Unschedulable


def never(w: Workload, **more: Any) -> tuple[str, str]:
    scheduler = fleet(**more)
    scheduler.submit(w)
    scheduler.plan(0.0)
    wait = scheduler.why(w.id, 0.0)
    assert wait.reason is Reason.Unschedulable
    return wait.message, wait.helps[0]


def test_each_names_its_cause() -> None:
    said = {name: never(w) for name, w in NEVER.items()}
    assert said["rack"][0] == "needs 5 nodes with 1 CPU, 1 GPU each in one rack; no rack of the fleet is that large"
    assert said["size"][0] == ("needs 1 CPU, 9 GPUs; no node of the fleet could ever hold that")
    assert said["mig"][0] == (
        "needs 1 CPU, 1 1g.10gb MIG instance; no GPU of the fleet is cut into such instances (there are: none at all)"
    )
    assert said["model"][0] == (f"needs 1 CPU, 1 H900 GPU; no node of the fleet has such a GPU (its models: {MODEL})")
    assert said["excluded"] == (
        "needs 1 CPU, 1 GPU; no node beside those that it excludes could ever hold that",
        "exclude fewer nodes (it excludes node-0, node-1, node-2, node-3, node-4 and 3 more)",
    )
    assert said["flavor"][0] == (
        "needs 1 CPU, 1 GPU of flavor b200; no node of the fleet is of that flavor (there are: h100)"
    )


def test_too_many_of_a_model_that_there_is() -> None:
    scheduler = fleet(2)
    scheduler.put_node(
        NodeState("big", 64, 1 << 40, tuple(Gpu(f"b{at}", "NVIDIA B200") for at in range(16)), flavor="b200")
    )
    for w, end in (
        (job("m", Ask(gpus=12, gpu_models=(MODEL,))), "no node of the fleet could ever hold that"),
        (job("f", Ask(gpus=12), flavors=("h100",)), "no node of flavor h100 could ever hold that"),
    ):
        scheduler.submit(w)
        scheduler.plan(0.0)
        assert scheduler.why(w.id, 0.0).message.endswith(end)


def test_its_queue_has_no_quota_where_it_would_fit() -> None:
    small = {"default": Queue("default", "all", {"h100": {"gpus": Quota(4)}})}
    assert never(job("j", Ask(gpus=5)), queues=small)[0] == (
        "needs 5 GPUs of h100; queue default could never have that: its nominal quota is 4, borrowing included"
    )
    other = {"default": Queue("default", "all", {"b200": {"gpus": Quota(8)}})}
    assert never(job("j", ONE), queues=other)[0].endswith(
        "no nodes of the flavors of which queue default has a quota (b200) could hold that"
    )
    assert never(job("j", ONE, flavors=("h100",)), queues=other) == (
        "asks for flavor h100; queue default has a quota of b200 alone",
        "name one of: b200, or use another queue",
    )
    assert never(job("j", ONE, queue="lost"), queues=other) == ("there is no queue 'lost'", "name one of: default")


def test_one_gpu_is_no_gpus() -> None:
    scheduler = fleet(queues={"default": Queue("default", quotas={"h100": {"gpus": Quota(1)}})})
    for name in ("a", "b"):
        scheduler.submit(job(name, Ask(gpus=1)))
    scheduler.plan(0.0)
    assert scheduler.why("b", 0.0).message.startswith("needs 1 GPU of h100; queue default may have 0 more now")
