"""Control groups for faults: a group of ours below the one a process is in, or, where version 2 lets none be there, that one's own limits."""

from __future__ import annotations

import os

from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import Target


def home(pid: int, controller: str) -> str:
    """The folder of the group that limits a process by ``controller``: of version 1 where the machine has that."""
    v1, v2 = {}, ""
    with open("/proc/self/mounts", encoding="utf-8") as table:
        for line in table:
            _, point, kind, options = line.split()[:4]
            if kind == "cgroup":
                v1.update(dict.fromkeys(options.split(","), point))
            elif kind == "cgroup2":
                v2 = v2 or point
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as groups:
        for line in groups:
            _, names, path = line.rstrip("\n").split(":", 2)
            if controller in v1 and controller in names.split(","):
                return v1[controller] + path.rstrip("/")
            if not names and controller not in v1 and v2:
                return v2 + path.rstrip("/")
    raise FileNotFoundError(f"no control group here limits {controller}")


def is_v2(group: str) -> bool:
    return os.path.exists(f"{group}/cgroup.controllers")


def join_new(note: Note, target: Target, controller: str) -> str:
    """Make a group below the target's own and move it in; what it starts from now on is in it too. Answers the group's folder."""
    parent = home(target.pid, controller)
    group = f"{parent}/{note.id}-{target.rank}"
    note.will("ungroup", group, parent)
    os.mkdir(group)
    put(group, target.pid)
    return group


def put(group: str, pid: int) -> None:
    with open(f"{group}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(pid))


def limit(note: Note, target: Target, controller: str, v1: dict[str, str], v2: dict[str, str]) -> None:
    """Limit a rank: files and their texts, by the version that this machine has. A group of the job's own is limited itself
    where that can be (as an administrator would); version 2 lets no group be below one with processes.
    """
    group = home(target.pid, controller)
    if is_v2(group):
        _change(note, group, v2)
    elif controller == "cpu" and os.path.exists(f"{os.path.dirname(group)}/cgroup.procs"):
        _change(note, group, v1)
    else:
        group = join_new(note, target, controller)
        for name, text in v1.items():
            with open(f"{group}/{name}", "w", encoding="ascii") as file:
                file.write(text)


def _change(note: Note, group: str, wanted: dict[str, str]) -> None:
    for name, text in wanted.items():
        with open(f"{group}/{name}", encoding="ascii") as file:
            before = file.read().strip()
        note.will("write", f"{group}/{name}", before)
        with open(f"{group}/{name}", "w", encoding="ascii") as file:
            file.write(text)
