"""Faults of the processors: somebody else's load, and a quota that is too small."""

from __future__ import annotations

import os

from penstock.diagnosis.injecting import groups, programs
from penstock.diagnosis.injecting.notes import Note, threads
from penstock.diagnosis.injecting.spec import Fault, Order, Strength

_PERIOD_US = 20_000  # short, so that a rank is held up several times within a step
_BURN = "while True: pass"

CONTENTION = Fault(
    "cpu-contention",
    "cpu_contention",
    "host",
    "other processes compete for the rank's core; strength: how many",
    Strength(5, 4, 8, "processes"),
)
QUOTA = Fault(
    "cpu-quota",
    "cgroup_throttle",
    "host",
    "the rank may use only so many cores",
    Strength(0.1, 0.04, 0.12, "cores"),
)


def contend(order: Order, note: Note) -> None:
    """The rank is held to one core, on which as many burners run as the strength says, in its own control group."""
    allowed = sorted(os.sched_getaffinity(0))
    for target in order.targets:
        core = allowed[target.rank % len(allowed)]
        note.will("affinity", target.pid, target.start, sorted(os.sched_getaffinity(target.pid)))
        for thread in threads(target.pid):
            os.sched_setaffinity(thread, {core})
        group = groups.home(target.pid, "cpu")
        for _ in range(round(order.strength)):
            burner = programs.python(note, _BURN)
            groups.put(group, burner)
            os.sched_setaffinity(burner, {core})


def quota(order: Order, note: Note) -> None:
    runs = max(1000, int(order.strength * _PERIOD_US))  # the kernel takes no less
    period = max(_PERIOD_US, int(runs / order.strength))
    for target in order.targets:
        groups.limit(
            note,
            target,
            "cpu",
            v1={"cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(runs)},
            v2={"cpu.max": f"{runs} {period}"},
        )


ACTS = {CONTENTION: contend, QUOTA: quota}
