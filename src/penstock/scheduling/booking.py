"""What the pool books of a share that is held."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.scheduling.state import Share


@dataclass(slots=True)
class Placed:
    """One share as the pool books it: node index, whole GPUs as bits, the shared GPU's position, MIG instances."""

    share: Share
    index: int
    bits: int = 0
    shared: int = -1
    instances: tuple[tuple[int, int], ...] = ()
