"""A rank that stood still for a while, or does so now: stopped by a signal, by a debugger, or with its host."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, ms, named, pct, ranks, said
from penstock.diagnosis.features import Features, View, local, middle
from penstock.diagnosis.state import Counters, Step


@dataclass(frozen=True, slots=True)
class Stall:
    """One step that took many times the usual, and which of the ranks held it up: those whose own time it was."""

    step: int
    excess: float
    held: tuple[View, ...]
    silent: bool  # the rank's own counters stopped meanwhile, as everything in it did
    idle: bool | None  # its CPU clock stood still; None: not known

    @property
    def still(self) -> bool:
        """Stopped, and not slow at something: what computes keeps the CPU clock going, and what waits for a disk lets it count."""
        return self.silent and self.idle is True


def frozen(features: Features) -> Iterator[Found]:
    """State T now, or a step in which one rank did nothing at all."""
    stopped = [view for view in features.ranks if view.source.state in ("T", "t")]
    if stopped:
        words = f"{named(v.rank for v in stopped)} is stopped by a signal or a debugger (state T)"
        yield Found("process_frozen", Proof.FACT, 0.9, ranks(v.rank for v in stopped), (words,))
        return
    if not features.timed():
        return
    found = [stall for stall in stalls(features) if stall.held]
    total = sum(step.total for step in features.ranks[0].whole.steps)
    cost = sum(stall.excess for stall in found) / total if total > 0 else 0.0
    if not found or cost < t.STALL_PART:
        return
    if not any(stall.silent for stall in found) and cost < t.LOST and len(found) < 2:
        return
    yield _told(features, found, cost)


def _told(features: Features, found: list[Stall], cost: float) -> Found:
    longest = max(found, key=lambda stall: stall.excess)
    held = {view.rank for view in longest.held}
    proven = longest.silent and longest.idle is not False
    return Found(
        "process_frozen",
        Proof.COUNTER if proven else Proof.TIMING,
        by_lost(cost) + (0.3 if proven else 0.0),
        ranks(held),
        said(
            f"step {longest.step} took {ms(longest.excess + features.step)} instead of {ms(features.step)}, and it was the time of {named(held)}",
            "everything in it was silent meanwhile, its own counters too" if longest.silent else "",
            "its CPU clock stood still: it did not compute" if longest.idle else "",
            f"{len(found)} steps did so, {pct(cost)} of the time" if len(found) > 1 else "",
        ),
        said("it was using a core meanwhile" if longest.idle is False else ""),
    )


def stood_still(features: Features) -> frozenset[int]:
    """The steps in which a rank did nothing at all, not even count."""
    return frozenset(stall.step for stall in stalls(features) if stall.held and stall.still)


def stalls(features: Features) -> Iterator[Stall]:
    """Steps that took many times the median, which no save, collection or wait for a core explains."""
    by_step = _by_step(features)
    usual = middle(step.total for own in by_step.values() for step in own.values()) or 0.0
    for number, own in sorted(by_step.items()):
        length = middle(step.total for step in own.values()) or 0.0
        if usual <= 0 or length < t.STALL * usual:
            continue
        stall = _stall(features, number, own, length - usual)
        if stall.still or not _explained(own, length):
            yield stall


def _by_step(features: Features) -> dict[int, dict[int, Step]]:
    found: dict[int, dict[int, Step]] = {}
    for view in features.ranks:
        for step in view.whole.steps:
            found.setdefault(step.step, {})[view.rank] = step
    return {number: own for number, own in found.items() if len(own) == len(features.ranks)}


def _explained(own: Mapping[int, Step], length: float) -> bool:
    return any((step.gc or 0.0) + (step.checkpoint or 0.0) >= t.EXPLAINED * length for step in own.values())


def _stall(features: Features, number: int, own: Mapping[int, Step], excess: float) -> Stall:
    gaps = {view.rank: _gap(view, own[view.rank]) for view in features.ranks}
    long = [view for view in features.ranks if gaps[view.rank][0] >= t.GAP * excess]
    if len(long) * 2 <= max(2, len(features.ranks)) and len(long) < max(2, len(features.ranks)) and long:
        delayed = any(gaps[view.rank][2] >= t.EXPLAINED * excess for view in long)
        used = [cpu for view in long if (cpu := gaps[view.rank][1]) is not None]
        busy = max(used) if used else None
        return Stall(
            number, excess, () if delayed else tuple(long), True, None if busy is None else busy < 0.2 * excess
        )
    held = [view for view in features.ranks if (local(own[view.rank]) or 0.0) >= t.GAP * excess]
    if len(held) * 2 > max(2, len(features.ranks)) or len(held) == len(features.ranks) > 1:
        held = []
    delayed = any(gaps[view.rank][2] >= t.EXPLAINED * excess for view in held)
    return Stall(number, excess, () if delayed else tuple(held), False, None)


def _gap(view: View, step: Step) -> tuple[float, float | None, float]:
    """Around a step: how much longer than usual its counters were silent, and the CPU time and the run delay of that silence; of
    the CPU time what goes beyond the usual in what of the silence is not the step's.
    """
    ordered = sorted(view.source.counters, key=lambda reading: reading.at)
    pairs = list(itertools.pairwise(ordered))
    usual = middle(new.at - old.at for old, new in pairs)
    over = [pair for pair in pairs if pair[0].at < step.at and pair[1].at > step.at - step.total]
    if usual is None or not over:
        return 0.0, None, 0.0
    old, new = max(over, key=lambda pair: pair[1].at - pair[0].at)
    cpu, delay = (_grew(ordered, old.at, new.at, name) for name in ("cpu_s", "run_delay_s"))
    aside = max(0.0, new.at - old.at - step.total) * view.whole.rate.get("cpu_s", 0.0)
    return new.at - old.at - usual, None if cpu is None else cpu - aside, delay or 0.0


def _grew(ordered: list[Counters], begin: float, end: float, name: str) -> float | None:
    """From the last reading of it up to ``begin`` to the first from ``end`` on: not every reading has all names."""
    before = [reading.values[name] for reading in ordered if reading.at <= begin and name in reading.values]
    after = [reading.values[name] for reading in ordered if reading.at >= end and name in reading.values]
    return max(0.0, after[0] - before[-1]) if before and after else None


RULES = (frozen,)
