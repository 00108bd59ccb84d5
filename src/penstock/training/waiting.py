"""A rank that the others wait for, from how often each of them was seen to wait. Pure.

Where a script does not say how long its ranks work, their processes do: each is sampled at random moments over some steps. Who is
slow is seldom in a collective; its peers often are, since they wait there for it. A rank is called a straggler when in each of
``LOOKS`` looks it waited less than its peers, and in all of them together by so much that chance does not make it. What does not
show that steps were made (an evaluation by one rank, a save, a hang) counts for nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from penstock.training.culprit import held
from penstock.training.state import Frame

SAMPLES = 24  # of each rank in one look
LEAST = 12
LOOKS = 4  # that must agree
GAP = 0.25  # of its time: how much less it waits than the median of its peers, in all looks
EACH = 0.1  # in each look; and below it, in all of them, it straggles no more
SURE = 4.0  # standard deviations
_BACKWARD = "_engine_run_backward"


@dataclass(frozen=True, slots=True)
class Sample:
    """One rank at one moment: its main thread's state by the kernel, and its innermost frames where they could be had."""

    state: str
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Tally:
    """One look: of each rank how many samples there are, and in how many of them it waited for others."""

    seen: Mapping[int, int]
    waited: Mapping[int, int]
    went_on: bool  # steps were made meanwhile

    def share(self, rank: int) -> float:
        return self.waited[rank] / self.seen[rank]


@dataclass(frozen=True, slots=True)
class Awaited:
    """A rank that holds its peers up. ``waited``, ``peers``: the part of the time that it waits, and the median of its peers."""

    rank: int
    waited: float
    peers: float
    samples: int

    @property
    def slower(self) -> float:
        return (1 - self.waited) / max(1 - self.peers, 0.01)

    def words(self, node: str) -> str:
        return (
            f"rank {self.rank} on {node} holds its peers up: they were seen waiting for others in {self.peers:.0%} of the "
            f"moments at which they were looked at, it in {self.waited:.0%} ({self.samples} moments)"
        )

    def data(self) -> dict[str, float | int | str]:
        shares = {"waits": round(self.waited, 3), "peers_wait": round(self.peers, 3)}
        return {"rank": self.rank, "slower": round(self.slower, 3), "samples": self.samples, "by": "samples", **shares}


def waits(sample: Sample) -> bool:
    """Whether it waits for other ranks. Who is stopped, or wants a processor, or the disk, does not, whatever its stack says.

    A backward pass computes and waits at one line of Python: there it is told by whether the thread sleeps. Of ranks whose
    stacks nobody may see, who sleeps is taken to wait.
    """
    if sample.state in "TtDZX":
        return False
    if not sample.frames:
        return sample.state == "S"
    if sample.frames[0].name == _BACKWARD:
        return sample.state == "S"
    return held(sample.frames)


def tally(samples: Mapping[int, Sequence[Sample]], world: int, *, stepped: bool) -> Tally | None:
    """None where it tells nothing: a rank was not seen often enough, or stacks of some ranks alone. ``stepped``: the job has
    reported a step meanwhile; else that there were steps shows in a rank that was seen both at work and waiting.
    """
    if world < 2 or any(len(samples.get(rank, ())) < LEAST for rank in range(world)):
        return None
    if len({any(sample.frames for sample in samples[rank]) for rank in range(world)}) > 1:
        return None
    seen = {rank: len(samples[rank]) for rank in range(world)}
    waited = {rank: sum(map(waits, samples[rank])) for rank in range(world)}
    return Tally(seen, waited, stepped or any(0 < waited[rank] < seen[rank] for rank in range(world)))


def find(looks: Sequence[Tally], known: Collection[int] = ()) -> tuple[Awaited, ...]:
    """Who straggles now, by the newest looks at one and the same ranks; ``known``: who did, and does until it is over."""
    newest = [look for look in looks if look.went_on][-LOOKS:]
    if len(newest) < LOOKS:
        return ()
    found = [one for one in _pooled(newest) if _straggles(one, newest, one.rank in known)]
    return tuple(found) if len(found) * 2 <= len(newest[0].seen) else ()  # half of the ranks are no exception


def suspects(looks: Sequence[Tally]) -> bool:
    """Whether looking again soon is worth it: so far somebody stands out."""
    newest = [look for look in looks if look.went_on][-LOOKS:]
    return bool(newest) and any(one.peers - one.waited >= GAP for one in _pooled(newest))


def _pooled(looks: Sequence[Tally]) -> list[Awaited]:
    seen = {rank: sum(look.seen[rank] for look in looks) for rank in looks[0].seen}
    shares = {rank: sum(look.waited[rank] for look in looks) / seen[rank] for rank in seen}
    return [Awaited(rank, shares[rank], _peers(shares, rank), seen[rank]) for rank in seen]


def _peers(shares: Mapping[int, float], rank: int) -> float:
    return statistics.median(share for other, share in shares.items() if other != rank)


def _straggles(one: Awaited, looks: Sequence[Tally], known: bool) -> bool:
    gap = one.peers - one.waited
    if known:
        return gap >= EACH
    both = (one.peers + one.waited) / 2
    chance = math.sqrt(max(both * (1 - both), 1e-9) * 2 / one.samples)
    each = (_peers({r: look.share(r) for r in look.seen}, one.rank) - look.share(one.rank) for look in looks)
    return gap >= GAP and gap >= SURE * chance and all(less >= EACH for less in each)
