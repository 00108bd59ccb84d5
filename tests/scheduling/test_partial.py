"""Gangs that take fewer groups, and grow again: when, with how many, and never to and fro."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.scheduling import partial
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Admit, Ask, Gpu, Held, NodeState, Part, Policy, Workload

GPUS = 4
ASK = Ask(gpus=GPUS)


def node(number: int, *, is_open: bool = True) -> NodeState:
    return NodeState(f"n{number}", gpus=tuple(Gpu(f"{number}-{at}") for at in range(GPUS)), open=is_open)


def fleet(count: int, policy: Policy | None = None) -> Scheduler:
    scheduler = Scheduler(Setup(policy=policy or Policy()))
    for number in range(count):
        scheduler.put_node(node(number))
    return scheduler


def gang(name: str, most: int, least: int = 0, *, seq: int = 0, shrink_at: float = 30.0) -> Workload:
    return Workload(
        name, name, 0.0, (Part(most, ASK),), seq=seq, least=least, most=most, shrink_at=shrink_at, grow_after_s=60.0
    )


def sizes(admits: tuple[Admit, ...]) -> dict[str, int]:
    return {admit.id: len(admit.shares) for admit in admits}


def test_it_waits_for_all_for_a_while_and_then_takes_what_there_is() -> None:
    scheduler = fleet(4)
    scheduler.submit(gang("other", 2))
    scheduler.submit(gang("elastic", 4, 1, seq=1))
    assert sizes(scheduler.plan(0.0).admit) == {"other": 2}
    assert scheduler.wake_at() == 30.0
    assert scheduler.plan(29.0).admit == ()
    assert sizes(scheduler.plan(30.0).admit) == {"elastic": 2}


def test_all_at_once_where_there_is_room() -> None:
    scheduler = fleet(4)
    scheduler.submit(gang("elastic", 4, 1))
    assert sizes(scheduler.plan(0.0).admit) == {"elastic": 4}
    assert not scheduler.partial.small


def test_never_fewer_than_its_least() -> None:
    scheduler = fleet(4)
    scheduler.submit(gang("other", 3))
    scheduler.submit(gang("elastic", 4, 2, seq=1, shrink_at=0.0))
    assert sizes(scheduler.plan(0.0).admit) == {"other": 3}
    assert "it takes 2 to 4" in scheduler.why("elastic", 0.0).message


def test_it_stands_in_line_though_the_fleet_could_never_hold_all() -> None:
    scheduler = fleet(2)
    scheduler.submit(gang("elastic", 4, 2, shrink_at=0.0))
    assert sizes(scheduler.plan(0.0).admit) == {"elastic": 2}


def small(scheduler: Scheduler, now: float = 0.0, lost: int = 1) -> None:
    """Held with all but some, since a node was lost."""
    scheduler.put_node(node(lost, is_open=False))
    scheduler.submit(gang("elastic", 2, 1, shrink_at=0.0))
    assert sizes(scheduler.plan(now).admit) == {"elastic": 1}


def test_it_grows_once_there_has_been_room_for_long_enough() -> None:
    scheduler = fleet(2)
    small(scheduler)
    scheduler.put_node(node(1))
    assert scheduler.plan(10.0).evict == ()
    assert scheduler.wake_at() == 70.0
    (evict,) = scheduler.plan(70.0).evict
    assert (evict.id, evict.reason) == ("elastic", Reason.Resizing)
    assert evict.message == "it has 1 of 2 nodes, and there has been room for 2 for 1m"
    assert scheduler.plan(71.0).evict == ()  # it was told
    scheduler.submit(gang("greedy", 1, seq=9))
    assert scheduler.plan(72.0).admit == ()  # the room is kept
    scheduler.end("elastic", 80.0)
    scheduler.submit(gang("elastic", 2, 1, shrink_at=0.0))
    assert sizes(scheduler.plan(80.0).admit) == {"elastic": 2}
    scheduler.end("elastic", 90.0)
    assert sizes(scheduler.plan(90.0).admit) == {"greedy": 1}


def test_room_that_comes_and_goes_is_no_room() -> None:
    scheduler = fleet(2)
    small(scheduler)
    for at in range(0, 600, 40):
        scheduler.put_node(node(1))
        assert scheduler.plan(at + 10.0).evict == ()
        scheduler.put_node(node(1, is_open=False))
        assert scheduler.plan(at + 30.0).evict == ()


def test_it_does_not_grow_while_somebody_waits() -> None:
    scheduler = fleet(2)
    small(scheduler)
    scheduler.submit(gang("large", 2, seq=5))
    scheduler.plan(1.0)
    scheduler.put_node(node(1))
    assert scheduler.plan(10.0).evict == scheduler.plan(100.0).evict == scheduler.plan(1000.0).evict == ()


def test_a_restart_must_pay() -> None:
    scheduler = fleet(2)
    small(scheduler)
    scheduler.partial.ends["elastic"] = 170.0  # of 100 s left at 70 it would save 50
    scheduler.put_node(node(1))
    scheduler.plan(10.0)
    assert scheduler.plan(70.0).evict == ()


def test_a_node_that_was_lost_will_do_when_it_is_back() -> None:
    scheduler = fleet(2)
    w = replace(gang("elastic", 2, 1), exclude=frozenset({"n1"}), lost=frozenset({"n1"}))
    shares = scheduler.pool.find(partial.of(w, 1))
    assert shares is not None
    scheduler.begin(Held(partial.of(w, 1), shares, 0.0))
    scheduler.plan(0.0)
    assert scheduler.plan(60.0).evict
    hard = fleet(2)
    hard.begin(Held(partial.of(replace(w, lost=frozenset()), 1), shares, 0.0))
    hard.plan(0.0)
    assert hard.plan(60.0).evict == ()


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 1e6), st.floats(0, 1e5))
def test_growing_pays_by_its_own_account(count: int, more: int, left_s: float, price_s: float) -> None:
    if partial.pays(count, count + more, left_s, price_s):
        assert left_s * count / (count + more) + price_s < left_s + 1e-6


steps = st.lists(
    st.tuples(st.sampled_from(["submit", "submit", "end", "lose", "back", "wait"]), st.integers(0, 30)), max_size=40
)
gangs = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4)
policies = st.builds(
    Policy, blocking=st.sampled_from(["strict", "skip"]), backfill=st.sampled_from(["none", "easy", "conservative"])
)


@settings(max_examples=150)
@given(steps, gangs, policies)
def test_sizes_stay_within_bounds_and_nobody_flaps(
    steps: list[tuple[str, int]], kinds: list[tuple[int, int]], policy: Policy
) -> None:
    scheduler = fleet(5, policy)
    now, count = 0.0, 0
    works: dict[str, Workload] = {}
    grown: dict[str, float] = {}
    for what, number in steps:
        now += number
        held = list(scheduler.held)
        if what == "submit":
            most, least = kinds[number % len(kinds)]
            count += 1
            w = gang(f"w{count}", most, min(least, most - 1), seq=count, shrink_at=now + 5.0)
            works[w.id] = w
            scheduler.submit(w)
        elif what == "end" and held:
            scheduler.end(held[number % len(held)], now)
        elif what in ("lose", "back"):
            scheduler.put_node(node(number % 5, is_open=what == "back"))
        decision = scheduler.plan(now)
        for admit in decision.admit:
            w = works[admit.id]
            assert (w.least or w.most) <= len(admit.shares) <= w.most
            assert len({share.node for share in admit.shares}) == len(admit.shares)
            assert len(admit.shares) == w.most or now >= w.shrink_at
        for evict in decision.evict:
            w = works[evict.id]
            assert evict.reason is Reason.Resizing
            assert len(scheduler.held[w.id].held.shares) < w.most
            assert now - grown.get(w.id, -math.inf) >= w.grow_after_s
            grown[w.id] = now
            scheduler.end(w.id, now)
            scheduler.submit(replace(w, shrink_at=0.0))
            before = len(scheduler.held)
            again = scheduler.plan(now)
            assert len(scheduler.held) > before, "its place was kept for it"
            assert sizes(again.admit)[w.id] > 1
        busy = [name for holding in scheduler.held.values() for name in {s.node for s in holding.held.shares}]
        assert len(busy) == len(set(busy))
