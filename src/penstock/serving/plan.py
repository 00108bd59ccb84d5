"""From what is wanted and what is there to what is done next. Pure: the time is an argument.

Replicas of a version are made and taken away one version at a time; what each version is to have comes from the rollout's
planner (rollout.py), or is all of it where none is under way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.base.reasons import Reason
from penstock.serving.state import WHOLE, Replica, ReplicaPhase, Role, Want

LIVE = frozenset({ReplicaPhase.STARTING, ReplicaPhase.WARMING, ReplicaPhase.READY})
BACKOFF_FIRST_S = 1.0
BACKOFF_LIMIT_S = 60.0
REFUSED_S = 600.0  # where the replica would not serve its model: what changes that (a file, a waiver) takes a person
CRASHES = 3  # replicas in a row that were of no use: the version's fault
SETTLED_S = 60.0  # ready for so long: what ended it then was no failure to start
MAKE_AT_ONCE = 50  # replicas in one plan
_ORDER = {ReplicaPhase.STARTING: 0, ReplicaPhase.WARMING: 1, ReplicaPhase.READY: 2}


@dataclass(frozen=True, slots=True)
class Version:
    number: int
    role: Role
    weight: int = 0
    mirror: int = 0
    failures: int = 0
    next_at: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``wants``: by version; one that is not named is to have nothing. ``deleting``: nothing is to be left."""

    versions: tuple[Version, ...]
    replicas: tuple[Replica, ...]
    wants: Mapping[int, Want]
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Make a replica's job."""

    version: int
    reason: Reason = Reason.Created


@dataclass(frozen=True, slots=True)
class Drain:
    """Take it out of the routes; it answers what it has."""

    replica: str
    version: int
    message: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """It is in no route any more: end its job, which drains it."""

    replica: str
    version: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Nothing of this version is left."""

    version: int


Action = Start | Drain | Cancel | Retire


@dataclass(frozen=True, slots=True)
class Plan:
    """``again_s``: look again then, though nothing happens; inf: no need."""

    actions: tuple[Action, ...] = ()
    routes: Mapping[int, tuple[str, ...]] | None = None  # replicas that take requests, by version
    weights: Mapping[int, tuple[int, int]] | None = None  # weight and mirror, by version
    again_s: float = math.inf


def plan(seen: Snapshot, now: float) -> Plan:
    """Total and deterministic: the same snapshot at the same time gives the same plan."""
    actions: list[Action] = []
    again = math.inf
    for version in sorted(seen.versions, key=lambda one: one.number):
        want = 0 if seen.deleting else seen.wants.get(version.number, Want(0)).replicas
        mine = [one for one in seen.replicas if one.version == version.number]
        live = [one for one in mine if one.phase in LIVE]
        if len(live) < want:
            count, wait = _startable(version, want - len(live), now)
            actions += [Start(version.number)] * count
            again = min(again, wait)
        for one in _surplus(live, want):
            actions.append(Drain(one.id, version.number, f"version {version.number} is to have {want}"))
        actions += [Cancel(one.id, version.number) for one in mine if one.phase is ReplicaPhase.DRAINING]
        if not mine and not want and version.role is not Role.STABLE and version.number not in seen.wants:
            actions.append(Retire(version.number))
    drained = {action.replica for action in actions if isinstance(action, Drain)}
    routes = {
        version.number: tuple(
            one.id
            for one in seen.replicas
            if one.version == version.number and one.phase is ReplicaPhase.READY and one.id not in drained
        )
        for version in seen.versions
    }
    return Plan(tuple(actions), routes, weights(seen, routes), again)


def _startable(version: Version, missing: int, now: float) -> tuple[int, float]:
    """How many may be started now, and after how long to look again. One that failed is tried alone."""
    if version.next_at is not None and version.next_at > now:
        return 0, version.next_at - now
    return min(missing, 1 if version.failures else MAKE_AT_ONCE), math.inf


def _surplus(live: Sequence[Replica], want: int) -> list[Replica]:
    """What is too much: those that are not ready yet first, the youngest first."""
    ordered = sorted(live, key=lambda one: (_ORDER[one.phase], -one.since, one.id))
    return ordered[: max(len(live) - want, 0)]


def weights(seen: Snapshot, routes: Mapping[int, Sequence[str]]) -> dict[int, tuple[int, int]]:
    """Of versions with a replica that takes requests; they sum to WHOLE. A version that is to have all requests and has no
    replica yet leaves them where they can be answered. Where nobody can answer, the stable one has them: they wait for it.
    """
    able = [version.number for version in seen.versions if routes.get(version.number)]
    if not able:
        return {version.number: (WHOLE, 0) for version in seen.versions if version.role is Role.STABLE}
    wanted = {number: seen.wants.get(number, Want(0)) for number in able}
    total = sum(want.weight for want in wanted.values())
    if total == 0:  # nobody who is to have requests can answer any: whoever can does, the stable one first
        order = {Role.STABLE: 0, Role.CANDIDATE: 1, Role.RETIRED: 2}
        first = sorted(
            (version for version in seen.versions if version.number in wanted),
            key=lambda one: (order[one.role], -one.number),
        )
        return {
            version.number: (WHOLE if n == 0 else 0, wanted[version.number].mirror) for n, version in enumerate(first)
        }
    shares = {number: want.weight * WHOLE // total for number, want in wanted.items()}
    rest = WHOLE - sum(shares.values())
    largest = max(shares, key=lambda number: (shares[number], number))
    shares[largest] += rest
    return {number: (shares[number], want.mirror) for number, want in wanted.items()}


# -- what is seen of one replica


@dataclass(frozen=True, slots=True)
class Seen:
    """Of a replica's job. ``over``: it has ended, or is ending; ``message``: how. ``phase``: as the replica reports it."""

    over: bool = False
    message: str = ""
    ending: bool = False
    phase: ReplicaPhase | None = None
    port: int = 0
    grpc_port: int = 0
    address: str = ""
    stages: Mapping[str, float] | None = None


def observe(replica: Replica, seen: Seen, now: float) -> Replica:
    """The replica as it is now. A phase never goes back; what drains or is gone stays so until its job has ended."""
    if replica.phase is ReplicaPhase.GONE or seen.over:
        return replica if replica.phase is ReplicaPhase.GONE else replace(replica, phase=ReplicaPhase.GONE, since=now)
    if replica.phase is ReplicaPhase.DRAINING:
        return replica
    if seen.ending or seen.phase is ReplicaPhase.DRAINING:
        return replace(replica, phase=ReplicaPhase.DRAINING, since=now)
    if seen.phase is None or _ORDER[seen.phase] <= _ORDER[replica.phase]:
        return replica
    if seen.phase is ReplicaPhase.READY and not (seen.port and seen.address):
        return replica
    return replace(
        replica,
        phase=seen.phase,
        since=now,
        address=seen.address,
        port=seen.port,
        grpc_port=seen.grpc_port,
        stages=dict(seen.stages or {}),
    )


def after_loss(version: Version, lost: Replica, now: float, *, refused: bool = False) -> Version:
    """A version whose replica ended unasked: the next is started at once where this one had been of use, else later. One whose
    model is ``refused`` has failed as often as a version may.
    """
    if refused:
        return replace(version, failures=max(version.failures + 1, CRASHES), next_at=now + REFUSED_S)
    useful = lost.phase is ReplicaPhase.READY and now - lost.since >= SETTLED_S
    if useful:
        return replace(version, failures=0, next_at=None)
    failures = version.failures + 1
    first = lost.phase is ReplicaPhase.READY and failures == 1
    wait = 0.0 if first else min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10), BACKOFF_LIMIT_S)
    return replace(version, failures=failures, next_at=now + wait)
