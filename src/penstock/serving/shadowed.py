"""What was seen of a candidate in shadow, counted. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.serving.state import Agreement, Counts, Histogram

FORMAT = 1
FIRST, NEWEST = 5, 5  # examples that are kept: so many of the first ones, and so many of the newest
BOUNDS = tuple(0.0005 * 2 ** (step / 2) for step in range(36))  # half a millisecond to 92 seconds


@dataclass(slots=True)
class Side:
    """One version's answers to the requests that were compared or that it failed."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, seconds: float, *, error: bool) -> None:
        self.requests += 1
        self.errors += error
        self.seconds += seconds
        self.counts[bisect_left(BOUNDS, seconds)] += 1

    def frozen(self) -> Counts:
        latency = Histogram(BOUNDS, tuple(map(float, self.counts)))
        return Counts(float(self.requests), float(self.errors), 0.0, self.seconds, latency)


@dataclass(slots=True)
class Tally:
    """Since the candidate came into shadow. ``offered``: exchanges that the gateway told of; ``received``: those of them that
    the share in shadow takes. Each of these is then one of ``compared``, ``failed``, ``unjudged``, ``skipped`` or ``dropped`` (by why), or still at work.
    """

    stable_version: int
    version: int
    offered: int = 0
    received: int = 0
    compared: int = 0
    agreed: int = 0
    failed: int = 0  # the candidate answered with an error, or not at all, where the stable version did not
    unjudged: int = 0  # the service's own function did not say
    skipped: int = 0  # the stable version failed, so there is nothing to agree with; gRPC
    dropped: dict[str, int] = field(default_factory=dict)
    problem: str = ""  # of the service's own function, the newest
    stable: Side = field(default_factory=Side)
    candidate: Side = field(default_factory=Side)
    first: list[Mapping[str, Any]] = field(default_factory=list)
    newest: list[Mapping[str, Any]] = field(default_factory=list)

    def drop(self, why: str) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + 1

    def example(self, one: Mapping[str, Any]) -> None:
        if len(self.first) < FIRST:
            self.first.append(one)
        else:
            self.newest = [*self.newest, one][-NEWEST:]

    def to_json(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("stable", "candidate")
        }  # fmt: skip
        sides = {
            name: {"requests": side.requests, "errors": side.errors, "seconds": side.seconds, "counts": side.counts}
            for name, side in (("stable", self.stable), ("candidate", self.candidate))
        }
        return {"format": FORMAT, **plain, **sides}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Tally:
        """Raises ValueError."""
        try:
            plain = {name: body[name] for name in cls.__slots__ if name not in ("stable", "candidate")}
            stable, candidate = Side(**body["stable"]), Side(**body["candidate"])
            if body["format"] != FORMAT or {len(stable.counts), len(candidate.counts)} != {len(BOUNDS) + 1}:
                raise ValueError("another format")
            return cls(**plain, stable=stable, candidate=candidate)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no tally: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Shadowed:
    """``offered`` is what the gateway told of, ``received`` what the share takes; of these ``dropped`` were not compared because there were too many, they were
    too large, or the candidate had no replica.
    """

    stable: int
    candidate: int
    agreement: Agreement
    offered: int
    received: int
    dropped: Mapping[str, int]
    unjudged: int
    problem: str
    stable_counts: Counts
    candidate_counts: Counts


def frozen(tally: Tally) -> Shadowed:
    """What a candidate failed to answer does not agree: it is among what was compared."""
    slower = tally.candidate.seconds - tally.stable.seconds
    examples = (*tally.first, *tally.newest)
    return Shadowed(
        tally.stable_version,
        tally.version,
        Agreement(tally.compared + tally.failed, tally.agreed, tally.failed, slower, examples),
        tally.offered,
        tally.received,
        dict(tally.dropped),
        tally.unjudged,
        tally.problem,
        tally.stable.frozen(),
        tally.candidate.frozen(),
    )
