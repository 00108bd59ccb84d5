"""What a fault is: its name, the cause it brings about, what it needs, and how strong it may be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# What a fault may need.
ROOT: Final = "root"
HOOK: Final = "hook"  # the training reads PENSTOCK_INJECT
NETWORK: Final = "network"  # the rank has a network namespace of its own: the machine's other traffic is left alone
NEEDS_WORDS: Final = {
    ROOT: "root on the node",
    HOOK: "a training that opted in: PENSTOCK_INJECT in the job's env, and penstock.watch in its script",
    NETWORK: "ranks in network namespaces of their own",
}


@dataclass(frozen=True, slots=True)
class Strength:
    """``low`` to ``high`` are what trials draw from; any positive number may be asked for."""

    default: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True, slots=True)
class Fault:
    """``everywhere``: it concerns all ranks, whichever is named. ``inside`` is its name in worker/faults.py, "" for one that acts from outside."""

    name: str
    cause: str  # its id in the catalogue of causes
    layer: str
    words: str
    strength: Strength
    needs: frozenset[str] = frozenset({ROOT})
    everywhere: bool = False
    inside: str = ""
    ends_job: bool = False  # the job fails, or stands still until it is undone


@dataclass(frozen=True, slots=True)
class Target:
    """One rank's process on this machine. ``start`` makes sure that it is still that process."""

    rank: int
    pid: int
    start: int
    node: str = ""
    hook: str = ""  # the file that its training reads
    checkpoints: str = ""  # its folder of checkpoints


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done: ``targets`` are the chosen ranks, ``peers`` all ranks of the job here."""

    fault: Fault
    strength: float
    targets: tuple[Target, ...]
    peers: tuple[Target, ...]
    until: float  # epoch seconds
    place: str = ""  # a file or folder, for faults of storage


def words(fault: Fault, ranks: Sequence[int], strength: float, for_s: float) -> str:
    """What is about to be done, for people and for the ledger."""
    who = "all ranks" if fault.everywhere else f"rank {', '.join(map(str, ranks))}" if ranks else "rank 0"
    much = f", {strength:g} {fault.strength.unit}" if fault.strength.unit else ""
    return f"{fault.name} ({fault.words}{much}) into {who} for {for_s:g} s"
