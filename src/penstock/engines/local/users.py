"""Unix users as jobs need them. Looked up once by the server: name services cost a supervisor more than all it does."""

from __future__ import annotations

import os
import pwd
import time
from typing import Any

_KEEP_S = 60.0


class Users:
    """Remembers who a name is for a minute. An answer is what ``child.Identity`` is made of, or ``{"error": ...}``."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}

    def look_up(self, name: str | None) -> dict[str, Any] | None:
        """None when jobs run as the server's own user, because that is not root."""
        if os.geteuid() != 0:
            return None
        if not name:
            return _refused(
                "the server runs as root and this job has no Unix user: map its submitter, or use --job-user"
            )
        found = self._known.get(name)
        if found is None or time.monotonic() - found[0] > _KEEP_S:
            found = self._known[name] = (time.monotonic(), _look_up(name))
        return found[1]


def _look_up(name: str) -> dict[str, Any]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return _refused(f"the Unix user {name!r} does not exist on this machine")
    if entry.pw_uid == 0:
        return _refused(f"jobs are never run as root: map the submitter to another user than {name!r}")
    return {
        "name": name,
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
        "groups": os.getgrouplist(name, entry.pw_gid),
        "home": entry.pw_dir,
        "shell": entry.pw_shell,
    }


def _refused(why: str) -> dict[str, Any]:
    return {"error": why}
