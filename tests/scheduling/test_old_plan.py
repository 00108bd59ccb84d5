"""Invariants of the placing planner, and the words in which it explains itself."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.scheduling.old.plan import place, plan
from penstock.scheduling.old.state import NodeState, Workload

GIB = 1 << 30


def node(name: str, cpus: float = 4, memory: int = 8 * GIB, gpus: int = 0, **other: object) -> NodeState:
    ids = tuple((f"{name}-g{i}", "H100") for i in range(gpus))
    base = NodeState(name, cpus, memory, gpus, cpus, memory, ids, tuple(m for _, m in ids))
    return replace(base, **other)  # type: ignore[arg-type]


def job(
    name: str, nodes: int = 1, cpus: float = 1, memory: int = 0, gpus: int = 0, model: str | None = None
) -> Workload:
    return Workload(f"id-{name}", name, 0.0, nodes, cpus, memory, gpus, model)


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeState]:
    fleet = []
    for i in range(draw(st.integers(0, 6))):
        cpus, gpus = draw(st.sampled_from([1, 2, 4, 0.5])), draw(st.integers(0, 4))
        whole = node(f"n{i}", cpus, draw(st.integers(0, 8)) * GIB, gpus, open=draw(st.booleans()))
        taken = draw(st.integers(0, gpus))
        fleet.append(
            replace(whole, free_gpus=whole.free_gpus[taken:], free_cpus=cpus * draw(st.sampled_from([0, 0.5, 1])))
        )
    return fleet


workloads = st.lists(
    st.builds(
        job,
        st.uuids().map(str),
        st.integers(1, 4),
        st.sampled_from([0.1, 0.5, 1, 2, 8]),
        st.sampled_from([0, GIB, 4 * GIB]),
        st.integers(0, 3),
        st.sampled_from([None, "H100", "A100"]),
    ),
    max_size=12,
)


@given(fleets(), workloads)
def test_nothing_is_ever_given_twice_or_to_a_closed_node(fleet: list[NodeState], line: list[Workload]) -> None:
    decision = plan(line, fleet)
    by_id = {w.job_id: w for w in line}
    nodes = {n.name: n for n in fleet}
    cpus: dict[str, float] = defaultdict(float)
    memory: dict[str, int] = defaultdict(int)
    gpus: dict[str, list[str]] = defaultdict(list)
    for admit in decision.admit:
        asked = by_id[admit.job_id]
        assert len(admit.shares) == asked.nodes == len({share.node for share in admit.shares})
        for share in admit.shares:
            assert nodes[share.node].open
            assert len(share.gpus) == asked.gpus
            cpus[share.node] += asked.cpus
            memory[share.node] += asked.memory
            gpus[share.node] += share.gpus
    for name, state in nodes.items():
        assert cpus[name] <= state.free_cpus + 1e-6
        assert memory[name] <= state.free_memory
        assert len(gpus[name]) == len(set(gpus[name]))
        assert set(gpus[name]) <= {gpu for gpu, _ in state.free_gpus}


@given(fleets(), workloads)
def test_first_come_first_served(fleet: list[NodeState], line: list[Workload]) -> None:
    """Nobody passes the head that blocks; who is passed over could never run on this fleet."""
    decision = plan(line, fleet)
    told = [a.job_id for a in decision.admit] + [w.job_id for w in decision.wait]
    read = line[: len(told)]
    assert sorted(told) == sorted(w.job_id for w in read)
    if decision.blocked_by is not None:
        assert read[-1].name == decision.blocked_by
        assert decision.wait[-1].reason is Reason.WaitingForResources
        blocked = decision.wait[:-1]
    else:
        assert len(told) == len(line)
        blocked = decision.wait
    assert all(w.reason is Reason.Unschedulable for w in blocked)


@given(fleets(), workloads)
def test_deterministic_and_always_explained(fleet: list[NodeState], line: list[Workload]) -> None:
    one, two = plan(line, fleet), plan(line, fleet)
    assert one == two
    assert all((w.message and w.helps) or w.reason is Reason.WaitingForResources for w in one.wait)


@given(fleets(), workloads)
def test_the_unschedulable_would_not_fit_an_empty_fleet(fleet: list[NodeState], line: list[Workload]) -> None:
    empty = [node(n.name, n.cpus, n.memory, n.gpus) for n in fleet]
    by_id = {w.job_id: w for w in line}
    for wait in plan(line, fleet).wait:
        fits = place(by_id[wait.job_id], empty) is not None
        assert fits == (wait.reason is not Reason.Unschedulable)


def test_ten_tenths_of_a_core_fit_one_core() -> None:
    assert len(plan([job(f"j{i}", cpus=0.1) for i in range(11)], [node("a", cpus=1)]).admit) == 10


def test_packs_the_fullest_node_first() -> None:
    fleet = [node("empty", cpus=4), node("half", cpus=4, free_cpus=2.0)]
    assert plan([job("j")], fleet).admit[0].shares[0].node == "half"


def test_a_gang_waits_whole_and_says_what_it_needs() -> None:
    decision = plan([job("big", nodes=2, cpus=4), job("small")], [node("a"), node("b", free_cpus=1.0)])
    assert decision.admit == ()
    assert decision.blocked_by == "big"
    assert decision.wait[0].message == "needs 2 nodes with 4 CPUs each; 1 of 2 such nodes has room now"


def test_a_job_too_large_for_the_fleet_blocks_nobody() -> None:
    decision = plan([job("huge", gpus=16), job("small")], [node("a", gpus=8)])
    assert [a.job_id for a in decision.admit] == ["id-small"]
    assert decision.wait[0].reason is Reason.Unschedulable
    assert "needs 1 CPU, 16 GPUs; no node of the fleet could ever hold that" in decision.wait[0].message


def test_a_cordoned_node_is_named_with_what_helps() -> None:
    wait = plan([job("j")], [node("a", open=False, why_closed="cordoned")]).wait[0]
    assert "a is cordoned" in wait.message
    assert wait.helps == ("`penstock uncordon a`",)
