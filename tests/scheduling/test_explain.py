"""The words in which the scheduler says why something waits."""

from __future__ import annotations

from dataclasses import replace

from penstock.base.reasons import Reason
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Reservation, Topology, Wait, Workload


def node(name: str, cpus: float = 4, gpus: int = 0, path: tuple[str, ...] = ()) -> NodeState:
    return NodeState(name, cpus, 8 << 30, tuple(Gpu(f"g{at}") for at in range(gpus)), topology=path)


def job(name: str, ask: Ask, count: int = 1, topology: Topology | None = None) -> Workload:
    return Workload(name, name, 0.0, (Part(count, ask),), topology=topology, seq=len(name), limit_s=600.0)


def why(nodes: list[NodeState], *jobs: Workload, setup: Setup | None = None) -> Wait:
    """Of the last one, after a cycle."""
    scheduler = Scheduler(setup or Setup())
    for each in nodes:
        scheduler.put_node(each)
    for each_job in jobs:
        scheduler.submit(each_job)
    scheduler.plan(0.0)
    return scheduler.why(jobs[-1].id, 0.0)


def test_a_gang_that_has_not_room_yet() -> None:
    wait = why([node("a"), node("b")], job("r", Ask(cpus=3)), job("gang", Ask(cpus=4), 2))
    assert wait.message == "needs 2 nodes with 4 CPUs each; 1 of 2 such nodes has room now"
    assert wait.reason is Reason.WaitingForResources
    assert wait.helps == ("waits for running jobs to end",)


def test_more_than_any_node_has() -> None:
    wait = why([node("a", gpus=8)], job("huge", Ask(cpus=1, gpus=16)))
    assert wait.reason is Reason.Unschedulable
    assert wait.message.startswith("needs 1 CPU, 16 GPUs; no node of the fleet could ever hold that")
    assert wait.helps


def test_a_cordoned_node_is_named_with_what_helps() -> None:
    wait = why([replace(node("a"), open=False, why_closed="cordoned by ann")], job("j", Ask(cpus=1)))
    assert "a is cordoned by ann" in wait.message
    assert wait.helps == ("`penstock uncordon a`",)


def test_the_best_rack_has_too_few() -> None:
    nodes = [node(f"n{i}", gpus=8, path=("block-1", f"rack-{i // 2}")) for i in range(4)]
    more = [job("a", Ask(gpus=8)), job("bb", Ask(gpus=8)), job("ccc", Ask(gpus=4))]
    wait = why(nodes, *more, job("large", Ask(gpus=8), 2, Topology("rack", required=True)))
    assert wait.message == "needs 2 nodes with 8 GPUs each in one rack; the best rack, block-1/rack-1, has 12 GPUs free"


def test_no_rack_is_that_large() -> None:
    nodes = [node(f"n{i}", gpus=8, path=("block-1", f"rack-{i}")) for i in range(2)]
    wait = why(nodes, job("large", Ask(gpus=8), 2, Topology("rack", required=True)))
    assert wait.reason is Reason.Unschedulable
    assert wait.message.endswith("in one rack; no rack of the fleet is that large")


def test_quota_with_its_figures() -> None:
    queue = Queue("default", quotas={"default": {"gpus": Quota(4)}})
    setup = Setup(queues={"default": queue})
    wait = why([node("a", gpus=8)], job("x", Ask(gpus=3)), job("xx", Ask(gpus=2)), setup=setup)
    assert wait.reason is Reason.QuotaExceeded
    assert wait.message == (
        "needs 2 GPUs of default; queue default may have 1 more now (it uses 3, its nominal quota is 4)"
    )


def test_behind_the_head() -> None:
    wait = why([node("a")], job("r", Ask(cpus=2)), job("head", Ask(cpus=4)), job("little", Ask(cpus=1)))
    assert (wait.reason, wait.message) == (
        Reason.WaitingBehind,
        "waits behind head, which is first in line and needs 4 CPUs",
    )


def test_what_is_promised_and_what_is_reserved() -> None:
    policy = Policy(backfill="easy")
    wait = why(
        [node("a", gpus=4)], job("r", Ask(gpus=3)), job("head", Ask(gpus=4)), replace(job("little", Ask(gpus=1)), limit_s=None),
        setup=Setup(policy=policy),
    )  # fmt: skip
    assert wait.message.endswith("; 4 GPUs are promised to job head at 00:10")
    assert wait.helps[-1].startswith("a time limit: ")
    soon = Reservation("disks", 60.0, 120.0, frozenset({"a"}), maintenance=True)
    wait = why([node("a")], job("j", Ask(cpus=1)), setup=Setup(reservations=(soon,)))
    assert wait.message.endswith("; a is kept from 00:01 to 00:02 by maintenance disks")


def test_behind_a_higher_priority() -> None:
    head = replace(job("head", Ask(cpus=4)), priority=5)
    wait = why([node("a")], replace(job("r", Ask(cpus=2)), priority=9), head, job("little", Ask(cpus=1)))
    assert (
        wait.message == "waits behind head, which is first in line by its priority (5, its own is 0) and needs 4 CPUs"
    )


def test_without_a_limit_nothing_is_backfilled() -> None:
    setup = Setup(policy=Policy(backfill="easy"))
    made = Scheduler(setup)
    made.put_node(node("a", gpus=4))
    made.put_node(node("b", gpus=2))
    for each in (job("r", Ask(gpus=4)), job("head", Ask(gpus=4))):
        made.submit(each)
    made.plan(0.0)
    made.submit(replace(job("endless", Ask(gpus=4)), limit_s=None))
    made.put_node(node("c", gpus=4))  # there is room until the next decision
    wait = made.why("endless", 0.0)
    assert wait.message == "waits behind head, which is first in line and needs 4 GPUs"
    assert wait.helps == ("a time limit: with one it may start before its turn, where it delays nobody (backfill)",)


def test_whose_turn_it_is_by_fair_share() -> None:
    setup = Setup(policy=Policy(order="fairshare"))
    ann, bob = (replace(job(f"{user}-runs", Ask(cpus=cpus)), user=user) for user, cpus in (("ann", 1), ("bob", 2)))
    first, second = (
        replace(job(f"{user}-waits", Ask(cpus=cpus)), user=user) for user, cpus in (("ann", 3), ("bob", 1))
    )
    wait = why([node("a")], ann, bob, first, second, setup=setup)
    assert wait.message == (
        "waits behind ann-waits, which is first in line: by fair share it is the turn of ann "
        "(12% of the fleet, lately and by its weight; bob: 25%) and needs 3 CPUs"
    )


def test_who_has_still_to_leave() -> None:
    setup = Setup(policy=Policy(preemption=True))
    made = Scheduler(setup)
    made.put_node(node("a", gpus=4))
    for name in ("low-1", "low-22"):
        made.submit(replace(job(name, Ask(gpus=2)), grace_s=90.0))
    made.plan(0.0)
    made.submit(replace(job("high", Ask(gpus=4)), priority=9))
    made.plan(30.0)
    assert made.why("high", 31.0).message == (
        "2 jobs evicted for it have still to leave: low-1 (by 00:02 at the latest), low-22 (by 00:02 at the latest)"
    )


def test_free_gpus_that_are_scattered() -> None:
    nodes = [node(f"n{n}", gpus=4) for n in range(3)]
    setup = Setup(policy=Policy(placement="spread"))
    wait = why(nodes, *(job(f"r{n}", Ask(gpus=2)) for n in range(3)), job("large", Ask(gpus=4)), setup=setup)
    assert wait.message == (
        "needs 4 GPUs; 0 of 3 such nodes have room now; the freest, n0, has 2 of 4 GPUs free; "
        "6 GPUs are free in all, on 3 nodes, too few on each"
    )


def test_the_best_rack_and_what_is_promised_of_it() -> None:
    nodes = [node(f"n{i}", gpus=8, path=("block-1", f"rack-{i // 2}")) for i in range(2)]
    setup = Setup(policy=Policy(backfill="conservative"))
    head = replace(job("x", Ask(gpus=8)), priority=1)
    wait = why(
        nodes, replace(job("a", Ask(gpus=4)), priority=3), replace(job("bb", Ask(gpus=8)), priority=2), head, job("large", Ask(gpus=8), 2, Topology("rack", required=True)),
        setup=setup,
    )  # fmt: skip
    assert wait.message == (
        "needs 2 nodes with 8 GPUs each in one rack; the best rack, block-1/rack-0, has 4 GPUs free; "
        "8 GPUs are promised to job x at 00:10"
    )


def test_a_day_is_told_where_it_is_not_soon() -> None:
    late = Reservation("power", 2 * 86400.0, 3 * 86400.0, frozenset({"a"}), maintenance=True)
    wait = why([node("a")], replace(job("j", Ask(cpus=1)), limit_s=None), setup=Setup(reservations=(late,)))
    assert wait.message.endswith(
        "; a is kept from 03 Jan 00:00 to 04 Jan 00:00 by maintenance power, and it has no time limit"
    )


def test_a_quota_that_others_have_borrowed() -> None:
    own, other = (Queue(name, "all", {"default": {"gpus": Quota(4)}}) for name in ("default", "other"))
    setup = Setup(queues={"default": own, "other": other}, cohorts={"all": Cohort("all")})
    borrower = replace(job("b", Ask(gpus=6)), queue="other", preemptible=False)
    wait = why([node("a", gpus=8)], borrower, job("mine", Ask(gpus=4)), setup=setup)
    assert wait.message == (
        "needs 4 GPUs of default; queue default may have 2 more now (it uses 0, its nominal quota is 4); "
        "borrowed by others: 2 by other"
    )


def test_a_queue_that_takes_no_long_ones() -> None:
    setup = Setup(queues={"default": Queue("default", max_limit_s=300.0)})
    wait = why([node("a")], job("long", Ask(cpus=1)), setup=setup)
    assert wait.message == "its time limit is 10m; queue default takes none above 5m"
    assert (wait.reason, wait.helps) == (
        Reason.Unschedulable,
        ("state a time limit of at most 5m, or use another queue",),
    )
    endless = why([node("a")], replace(job("endless", Ask(cpus=1)), limit_s=None), setup=setup)
    assert endless.message == "has no time limit; queue default takes none above 5m"


def test_who_keeps_to_the_queues_limit_passes_one_that_does_not() -> None:
    scheduler = Scheduler(Setup(queues={"default": Queue("default", max_limit_s=600.0)}))
    scheduler.put_node(node("a"))
    scheduler.submit(replace(job("first", Ask(cpus=1)), limit_s=601.0))
    scheduler.submit(job("second", Ask(cpus=1)))
    assert [admit.id for admit in scheduler.plan(0.0).admit] == ["second"]


def test_behind_one_of_its_own_line_that_lacks_quota() -> None:
    setup = Setup(Policy(), {"default": Queue("default", quotas={"default": {"gpus": Quota(4.0)}})})
    wait = why(
        [node("a", gpus=8)],
        job("running", Ask(cpus=1, gpus=2)),
        job("first-in-line", Ask(cpus=1, gpus=4)),
        job("the-next-in-line", Ask(cpus=1, gpus=2)),
        setup=setup,
    )
    assert (
        wait.message
        == "waits behind first-in-line, which is first in the line of queue default, needs 1 CPU, 4 GPUs and lacks quota"
    )
    assert wait.reason is Reason.WaitingBehind
