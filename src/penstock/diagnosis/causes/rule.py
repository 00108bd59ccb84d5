"""What a rule of the diagnosis says: a cause that may be, how well it is founded, and how much of the trouble it accounts for. Pure.

The score is plain: each kind of proof has a least and a most, the strength goes between them, and each thing that speaks
against takes some of it away. Strength is the part of a step that would be saved (``WHOLE`` counts as all), or how sure a fact is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.features import Features, View
from penstock.diagnosis.state import Culprit


class Proof(Enum):
    """How a cause is known: (least, most) of its score."""

    FACT = (0.86, 0.99)  # something named it: the kernel, an exception, an event
    COUNTER = (0.50, 0.90)  # a counter or a clock of just this was read
    TIMING = (0.42, 0.80)  # what is left when nothing else explains the times
    SETTING = (0.41, 0.60)  # a setting that costs time or makes errors, whether or not it does so here
    HINT = (0.05, 0.30)  # worth a look; never a verdict


@dataclass(frozen=True, slots=True)
class Found:
    cause: str
    proof: Proof
    strength: float
    culprits: tuple[Culprit, ...]
    evidence: tuple[str, ...]
    against: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        least, most = self.proof.value
        return max(0.0, least + (most - least) * min(1.0, max(0.0, self.strength)) - t.AGAINST * len(self.against))


Rule = Callable[[Features], Iterable[Found]]


def by_lost(part: float) -> float:
    """The strength of a cause that costs this part of a step."""
    return part / t.WHOLE


# -- words -------------------------------------------------------------------------------------------------------------


def ms(seconds: float) -> str:
    """A duration as a reader takes it in: "0.3 ms", "310 ms", "2.1 s"."""
    if abs(seconds) >= 1:
        return f"{seconds:.1f} s"
    value = seconds * 1000
    return f"{value:.0f} ms" if abs(value) >= 10 else f"{value:.1f} ms"


def pct(part: float) -> str:
    return f"{100 * part:.0f}%" if part >= 0.1 else f"{100 * part:.1f}%" if part >= 0.001 else f"{100 * part:.2f}%"


def named(ranks: Iterable[int]) -> str:
    """As a sentence has them: rank 1, ranks 1 and 3, ranks 0, 1 and 2."""
    names = [str(rank) for rank in sorted(ranks)]
    if len(names) == 1:
        return f"rank {names[0]}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}" if names else "no rank"


# -- culprits --------------------------------------------------------------------------------------------------------


def job(features: Features) -> tuple[Culprit, ...]:
    """All of it: no rank or node is to blame more than another."""
    return (Culprit("job", features.evidence.job),)


def ranks(numbers: Iterable[int]) -> tuple[Culprit, ...]:
    return tuple(Culprit("rank", str(number)) for number in sorted(set(numbers)))


def nodes(names: Iterable[str]) -> tuple[Culprit, ...]:
    return tuple(Culprit("node", name) for name in sorted(set(names)) if name)


def whose(features: Features, views: Sequence[View]) -> tuple[Culprit, ...]:
    """The ranks, unless that is every one of several: then it is the node they share, or the job."""
    if len(views) < len(features.ranks) or len(features.ranks) < 2:
        return ranks(view.rank for view in views)
    shared = {view.node for view in views}
    return nodes(shared) if len(shared) == 1 and "" not in shared else job(features)


def shortest_wait(features: Features, view: View) -> str:
    """What tells the slow rank: it is the one that others wait for."""
    own, others = view.now.median.get("comm"), features.peers(view, "comm")
    if own is None or others is None:
        return ""
    if own <= others:
        return f"its own wait in the all-reduce is the shortest: {ms(own)} a step, its peers' {ms(others)}: they wait for it"
    return ""


def waits_itself(features: Features, view: View) -> str:
    """What speaks against a rank being slow."""
    own, others = view.now.median.get("comm"), features.peers(view, "comm")
    if own is None or others is None or own <= others + t.LOST * features.step:
        return ""
    return f"it waits {ms(own)} a step for others itself, they {ms(others)}"


def said(*words: str) -> tuple[str, ...]:
    """Those that say something."""
    return tuple(word for word in words if word)
