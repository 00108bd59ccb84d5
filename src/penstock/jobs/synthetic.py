"""Made-up work for a simulated fleet: who there is, which queues they share, and what each submits. Pure: chance is handed in.

Shapes and run times are chosen to look like a research company's fleet (a few large trainings hold most GPUs, many small
jobs come and go); they are not calibrated. For a workload that is, see capacity/synth.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

ADJUST_S = 60.0
TEAMS = {  # project: its people, and its part of the fleet
    "language": (("ada", "bo", "chen"), 0.4),
    "vision": (("dara", "eli", "femi"), 0.3),
    "science": (("gita", "hugo"), 0.2),
}
HOUR = 3600.0
MOST_NODES = 64  # of one job, however large the fleet


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of job. ``nodes``: the most it takes, in parts of the fleet; ``gpus``: per node, 0 for all of a node's;
    ``hours``: the median run; ``spread``: of the lognormal; ``share``: of all jobs.
    """

    stem: str
    project: str
    share: float
    gpus: int
    hours: float
    spread: float = 0.6
    nodes: float = 0.0  # 0: one node
    fails: float = 0.1
    restarts: int = 0
    priority: int = 0
    level: str = ""
    tasks: int = 0
    words: tuple[str, ...] = ()
    milli: int = 0  # of one GPU


KINDS = (
    Kind("pretrain", "language", 0.03, 0, 18, nodes=0.25, fails=0.15, restarts=10, priority=10, level="block"),
    Kind("finetune", "language", 0.12, 0, 3, nodes=0.05, fails=0.1, restarts=2, level="rack"),
    Kind("eval", "language", 0.2, 1, 0.4, fails=0.05),
    Kind("detector", "vision", 0.14, 4, 4, fails=0.12),
    Kind("segment", "vision", 0.1, 2, 2, fails=0.12),
    Kind("augment", "vision", 0.08, 1, 0.5, tasks=8),
    Kind("fold", "science", 0.1, 0, 5, nodes=0.06, restarts=3, level="rack"),
    Kind("docking", "science", 0.1, 1, 1, tasks=6),
    Kind("notebook", "vision", 0.05, 1, 4, fails=0.0, words=("idle-gpu",)),
    Kind("explore", "science", 0.05, 1, 2, fails=0.05, milli=500),
    Kind("sweep", "language", 0.08, 1, 0.7, tasks=10),
)


@dataclass(frozen=True, slots=True)
class Made:
    """One job to submit; ``gpus``: in all (CPUs, on a fleet without GPUs)."""

    stem: str
    project: str
    user: str
    spec: dict[str, Any]
    gpus: int


def queue_file(units: int, resource: str) -> str:
    """A queue for each team, all of one cohort, and one for everybody else; of so many GPUs (or CPUs) in all."""
    parts = {name: math.floor(units * part) for name, (_, part) in TEAMS.items()}
    rows = [
        f"  - {{name: {name}, cohort: fleet, projects: [{name}], quotas: {{default: {{{resource}: {part}}}}}}}"
        for name, part in parts.items()
    ]
    rest = units - sum(parts.values())
    rows.append(f"  - {{name: default, cohort: fleet, quotas: {{default: {{{resource}: {rest}}}}}}}")
    head = "policy: {order: fairshare, blocking: strict, backfill: easy, preemption: true}\ncohorts: [{name: fleet}]\n"
    return head + "queues:\n" + "\n".join(rows) + "\n"


def make(nodes: int, gpus_per_node: int, rng: Random, *, begun: bool = False) -> Made:
    """The next job. ``begun``: as if it had been running for a while already, as most would be on a fleet that is at work."""
    kind = rng.choices(KINDS, [kind.share for kind in KINDS])[0]
    most = max(1, min(round(nodes * kind.nodes), nodes, MOST_NODES))
    wide = 2 ** rng.randint(0, int(math.log2(most)))
    per_node = min(kind.gpus or gpus_per_node, gpus_per_node)
    run_s = min(max(kind.hours * HOUR * math.exp(rng.gauss(0, kind.spread)), ADJUST_S), 14 * 24 * HOUR)
    limit_s = math.ceil(run_s * rng.uniform(1.1, 3.0) / ADJUST_S) * ADJUST_S
    if begun:
        run_s = max(run_s * rng.random(), ADJUST_S)
    if rng.random() < 0.02:
        run_s = limit_s + ADJUST_S  # somebody always misjudges it
    command = [*kind.words, "sleep", f"{run_s:.0f}"]
    if rng.random() < kind.fails:
        command = [*kind.words, "sleep", f"{max(run_s * rng.random(), 1):.0f}", "then", "exit", "1"]
    spec: dict[str, Any] = {
        "command": command,
        "nodes": wide,
        "procs": max(per_node, 1),
        "launcher": "torchrun" if per_node * wide > 1 else "none",
        "resources": {"cpus": 8.0 * max(per_node, 1), "memory": max(per_node, 1) * (64 << 30), "gpus": per_node},
        "time_limit": limit_s,
    }
    if kind.milli and gpus_per_node:
        spec["resources"] |= {"gpus": 0, "gpu_share": kind.milli / 1000}
    if kind.restarts:
        spec["max_restarts"] = kind.restarts
    if kind.priority:
        spec["priority"] = kind.priority
    if kind.level and wide > 1:
        spec["placement"] = {"level": kind.level, "required": False}
    if kind.tasks:
        spec["array"] = {"count": kind.tasks, "max_parallel": max(1, kind.tasks // 2)}
    people = TEAMS[kind.project][0]
    units = per_node if gpus_per_node else 8
    return Made(kind.stem, kind.project, rng.choice(people), spec, units * wide * max(kind.tasks // 2, 1))


def wanted(load: float, units: int, now: float, began: float, speed: float) -> float:
    """How many GPUs are to be asked for: on average ``load`` of them, more by a quarter and less by turns over a day."""
    return load * units * (1 + 0.25 * math.sin((now - began) * speed / (24 * HOUR) * 2 * math.pi))
