"""From a service's rows to its route in the gateway, and to the words that say how it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from penstock.base.reasons import Reason
from penstock.serving.gateway.spec import Backend, Match, RateLimit, ServiceRoute, VersionRoute
from penstock.serving.orders import Function, Orders, Shadow
from penstock.serving.state import ReplicaPhase, Role
from penstock.serving.versions import Held

NOBODY = "0" * 64  # a digest that no key has: keys are asked for, and there is none yet


Address = tuple[str, int]


def service(held: Held, keys: Sequence[Row[Any]], activator: Address, comparator: Address) -> ServiceRoute:
    """Who comes while no replica is there may wait as long as is held, and then for the answer: a request goes by the times of
    the route that it came by.
    """
    exposed = held.spec.exposed
    own = Match(prefix=f"/{held.row.project}/{held.row.name}/")
    matches = (own, *(Match(one.host or "", one.path) for one in exposed.routes))
    limit = exposed.rate_limit
    versions = tuple(route for one in held.versions if (route := _version(held, one)).backends or route.weight)
    served = any(route.weight and route.backends for route in versions)
    return ServiceRoute(
        held.row.project,
        held.row.name,
        matches,
        versions,
        exposed.timeout if served else exposed.timeout + held.spec.hold.time,
        exposed.retries,
        RateLimit(limit.requests, limit.per) if limit is not None else None,
        (tuple(key.digest for key in keys) or (NOBODY,)) if exposed.api_keys else (),
        activator if held.wanted or held.spec.autoscaling is not None else None,
        comparator if in_shadow(held) is not None else None,
        health=held.spec.health if held.spec.command else "",
    )


def in_shadow(held: Held) -> Row[Any] | None:
    """The version that is sent copies."""
    return next((one for one in held.versions if one.mirror and one.role == Role.CANDIDATE), None)


def orders(held: Held, judge: Function | None) -> Orders:
    """What the activator and the comparator are told of it."""
    spec, candidate, stable = held.spec, in_shadow(held), held.stable
    compare = spec.rollout.compare
    shadow = None
    if candidate is not None and stable is not None:
        shadow = Shadow(stable.number, candidate.number, candidate.mirror, compare.how, compare.tolerance, judge)
    return Orders(
        held.row.project,
        held.row.name,
        {route.version: route.backends for one in held.versions if (route := _version(held, one)).backends},
        spec.hold.requests,
        spec.hold.time,
        spec.exposed.timeout,
        max_body=spec.max_body,
        shadow=shadow,
    )


def _version(held: Held, version: Row[Any]) -> VersionRoute:
    backends = tuple(
        Backend(one.id, one.address, one.port, one.grpc_port)
        for one in held.replicas
        if one.version == version.number and one.phase == ReplicaPhase.READY and one.address
    )
    return VersionRoute(version.number, backends, version.weight, version.mirror)


def condition(held: Held, waiting: Sequence[Row[Any]] = (), gateway: str = "") -> tuple[str, str]:
    """A reason and a sentence. ``waiting``: jobs of replicas that are in line. ``gateway``: what it does not do for the service."""
    if gateway:
        return Reason.GatewayChanged, f"the gateway: {gateway}"
    stable = held.stable
    ready = sum(one.phase == ReplicaPhase.READY for one in held.replicas)
    wanted = held.wanted
    failing = next((one for one in held.versions if one.failures and one.role != Role.RETIRED), None)
    if failing is not None and (failing.role == Role.CANDIDATE or ready < wanted):
        return failing.reason or Reason.ReplicaLost, f"version {failing.number}: {failing.message}"
    if waiting and (ready < wanted or held.rollout is not None):
        first = waiting[0]
        done = f"{ready} of {wanted} replicas are ready"
        if held.rollout is not None:
            done = f"version {held.rollout.candidate}: {held.rollout.message}"
        return first.reason, f"{done}; {first.name} waits: {first.message}"
    if stable is not None and stable.next_at is not None and stable.message and ready < wanted:
        return Reason.WaitingForResources, stable.message
    if held.rollout is not None:
        return Reason.Progressing, f"version {held.rollout.candidate}: {held.rollout.message}"
    if wanted == 0 and not ready:
        wakes = held.spec.autoscaling is not None
        return (
            Reason.Scaled,
            "to none: the next request starts a replica" if wakes else "to none, until it is scaled again",
        )
    if ready >= wanted:
        return Reason.ReplicaReady, f"{ready} of {wanted} replicas are ready"
    return Reason.Progressing, f"{ready} of {wanted} replicas are ready"


def phase(held: Held) -> str:
    """One word for a table."""
    ready = sum(one.phase == ReplicaPhase.READY for one in held.replicas)
    if held.row.deleted_at is not None:
        return "Deleting"
    if held.row.reason == Reason.GatewayChanged:
        return "Degraded"  # callers do not reach it as they should
    if held.rollout is not None:
        return "RollingOut"
    if ready >= held.wanted:
        return "Ready" if held.wanted else "Idle"
    return "Degraded" if ready else "Starting"
