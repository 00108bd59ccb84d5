"""The snapshot that the scheduling planner is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.base.reasons import Reason


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node: capacity, what is free now (cores, bytes, GPU ids by model), and whether it takes new work."""

    name: str
    cpus: float
    memory: int
    gpus: int
    free_cpus: float
    free_memory: int
    free_gpus: tuple[tuple[str, str], ...] = ()  # (id, model)
    gpu_models: tuple[str, ...] = ()
    open: bool = True
    why_closed: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a job asks for: ``nodes`` groups of ``cpus`` cores, ``memory`` bytes, ``gpus`` GPUs each, all or nothing."""

    job_id: str
    name: str
    queued_at: float
    nodes: int
    cpus: float
    memory: int
    gpus: int
    gpu_model: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """One group's place: a node and the ids of its GPUs there."""

    node: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Admit:
    job_id: str
    shares: tuple[Share, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    job_id: str
    reason: Reason
    message: str
    helps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Admissions in order, and for every other workload why it waits."""

    admit: tuple[Admit, ...]
    wait: tuple[Wait, ...]
    blocked_by: str | None = None  # the workload at the head that the rest wait behind
