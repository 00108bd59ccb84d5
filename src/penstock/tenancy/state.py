"""Users, projects and tokens as they are observed; secrets are no part of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.base.quantities import format_time


@dataclass(frozen=True, slots=True)
class User:
    name: str
    role: str  # fleet-wide: "", "viewer" or "admin"
    created_at: float
    unix_user: str | None = None  # whom a server started by root runs this user's jobs as
    projects: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "User",
            "name": self.name,
            "role": self.role,
            "unix_user": self.unix_user,
            "projects": dict(self.projects),
            "created_at": format_time(self.created_at),
        }


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    user: str
    name: str
    last_four: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    node: str | None = None  # an agent's token: it tells of that node, and does nothing else

    def usable(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "Token",
            "id": self.id,
            "user": self.user,
            "name": self.name,
            "last_four": self.last_four,
            "created_at": format_time(self.created_at),
            "expires_at": format_time(self.expires_at),
            "revoked_at": format_time(self.revoked_at),
            "node": self.node,
        }
