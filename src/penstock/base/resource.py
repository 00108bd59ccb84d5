"""Words that every room shares: references, conditions, actors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.base.quantities import format_time


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
    node: str = ""  # whose agent it is: that of this node, and nobody else


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
