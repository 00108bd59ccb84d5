"""Starting a process without copying this one: posix_spawn(3) shares the memory until the program has taken its place.

A fork of the supervisor costs more than all else that it does. But no code of ours runs in such a child, so the caller
itself takes on the cage, the user and the folder for the moment of the start, and lays them off again. The saved user
id stays root's meanwhile; exec replaces it (credentials(7)), so nothing of root is left in the program.
"""

from __future__ import annotations

import os
from typing import Any

from penstock.engines.local import child
from penstock.engines.local.child import Identity, Start

_UMASK = 0o022


def can(start: Start) -> bool:
    """Whether it needs nothing that only a child could do for itself. What is caged is ended with its cage, so it need
    not be told to die with us; what is not, or gets a terminal or a limit of its own, is forked.
    """
    return start.cage is not None and start.cage.contains and not start.tty and start.processes is None


def spawn(start: Start) -> int:
    """The pid of the job's process, which runs its program already. Raises LaunchError or OSError."""
    assert start.cage is not None
    back = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(_UMASK)
    groups = os.getgroups() if start.who else []
    try:
        start.cage.join()
        if start.who is not None:
            start.who.appear()
        if start.fallback_home is not None and "HOME" not in start.env:
            start.home = child.home(start.who, start.fallback_home)
        if start.who is not None:
            _put_on(start.who)
        child.go_to_work(start)
        return child.run_program(start, lambda path, argv, env: os.posix_spawn(path, argv, env, **_how(start)))
    finally:
        if start.who is not None:
            _take_off(groups)
        start.cage.leave()
        os.umask(mask)
        os.fchdir(back)
        os.close(back)


def _put_on(who: Identity) -> None:
    os.setresgid(who.gid, who.gid, 0)
    os.setresuid(who.uid, who.uid, 0)


def _take_off(groups: list[int]) -> None:
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    os.setgroups(groups)


def _how(start: Start) -> dict[str, Any]:
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        if start.stdin is None
        else (os.POSIX_SPAWN_DUP2, start.stdin, 0),
        (os.POSIX_SPAWN_DUP2, start.out, 1),
        (os.POSIX_SPAWN_DUP2, start.out, 2),
    ]
    if start.report is not None:
        actions.append((os.POSIX_SPAWN_DUP2, start.report, child.REPORT_FD))
    return {"file_actions": actions, "setsid": True}
