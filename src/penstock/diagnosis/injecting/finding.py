"""A job's ranks among this machine's processes."""

from __future__ import annotations

import os

from penstock.diagnosis.injecting.spec import Target
from penstock.engines.local import procs
from penstock.training import probe


def targets(attempt: str) -> tuple[Target, ...]:
    """Of an attempt (``JOB.NUMBER``), by rank; none where it does not run here, or is not ours to see."""
    found = probe.ranks(attempt, probe.families())
    return tuple(_target(rank, pid) for rank, pid in sorted(found.items()))


def _target(rank: int, pid: int) -> Target:
    env = _environ(pid)
    names = ("PENSTOCK_NODE_NAME", "PENSTOCK_INJECT", "PENSTOCK_CKPT_DIR")
    node, hook, saves = (env.get(name, "") for name in names)
    if hook and not os.path.isabs(hook):
        hook = os.path.join(os.readlink(f"/proc/{pid}/cwd"), hook)
    return Target(rank, pid, procs.start_time(pid) or 0, node, hook, saves)


def _environ(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        words = file.read().decode("utf-8", "replace").split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)
