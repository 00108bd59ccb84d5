"""The planner of replicas: what must hold of every plan, whatever is there."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.plan import (
    BACKOFF_LIMIT_S,
    CRASHES,
    LIVE,
    REFUSED_S,
    SETTLED_S,
    Cancel,
    Drain,
    Retire,
    Seen,
    Snapshot,
    Start,
    Version,
    after_loss,
    observe,
    plan,
)
from penstock.serving.state import WHOLE, Replica, ReplicaPhase, Role, Want

NOW = 1000.0
PHASES = st.sampled_from(list(ReplicaPhase))
VERSIONS = st.lists(
    st.builds(
        Version,
        number=st.integers(1, 3),
        role=st.sampled_from(list(Role)),
        failures=st.integers(0, 4),
        next_at=st.one_of(st.none(), st.floats(NOW - 50, NOW + 50)),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one.number,
)
REPLICAS = st.lists(
    st.builds(
        Replica,
        id=st.integers(0, 10**6).map(str),
        name=st.just("r"),
        version=st.integers(1, 3),
        phase=PHASES,
        since=st.floats(0, NOW),
        address=st.just("127.0.0.1"),
        port=st.just(80),
    ),
    max_size=12,
    unique_by=lambda one: one.id,
)
WANTS = st.dictionaries(
    st.integers(1, 3),
    st.builds(Want, replicas=st.integers(0, 6), weight=st.integers(0, WHOLE), mirror=st.integers(0, WHOLE)),
)
SNAPSHOTS = st.builds(
    lambda versions, replicas, wants, deleting: Snapshot(tuple(versions), tuple(replicas), wants, deleting),
    VERSIONS,
    REPLICAS,
    WANTS,
    st.booleans(),
)


@given(SNAPSHOTS)
def test_each_version_comes_to_what_it_is_to_have_and_nothing_is_started_and_drained_at_once(seen: Snapshot) -> None:
    made = plan(seen, NOW)
    for version in seen.versions:
        want = 0 if seen.deleting else seen.wants.get(version.number, Want(0)).replicas
        live = [one for one in seen.replicas if one.version == version.number and one.phase in LIVE]
        starts = sum(isinstance(a, Start) and a.version == version.number for a in made.actions)
        drains = sum(isinstance(a, Drain) and a.version == version.number for a in made.actions)
        assert not (starts and drains)
        assert drains == max(len(live) - want, 0)
        waits = version.next_at is not None and version.next_at > NOW
        assert starts == (0 if waits else min(max(want - len(live), 0), 1 if version.failures else math.inf))
        if waits and len(live) < want:
            assert version.next_at is not None
            assert made.again_s <= version.next_at - NOW


@given(SNAPSHOTS)
def test_a_ready_replica_is_drained_only_where_no_other_is_too_much(seen: Snapshot) -> None:
    by_id = {one.id: one for one in seen.replicas}
    made = plan(seen, NOW)
    gone = {a.replica for a in made.actions if isinstance(a, Drain)}
    for action in made.actions:
        if isinstance(action, Drain) and by_id[action.replica].phase is ReplicaPhase.READY:
            mine = [one for one in seen.replicas if one.version == action.version and one.phase in LIVE]
            assert all(one.id in gone for one in mine if one.phase is not ReplicaPhase.READY)


@given(SNAPSHOTS)
def test_routes_are_of_ready_replicas_that_stay_and_a_job_ends_only_out_of_the_routes(seen: Snapshot) -> None:
    by_id = {one.id: one for one in seen.replicas}
    made = plan(seen, NOW)
    routed = {replica for ids in (made.routes or {}).values() for replica in ids}
    assert all(by_id[replica].phase is ReplicaPhase.READY for replica in routed)
    left = {a.replica for a in made.actions if isinstance(a, Drain | Cancel)}
    assert not routed & left
    assert all(by_id[a.replica].phase is ReplicaPhase.DRAINING for a in made.actions if isinstance(a, Cancel))


@given(SNAPSHOTS)
def test_weights_are_of_who_can_answer_and_sum_to_the_whole(seen: Snapshot) -> None:
    made = plan(seen, NOW)
    weights = made.weights or {}
    able = {number for number, ids in (made.routes or {}).items() if ids}
    if able:
        assert set(weights) == able
        assert sum(weight for weight, _ in weights.values()) == WHOLE
    else:
        assert set(weights) <= {one.number for one in seen.versions if one.role is Role.STABLE}
    assert all(0 <= weight <= WHOLE for weight, _ in weights.values())


@given(SNAPSHOTS)
def test_a_version_is_retired_only_with_nothing_left_and_never_the_stable_one(seen: Snapshot) -> None:
    roles = {one.number: one.role for one in seen.versions}
    for action in plan(seen, NOW).actions:
        if isinstance(action, Retire):
            assert roles[action.version] is not Role.STABLE
            assert not [one for one in seen.replicas if one.version == action.version]


@given(SNAPSHOTS)
def test_the_same_snapshot_gives_the_same_plan(seen: Snapshot) -> None:
    assert plan(seen, NOW) == plan(seen, NOW)


@given(st.lists(st.tuples(st.one_of(st.none(), PHASES), st.booleans(), st.booleans()), max_size=8))
def test_a_replica_never_goes_back_and_is_never_ready_without_an_address(
    steps: list[tuple[ReplicaPhase | None, bool, bool]],
) -> None:
    order = list(ReplicaPhase)
    one = Replica("1", "r", 1, ReplicaPhase.STARTING, 0.0)
    for n, (phase, ending, placed) in enumerate(steps):
        told = None if phase is ReplicaPhase.GONE else phase
        seen = Seen(phase=told, ending=ending, port=80 if placed else 0, address="127.0.0.1" if placed else "")
        after = observe(one, seen, float(n))
        assert order.index(after.phase) >= order.index(one.phase)
        if after.phase is ReplicaPhase.READY:
            assert after.port
            assert after.address
        one = after
    assert observe(one, Seen(over=True), 99.0).phase is ReplicaPhase.GONE


def test_a_version_that_does_not_come_up_waits_longer_each_time_and_one_that_was_of_use_does_not() -> None:
    version, lost = Version(1, Role.STABLE), Replica("1", "r", 1, ReplicaPhase.STARTING, NOW)
    waits = []
    for _ in range(10):
        version = after_loss(version, lost, NOW)
        assert version.next_at is not None
        waits.append(version.next_at - NOW)
    assert waits == sorted(waits)
    assert waits[0] == 1.0
    assert waits[-1] == BACKOFF_LIMIT_S
    useful = replace(lost, phase=ReplicaPhase.READY, since=NOW - SETTLED_S)
    assert after_loss(version, useful, NOW) == replace(version, failures=0, next_at=None)
    refused = after_loss(Version(1, Role.STABLE), lost, NOW, refused=True)
    assert (refused.failures, refused.next_at) == (CRASHES, NOW + REFUSED_S)
    young = replace(lost, phase=ReplicaPhase.READY)
    assert after_loss(Version(1, Role.STABLE), young, NOW).next_at == NOW
