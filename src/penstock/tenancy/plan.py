"""Who may do what: one table of verbs, one pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from penstock.base.resource import Actor


class Scope(StrEnum):
    ANYONE = "anyone"  # every signed-in user, about the fleet's public face or about themselves
    PROJECT = "project"  # the role in the project counts; the fleet-wide role counts in every project
    FLEET = "fleet"  # the fleet-wide role alone counts


@dataclass(frozen=True, slots=True)
class Rule:
    scope: Scope
    needs: str = "viewer"  # the least role
    owned: bool = False  # below project admin, only on what is one's own
    writes: bool = False


PROJECT_ROLES = ("viewer", "member", "admin")
FLEET_ROLES = ("", "viewer", "admin")
_RANK = {"viewer": 1, "member": 2, "admin": 3}
_FLEET_RANK = {"viewer": 1, "admin": 3}
AGENT = frozenset({"telemetry.push", "version.read"})  # all that the token of a node's agent is for

_anyone = Rule(Scope.ANYONE)
_project_read = Rule(Scope.PROJECT)
_project_write = Rule(Scope.PROJECT, "member", writes=True)
_fleet_read = Rule(Scope.FLEET)
_fleet_write = Rule(Scope.FLEET, "admin", writes=True)

VERBS: Mapping[str, Rule] = MappingProxyType(
    {
        "version.read": _anyone,
        "openapi.read": _anyone,
        "whoami.read": _anyone,
        "tokens.read": _anyone,  # one's own; an administrator's are everybody's
        "nodes.read": _anyone,
        "telemetry.push": _anyone,  # of one's own node; the room looks whose it is, and tells of what is refused
        "engines.read": _anyone,
        "projects.read": _project_read,
        "members.read": _project_read,
        "jobs.read": _project_read,
        "events.read": _project_read,
        "cost.read": _project_read,
        "queues.read": _anyone,
        "queues.write": _fleet_write,
        "reservations.read": _anyone,
        "reservations.write": _fleet_write,
        "capacity.read": _fleet_read,
        "capacity.run": _fleet_write,
        "bill.read": _fleet_read,
        "budgets.write": _fleet_write,
        "jobs.create": _project_write,
        "jobs.write": _project_write,
        "jobs.apply": _project_write,
        "jobs.cancel": _project_write,
        "gpu_samples.write": _project_write,  # of GPUs that the project's jobs hold
        "jobs.delete": _project_write,
        "services.read": _project_read,
        "services.write": _project_write,
        # A session runs as the job's Unix user, so a colleague's job is not enough.
        "jobs.exec": Rule(Scope.PROJECT, "member", owned=True, writes=True),
        "faults.write": Rule(Scope.PROJECT, "admin", writes=True),  # game days
        "snapshots.read": Rule(Scope.PROJECT, "member"),
        "snapshots.write": _project_write,
        "tokens.write": _project_write,
        "members.write": Rule(Scope.PROJECT, "admin", writes=True),
        "users.read": _fleet_read,
        "audit.read": _fleet_read,
        "metrics.read": _fleet_read,
        "users.write": _fleet_write,
        "projects.write": _fleet_write,
        "nodes.write": _fleet_write,
        "engines.write": _fleet_write,
        "backup.read": Rule(Scope.FLEET, "admin"),
        "backup.write": _fleet_write,
    }
)


def decide(actor: Actor, verb: str, project: str | None = None, *, owner: str | None = None) -> bool:
    """Whether ``actor`` may do ``verb``. An unknown verb is refused.

    Without a ``project``, a project's verb asks "in any project at all"; whoever then reads or writes rows must look at
    each row's project. With an ``owner``, verbs marked ``owned`` are held to it; without, the answer is "might".
    """
    rule = VERBS.get(verb)
    if rule is None or (actor.node and verb not in AGENT):
        return False
    if rule.scope is Scope.ANYONE:
        return True
    if rule.scope is Scope.FLEET:
        return _FLEET_RANK.get(actor.role, 0) >= _RANK[rule.needs]
    rank = _rank_in(actor, project)
    if rule.owned and owner is not None and owner != actor.user:
        return rank >= _RANK["admin"]
    return rank >= _RANK[rule.needs]


def _rank_in(actor: Actor, project: str | None) -> int:
    fleet = _FLEET_RANK.get(actor.role, 0)
    roles = actor.projects.values() if project is None else (actor.projects.get(project, ""),)
    return max(fleet, *(_RANK.get(role, 0) for role in roles), 0)


def visible(actor: Actor) -> frozenset[str] | None:
    """The projects that ``actor`` may read; None means all of them."""
    if _FLEET_RANK.get(actor.role, 0) > 0:
        return None
    return frozenset(project for project, role in actor.projects.items() if role in _RANK)
