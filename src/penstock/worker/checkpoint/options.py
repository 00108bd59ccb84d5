"""What a training may say about its checkpoints beside their folder, and what they cost it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Options:
    """What is seldom changed. Durations are seconds, sizes bytes."""

    mtbf: float | None = None  # mean time between failures of the whole job, for every="auto"
    keep_every: int | None = None  # every n-th step stays for good
    asynchronous: bool = True
    reserve: int = 1 << 30  # host memory that staging leaves free
    read_back: bool = True  # read a checkpoint from the disk before it counts as one of the last `keep`
    commit_timeout: float = 600.0
    niceness: int = 10
    bytes_per_s: float | None = None
    tiers: tuple[str, ...] = ()  # folders or s3://..., for a copy of each committed checkpoint
    tier_keep: int = 3
    tier_bytes_per_s: float | None = None
    node_local: bool = False  # the folder is each node's own: nothing is shared but what the tiers are
    neighbour: bool = False  # node_local, and the next node keeps a copy of each node's files
    on_failure: Literal["tell", "raise"] = "tell"  # what step() does after a save that the disk refused


@dataclass(slots=True)
class Figures:
    """What the last save cost."""

    step: int = -1
    stall_s: float = 0.0
    durable_s: float = 0.0
    size: int = 0
    saves: int = 0
    failures: int = 0
    id: str = ""
