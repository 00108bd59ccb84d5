"""Promises: kept, never moved later, and what may overtake beside them. By hand, and on random fleets and loads."""

from __future__ import annotations

import math
from dataclasses import replace
from heapq import heappop, heappush

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import (
    Ask,
    Decision,
    Gpu,
    NodeState,
    Part,
    Policy,
    Reservation,
    Topology,
    Workload,
)
from penstock.scheduling.timeline import OVERRUN_S

GIB = 1 << 30


def node(name: str, gpus: int = 8, *, model: str = "", mig: tuple[str, ...] = (), rack: str = "") -> NodeState:
    devices = tuple(Gpu(f"{name}-{n}", model, mig if n == 0 else ()) for n in range(gpus))
    return NodeState(name, 16.0, 64 * GIB, devices, topology=(rack,) if rack else ())


def job(
    id_: str,
    gpus: int,
    limit: float | None,
    *,
    nodes: int = 1,
    at: float = 0.0,
    priority: int = 0,
    queue: str = "default",
) -> Workload:
    parts = (Part(nodes, Ask(gpus=gpus)),)
    return Workload(
        id_,
        id_,
        at,
        parts,
        queue,
        priority=priority,
        limit_s=limit,
        seq=int(id_.strip("abcdefghijklmnopqrstuvwxyz") or 0),
    )


def scheduler(backfill: str = "easy", nodes: int = 2, gpus: int = 8, **policy: object) -> Scheduler:
    made = Scheduler(Setup(policy=Policy(backfill=backfill, **policy)))  # type: ignore[arg-type]  # by name
    for n in range(nodes):
        made.put_node(node(f"n{n}", gpus))
    return made


def started(decision: Decision) -> list[str]:
    return [admit.id for admit in decision.admit]


def promised(decision: Decision) -> dict[str, float]:
    return {promise.id: promise.start for promise in decision.promises}


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_the_head_is_promised_the_end_of_what_is_in_its_way(backfill: str) -> None:
    view = scheduler(backfill)
    view.submit(job("a1", 8, 100.0))
    view.submit(job("a2", 4, 50.0))
    view.submit(job("head3", 8, 10.0, nodes=2))
    decision = view.plan(0.0)
    assert started(decision) == ["a1", "a2"]
    assert promised(decision) == {"head3": 100.0}
    assert [share.node for share in decision.promises[0].shares] == ["n0", "n1"]


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_only_what_ends_before_the_promise_overtakes(backfill: str) -> None:
    view = scheduler(backfill)
    view.submit(job("a1", 8, 100.0))
    view.submit(job("head2", 8, 10.0, nodes=2))
    view.submit(job("long3", 4, 101.0))
    view.submit(job("endless4", 4, None))
    view.submit(job("short5", 4, 100.0))
    decision = view.plan(0.0)
    assert started(decision) == ["a1", "short5"]
    assert decision.admit[1].backfilled and not decision.admit[0].backfilled


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_what_leaves_the_promised_room_alone_overtakes_however_long(backfill: str) -> None:
    view = scheduler(backfill)
    view.submit(job("a1", 8, 100.0))
    view.submit(job("b2", 2, 100.0))
    view.submit(job("head3", 8, 10.0))  # on n0 or n1 at 100
    view.submit(job("endless4", 6, None))
    decision = view.plan(0.0)
    assert started(decision) == ["a1", "b2", "endless4"]
    assert promised(decision) == {"head3": 100.0}
    view.end("a1", 100.0)
    assert started(view.plan(100.0)) == ["head3"]


def test_conservative_promises_each_of_them() -> None:
    view = scheduler("conservative", nodes=1)
    for n, limit in enumerate([100.0, 30.0, 20.0]):
        view.submit(job(f"j{n}", 8, limit))
    assert promised(view.plan(0.0)) == {"j1": 100.0, "j2": 130.0}
    view.end("j0", 60.0)
    decision = view.plan(60.0)
    assert (started(decision), promised(decision)) == (["j1"], {"j2": 90.0})


def test_conservative_places_beside_promises_not_only_behind_them() -> None:
    view = scheduler("conservative", nodes=1)
    view.submit(job("a1", 4, 100.0))
    view.submit(job("b2", 8, 50.0))  # at 100
    view.submit(job("c3", 4, 200.0))  # would run into b2: at 150
    view.submit(job("d4", 4, 90.0))  # fits before b2
    decision = view.plan(0.0)
    assert started(decision) == ["a1", "d4"]
    assert promised(decision) == {"b2": 100.0, "c3": 150.0}


def test_nothing_is_promised_behind_endless_work() -> None:
    view = scheduler(nodes=1)
    view.submit(job("a1", 8, None))
    view.submit(job("b2", 8, 10.0))
    decision = view.plan(0.0)
    assert started(decision) == ["a1"] and not decision.promises and decision.blocked_by == "b2"


def test_what_overran_is_taken_to_end_within_a_moment() -> None:
    view = scheduler(nodes=1)
    view.submit(job("a1", 8, 10.0))
    view.submit(job("b2", 8, 10.0))
    view.plan(0.0)
    assert promised(view.plan(10.0)) == {"b2": 11.0}
    assert view.timeline.notes["b2"] == "it fell due, and the room was not there"
    assert promised(view.plan(11.0)) == {"b2": 12.0}
    view.end("a1", 11.5)
    assert started(view.plan(11.5)) == ["b2"]


def test_a_promise_whose_node_is_lost_is_made_anew_and_says_so() -> None:
    view = scheduler(nodes=2)
    view.submit(job("a1", 8, 100.0))
    view.submit(job("b2", 8, 200.0))
    view.submit(job("c3", 8, 10.0))
    assert promised(view.plan(0.0)) == {"c3": 100.0}
    view.drop_node("n0")
    view.end("a1", 5.0)
    assert promised(view.plan(5.0)) == {"c3": 200.0}
    assert view.timeline.notes["c3"] == "n0 is no longer there for it"


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_a_higher_priority_takes_a_promised_place(backfill: str) -> None:
    view = scheduler(backfill, nodes=1)
    view.submit(job("a1", 8, 100.0))
    view.submit(job("b2", 8, 10.0))
    assert promised(view.plan(0.0)) == {"b2": 100.0}
    view.submit(job("c3", 8, 10.0, priority=5, at=1.0))
    decision = view.plan(1.0)
    assert promised(decision)["c3"] == 100.0
    assert promised(decision).get("b2") == (110.0 if backfill == "conservative" else None)


def test_a_shared_gpu_is_free_when_the_last_has_left() -> None:
    view = scheduler(nodes=1, gpus=1)
    for n, limit in enumerate([50.0, 80.0]):
        view.submit(Workload(f"s{n}", f"s{n}", 0.0, (Part(1, Ask(gpu_milli=400)),), limit_s=limit, seq=n))
    view.submit(job("w3", 1, 10.0))
    assert promised(view.plan(0.0)) == {"w3": 80.0}


def test_mig_instances_are_counted_by_profile() -> None:
    view = scheduler(nodes=0)
    view.put_node(node("n0", 2, mig=("3g.40gb", "3g.40gb")))
    ask = Ask(gpus=1, mig="3g.40gb")
    for n, limit in enumerate([50.0, 80.0, 10.0]):
        view.submit(Workload(f"m{n}", f"m{n}", 0.0, (Part(1, ask),), limit_s=limit, seq=n))
    view.submit(job("w3", 1, None))
    decision = view.plan(0.0)
    assert started(decision) == ["m0", "m1", "w3"]
    assert promised(decision) == {"m2": 50.0}


def test_a_required_rack_is_promised_whole() -> None:
    view = scheduler(nodes=0)
    for n, rack in enumerate(["r1", "r1", "r2", "r2"]):
        view.put_node(node(f"n{n}", rack=rack))
    for n, limit in enumerate([10.0, 100.0, 30.0, 40.0]):
        view.submit(job(f"a{n}", 8, limit))
    parts = (Part(2, Ask(gpus=8)),)
    view.submit(Workload("t9", "t9", 0.0, parts, topology=Topology("rack", required=True), limit_s=5.0, seq=9))
    decision = view.plan(0.0)
    assert promised(decision) == {"t9": 40.0}
    assert {share.node for share in decision.promises[0].shares} == {"n2", "n3"}


def test_a_promise_books_its_quota() -> None:
    """Who overtakes takes no quota that the head needs when its time comes."""
    quotas = {"default": {"gpus": Quota(16.0)}}
    setup = Setup(
        Policy(backfill="easy"),
        {name: Queue(name, "all", {"default": {"gpus": Quota(0.0)}}, preempt_within_queue="never") for name in "ab"},
        {"all": Cohort("all", None, quotas)},
    )
    view = Scheduler(setup)
    view.put_node(node("n0"))
    view.submit(job("a1", 8, 100.0, queue="a"))
    assert started(view.plan(0.0)) == ["a1"]
    for n in range(1, 3):
        view.put_node(node(f"n{n}", 4))
    view.submit(job("h3", 8, 50.0, queue="a"))
    view.submit(job("y4", 4, 500.0, queue="b"))
    view.submit(job("z5", 4, 90.0, queue="b"))
    decision = view.plan(0.0)
    assert promised(decision) == {"h3": 100.0}
    assert started(decision) == ["z5"], "8 of 16 are held and 8 booked: only what ends before may use those"


def test_who_lacks_quota_is_promised_nothing_and_blocks_nobody() -> None:
    setup = Setup(
        Policy(backfill="conservative"),
        {"a": Queue("a", None, {"default": {"gpus": Quota(4.0)}}), "b": Queue("b")},
    )
    view = Scheduler(setup)
    view.put_node(node("n0"))
    view.submit(job("a1", 4, 100.0, queue="a"))
    view.submit(job("a2", 4, 100.0, queue="a"))
    view.submit(job("b3", 4, None, queue="b"))
    decision = view.plan(0.0)
    assert started(decision) == ["a1", "b3"] and not decision.promises


# -- any fleet, any load

times = st.integers(0, 60).map(float)
loads = st.lists(
    st.tuples(
        st.integers(0, 80),  # arrives
        st.lists(
            st.tuples(st.integers(1, 3), st.integers(0, 4), st.sampled_from([0.0, 3.0, 9.0])), min_size=1, max_size=2
        ),
        st.sampled_from([1, 5, 7, 20, 50]),  # runs at most
        st.sampled_from([0.2, 1.0, 1.0]),  # and really, as a fraction
        st.sampled_from(["whole", "whole", "whole", "share", "mig", "model"]),
    ),
    min_size=1,
    max_size=25,
)
fleets = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["A", "B"]), st.booleans()), min_size=1, max_size=4)


def _ask(gpus: int, cpus: float, kind: str) -> Ask:
    if kind == "share":
        return Ask(cpus, 0, 0, 400)
    if kind == "mig":
        return Ask(cpus, 0, min(gpus, 2) or 1, mig="3g.40gb")
    if kind == "model":
        return Ask(cpus, 0, gpus or 1, gpu_models=("A",))
    return Ask(cpus, 0, gpus)


quotas = st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 4)), min_size=1, max_size=3)


class Run:
    """An event loop over the real scheduler, which holds every promise against what happens."""

    def __init__(self, setup: Setup, fleet: list[NodeState]) -> None:
        self.view = Scheduler(setup)
        for each in fleet:
            self.view.put_node(each)
        self.told: dict[str, float] = {}
        self.starts: dict[str, float] = {}
        self.placed: dict[str, tuple[str, ...]] = {}
        self.firm = True
        self.order: dict[str, int] = {}
        self.outranked: dict[str, bool] = {}  # by whose promise: whether one that comes before it started since
        self.real: dict[str, float] = {}
        self.heap: list[tuple[float, int, str]] = []
        self.arrivals: dict[str, Workload] = {}

    def go(self, load: list[tuple[Workload, float]]) -> None:
        for n, (w, real) in enumerate(load):
            self.real[w.id] = real
            self.arrivals[w.id] = w
            heappush(self.heap, (w.queued_at, n, w.id))
        while self.heap or self.view.wake_at() < math.inf:
            now = min(self.heap[0][0] if self.heap else math.inf, self.view.wake_at())
            while self.heap and self.heap[0][0] <= now:
                _, kind, id_ = heappop(self.heap)
                if kind < 0:
                    self.view.end(id_, now)
                else:
                    self.view.submit(self.arrivals[id_])
            self.cycle(now)

    def cycle(self, now: float) -> None:
        decision = self.view.plan(now)
        for admit in decision.admit:
            self.starts[admit.id] = now
            self.placed[admit.id] = tuple(share.node for share in admit.shares)
            told = None if self.outranked.get(admit.id) else self.told.get(admit.id)
            self._comes_before(admit.id)
            if self.firm and told is not None:
                assert now <= told, f"{admit.id} was promised {told}, started at {now}"
            heappush(self.heap, (now + self.real[admit.id], -1, admit.id))
        for promise in decision.promises:
            if promise.id not in self.told:
                self._comes_before(promise.id)
        for promise in decision.promises:
            before = None if self.outranked.get(promise.id) else self.told.get(promise.id)
            assert promise.start > now
            if self.firm and before is not None:
                assert promise.start <= before, f"{promise.id}: {before} became {promise.start} at {now}"
            self.told[promise.id] = promise.start
            self.outranked[promise.id] = False

    def _comes_before(self, id_: str) -> None:
        """It lacked quota until now, so promises were made without it."""
        for other in self.told.keys() - self.starts.keys() if self.order else ():
            self.outranked[other] |= self.order[id_] < self.order[other]


def _load(drawn: list[tuple[int, list[tuple[int, int, float]], int, float, str]]) -> list[tuple[Workload, float]]:
    found = []
    for n, (at, parts, limit, fraction, kind) in enumerate(sorted(drawn, key=lambda row: row[0])):
        asked = tuple(Part(count, _ask(gpus, cpus, kind)) for count, gpus, cpus in parts)
        w = Workload(f"w{n}", f"w{n}", float(at), asked, limit_s=float(limit), seq=n)
        found.append((w, max(1.0, float(round(limit * fraction)))))
    return found


def _fleet(drawn: list[tuple[int, str, bool]]) -> list[NodeState]:
    return [
        node(f"n{n}", gpus, model=model, mig=("3g.40gb", "3g.40gb") if cut else ())
        for n, (gpus, model, cut) in enumerate(drawn)
    ]


@given(fleets, loads, st.sampled_from(["easy", "conservative"]))
def test_a_promise_is_never_moved_later(
    fleet: list[tuple[int, str, bool]],
    drawn: list[tuple[int, list[tuple[int, int, float]], int, float, str]],
    backfill: str,
) -> None:
    """Of the head under EASY, of everybody under conservative, while limits are kept and the order is of arrival."""
    run = Run(Setup(policy=Policy(backfill=backfill)), _fleet(fleet))
    load = _load(drawn)
    run.go(load)
    left = set(run.view.lines.entries)
    assert not left, "whatever can run at all runs at last"
    assert run.starts.keys() | run.view.aside.keys() == {w.id for w, _ in load}
    event(f"promises: {min(len(run.told), 5)}")


@given(
    fleets,
    loads,
    quotas,
    st.lists(st.integers(0, 2), min_size=25, max_size=25),
    st.sampled_from(["easy", "conservative"]),
)
def test_nor_where_quotas_are_short(
    fleet: list[tuple[int, str, bool]],
    drawn: list[tuple[int, list[tuple[int, int, float]], int, float, str]],
    limits: list[tuple[int, int | None]],
    whose: list[int],
    backfill: str,
) -> None:
    """Whoever overtakes may use a promise's quota until it is due; only who comes before it may make it later."""
    queues = {
        f"q{n}": Queue(
            f"q{n}",
            "all",
            {"default": {"gpus": Quota(float(nominal), borrowing_limit=borrow)}},
            reclaim_within_cohort="never",
        )
        for n, (nominal, borrow) in enumerate(limits)
    }
    run = Run(Setup(Policy(backfill=backfill), queues, {"all": Cohort("all")}), _fleet(fleet))
    load = [(replace(w, queue=f"q{whose[w.seq] % len(limits)}"), real) for w, real in _load(drawn)]
    run.order = {w.id: w.seq for w, _ in load}
    run.go(load)
    assert run.starts.keys() | run.view.aside.keys() == {w.id for w, _ in load}
    event(f"promises: {min(len(run.told), 5)}")


@given(
    fleets,
    loads,
    st.sampled_from(["fairshare", "sjf", "multifactor"]),
    st.sampled_from(["easy", "conservative", "replan"]),
)
def test_every_order_ends_with_everybody_served(
    fleet: list[tuple[int, str, bool]],
    drawn: list[tuple[int, list[tuple[int, int, float]], int, float, str]],
    order: str,
    backfill: str,
) -> None:
    run = Run(Setup(policy=Policy(order=order, backfill=backfill, depth=3)), _fleet(fleet))
    run.firm = order == "fairshare" and backfill == "conservative"
    load = _load(drawn)
    run.go(load)
    assert not run.view.lines.entries
    assert run.starts.keys() | run.view.aside.keys() == {w.id for w, _ in load}


@given(
    fleets,
    loads,
    st.lists(st.tuples(times, st.integers(1, 30), st.integers(0, 15), st.booleans()), max_size=3),
    st.sampled_from(["none", "easy", "conservative"]),
)
def test_nothing_overlaps_a_window(
    fleet: list[tuple[int, str, bool]],
    drawn: list[tuple[int, list[tuple[int, int, float]], int, float, str]],
    windows: list[tuple[float, int, int, bool]],
    backfill: str,
) -> None:
    """Nor is anything promised a time at which it would."""
    known = tuple(
        Reservation(
            f"r{n}", start, start + length, frozenset(f"n{i}" for i in range(len(fleet)) if nodes >> i & 1), maintenance
        )
        for n, (start, length, nodes, maintenance) in enumerate(windows)
    )
    run = Run(Setup(policy=Policy(backfill=backfill), reservations=known), _fleet(fleet))
    load = _load(drawn)
    run.go(load)
    assert not run.view.lines.entries
    for w, _ in load:
        start = run.starts.get(w.id)
        if start is not None and w.limit_s is not None:
            for one in known:
                if one.start < start + w.limit_s and start < one.end:
                    assert not one.nodes & set(run.placed[w.id])


@given(fleets, loads)
def test_a_big_job_starts_in_bounded_time(
    fleet: list[tuple[int, str, bool]], drawn: list[tuple[int, list[tuple[int, int, float]], int, float, str]]
) -> None:
    """Whoever is first in line is promised a time before the last of what is held ends; then the next is first."""
    nodes = [node(f"n{n}", gpus) for n, (gpus, _, _) in enumerate(fleet)]
    big = Workload(
        "big", "big", 10.0, (Part(len(nodes), Ask(gpus=min(len(each.gpus) for each in nodes))),), limit_s=9.0
    )
    load = [(w, real) for w, real in _load(drawn) if w.parts[0].ask.mig == "" and not w.parts[0].ask.gpu_models]
    run = Run(Setup(policy=Policy(backfill="easy")), nodes)
    run.go([*load, (big, 9.0)])
    ahead = sum(1 for w, _ in load if w.queued_at <= big.queued_at and w.id in run.starts)
    assert run.starts["big"] <= big.queued_at + (ahead + 1) * (50.0 + OVERRUN_S)


def test_replan_promises_anew_at_most_so_often() -> None:
    """As Slurm does: who comes later and counts more takes the place that another was promised."""
    view = Scheduler(Setup(policy=Policy(backfill="replan", replan_s=30.0)))
    view.put_node(node("n0", 4))
    view.submit(job("runs", 3, limit=100.0))
    view.plan(0.0)
    view.submit(job("low", 4, limit=50.0))
    view.plan(1.0)
    low = view.promise("low")
    assert low is not None
    assert low.start == 100.0
    view.submit(job("high", 4, limit=70.0, priority=5))
    view.submit(job("short", 1, limit=20.0))
    assert not view.plan(2.0).admit, "the next look is due thirty seconds after the last"
    assert view.wake_at() == 31.0
    assert [admit.id for admit in view.plan(31.0).admit] == ["short"]
    high, low = view.promise("high"), view.promise("low")
    assert high is not None
    assert low is not None
    assert (high.start, low.start) == (100.0, 170.0)
