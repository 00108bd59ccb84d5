"""What was seen of a training: its ranks' reports, and how each rank looked when it was looked at. Frozen, and pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

NO_FRAMES = "py-spy saw no frames"  # the probe's words, which runs on nodes and imports nothing of ours


@dataclass(frozen=True, slots=True)
class Point:
    """A rank's report. ``step`` is None of one that names none."""

    at: float
    rank: int
    step: int | None


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a Python stack, as py-spy has it."""

    name: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.name} ({self.file.rpartition('/')[2]}:{self.line})"


@dataclass(frozen=True, slots=True)
class Look:
    """A rank's process, looked at twice, some moments apart."""

    rank: int
    node: str
    pid: int
    start: int  # clock ticks after boot: with the pid it names the process
    state: str  # R, S, D, T ... of proc_pid_stat(5), of the second look
    wait: str = ""  # what the kernel calls the place in which it waits
    cpu: float = 0.0  # cores that it and what it started used between the looks
    io: int = 0  # bytes that it read and wrote between the looks
    frames: tuple[Frame, ...] = ()  # innermost first, of the second look; empty: no stack could be had
    moved: bool = False  # its stack was another one at the first look
    why_no_stack: str = ""
    over_s: float = 0.0  # between the looks
    grown: Mapping[str, float] = field(default_factory=dict)  # counters as worker/counting.py names them, meanwhile


@dataclass(frozen=True, slots=True)
class Group:
    """How far each rank of a communicator had come in its collectives; ``at``: when the last was begun, epoch seconds;
    ``called``: what that was.
    """

    name: str
    last: Mapping[int, int]  # sequence number by rank
    at: Mapping[int, float]
    called: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flight:
    """What ranks' Flight Recorders held. ``heard``: the ranks whose dump was read, though it may be empty."""

    heard: frozenset[int] = frozenset()
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was collected of a job that makes no progress."""

    looks: tuple[Look, ...]
    world: int
    steps: Mapping[int, int]  # the last step that each rank reported in this life
    flight: Flight = Flight()
    silent: Mapping[str, str] | None = None  # nodes that could not be looked at, and why


class Clue(StrEnum):
    """By what a culprit is known."""

    STOPPED = "stopped"
    GONE = "gone"
    FLIGHT = "fewer collectives"
    ANOTHER = "another collective"
    APART = "not in the collective"
    STEPS = "fewest steps"
    NONE = "unknown"


@dataclass(frozen=True, slots=True)
class Culprit:
    """``ranks`` is empty where nobody can be named. ``nodes``: those that are to blame, where evidence says so."""

    ranks: tuple[int, ...]
    clue: Clue
    words: str
    nodes: tuple[str, ...] = ()
