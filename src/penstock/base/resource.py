"""Words that every room shares: references, conditions, actors, plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.base.quantities import format_time
from penstock.base.reasons import Reason


@dataclass(frozen=True, slots=True)
class Ref:
    """Names one resource: ``kind`` in PascalCase, ``project`` empty for what belongs to the fleet."""

    kind: str
    name: str
    project: str = ""
    id: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.project}/{self.name}" if self.project else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. ``projects`` maps a project to a role; ``role`` is the fleet-wide one ("admin", "viewer" or "")."""

    user: str
    role: str = ""
    projects: Mapping[str, str] = field(default_factory=dict)
    unix_user: str | None = None


SYSTEM = Actor("system", "admin")


@dataclass(frozen=True, slots=True)
class Condition:
    """As Kubernetes has them: a type, True / False / Unknown, and why since when (epoch seconds)."""

    type: str
    status: str
    reason: str
    message: str
    since: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "last_transition_at": format_time(self.since),
        }


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a plan: what (``verb``), on what (``subject``), why, and for people ``message``."""

    verb: str
    subject: str
    reason: Reason
    message: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.verb} {self.subject}: {self.reason}" + (f" ({self.message})" if self.message else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """Immutable, ordered actions. Printable for ``--dry-run``, comparable in golden tests."""

    actions: tuple[Action, ...] = ()

    def lines(self) -> list[str]:
        return [str(action) for action in self.actions]
