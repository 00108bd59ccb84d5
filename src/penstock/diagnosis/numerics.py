"""The numbers of a training: losses that leave their course, parameters that should be equal and are not. Pure.

Losses are judged against their own recent past, by median and median deviation, so that one bad value moves nothing. What is
found is tied to what happened on the nodes at that time: a restart, a memory error, another epoch.

Checksums of parameters are compared part by part. That they differ from the first time on is the program's doing
(``param_desync``); that they agreed and then differ is not (``sdc``), and the minority is the suspect. Who had his parameters
change while no optimizer ran is the one in any case, also of two: if the program wrote to them, it is the program's doing.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import named
from penstock.diagnosis.state import Evidence, Rank, Step

WINDOW: Final = 50  # losses that are a loss's recent past
FEWEST: Final = 12
RISE: Final = 0.15  # of the usual loss that a spike must rise by: quiet losses have tiny deviations
LASTING: Final = 20  # steps after which a spike that stays is a divergence
NEAR_S: Final = 120.0  # something that happened so long before may have to do with it
MOST_STEPS: Final = 5000  # of one rank, the last ones
MOST_TIES: Final = 8
_SHARDED: Final = frozenset({"fsdp", "fsdp2", "deepspeed", "pipeline", "tensor"})
_HARDWARE: Final = ("Xid", "Ecc", "ECC", "RowRemap", "Gpu", "Thermal", "Mce", "Memory", "NVLink", "Nvlink", "Pcie")


class Kind(StrEnum):
    NOT_FINITE = "not finite"
    SPIKE = "spike"  # up, and back
    DIVERGENCE = "divergence"  # up, and it stays
    JUMP = "jump"  # another level from a restart on


@dataclass(frozen=True, slots=True)
class Tie:
    """Something that happened near: ``what`` a finding's rule or an event's word."""

    at: float
    what: str
    words: str
    node: str = ""

    @property
    def hardware(self) -> bool:
        return bool(self.node) and self.what.startswith(_HARDWARE)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """``ranks``: where it showed first, before the others took it over; () is all of them together."""

    kind: Kind
    cause: str
    step: int
    at: float
    value: float
    usual: float | None
    z: float | None
    ranks: tuple[int, ...]
    ties: tuple[Tie, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Parameters that differ between ranks. ``ranks``: the suspects; () where no majority tells.

    ``step``: the first time that they differ; ``agreed``: the last time that they did not, None: never.
    """

    cause: str  # "sdc" or "param_desync"
    step: int
    agreed: int | None
    at: float
    ranks: tuple[int, ...]
    ties: tuple[Tie, ...]
    words: str


# -- losses --------------------------------------------------------------------------------------------------------------


def losses(evidence: Evidence) -> tuple[Anomaly, ...]:
    """By step: at the most one of each kind, the first."""
    found: dict[Kind, Anomaly] = {}
    first = _not_finite(evidence)
    if first is not None:
        found[first.kind] = first
    for anomaly in sorted(_outliers(evidence, first), key=lambda each: (each.step, each.ranks)):
        known = found.get(anomaly.kind)
        if known is None:
            found[anomaly.kind] = anomaly
        elif known.step == anomaly.step:
            found[anomaly.kind] = _together(evidence, known, anomaly)
    return tuple(sorted(found.values(), key=lambda anomaly: (anomaly.step, anomaly.kind)))


def _not_finite(evidence: Evidence) -> Anomaly | None:
    """The first step whose loss or gradient is no number, and the ranks that had it then."""
    bad: dict[int, list[tuple[Rank, Step, float]]] = {}
    for rank in evidence.ranks:
        for step in rank.steps[-MOST_STEPS:]:
            value = next((v for v in (step.loss, step.grad_norm) if v is not None and not math.isfinite(v)), None)
            if value is not None:
                bad.setdefault(step.step, []).append((rank, step, value))
    if not bad:
        return None
    number = min(bad)
    at = min(step.at for _, step, _ in bad[number])
    ranks = _whose(evidence, [rank.rank for rank, _, _ in bad[number]])
    ties = near(evidence, at)
    where = f"on {named(ranks)} alone at first" if ranks else "on all ranks at once"
    word = (
        "loss or gradient is infinite" if any(math.isinf(v) for _, _, v in bad[number]) else "loss or gradient is NaN"
    )
    words = f"{word} from step {number} on, {where}{_told(ties)}"
    return Anomaly(Kind.NOT_FINITE, "nan_loss", number, at, bad[number][0][2], None, None, ranks, ties, words)


def _outliers(evidence: Evidence, before: Anomaly | None) -> Iterator[Anomaly]:
    restarts = [event.at for event in evidence.happened if "estart" in event.what]
    for rank in evidence.ranks:
        line = [s for s in rank.steps[-MOST_STEPS:] if s.loss is not None and math.isfinite(s.loss)]
        line = [s for s in line if before is None or s.step < before.step]
        yield from _of_rank(evidence, rank.rank, line, restarts)


def _of_rank(evidence: Evidence, rank: int, line: Sequence[Step], restarts: Sequence[float]) -> Iterator[Anomaly]:
    """The first spike and the first lasting rise of one rank's loss."""
    values = [step.loss or 0.0 for step in line]
    wanted = {Kind.SPIKE, Kind.DIVERGENCE, Kind.JUMP}
    level, index = 0, FEWEST  # ``level``: since when the loss is where it is
    while index < len(line) and wanted:
        past = values[max(level, index - WINDOW) : index]
        usual, deviation = median_and_deviation(past)
        z = (values[index] - usual) / deviation
        if z < t.SPIKE or values[index] - usual < RISE * abs(usual):
            index += 1
            continue
        step, later = line[index], values[index + 1 : index + 1 + LASTING]
        limit = usual + max(t.SPIKE / 2 * deviation, RISE / 2 * abs(usual))
        high = sum(value > limit for value in later)
        stays = len(later) >= LASTING // 2 and high >= 0.8 * len(later)
        began = next((at for at in restarts if line[index - 1].at <= at + 1e-9 and at <= step.at), None)
        kind = Kind.JUMP if stays and began is not None else Kind.DIVERGENCE if stays else Kind.SPIKE
        if kind in wanted:
            wanted.remove(kind)
            ties = near(evidence, step.at)
            words = (
                f"the loss of rank {rank} rose from {usual:.4g} to {values[index]:.4g} at step {step.step} (z {z:.0f})"
            )
            words += {Kind.SPIKE: ", and came back", Kind.DIVERGENCE: ", and stays high"}.get(kind, ", with a restart")
            yield Anomaly(
                kind, "loss_spike", step.step, step.at, values[index], usual, z, (rank,), ties, words + _told(ties)
            )
        level = index if stays else level
        index += 1 + (LASTING if stays else high)


def _together(evidence: Evidence, one: Anomaly, other: Anomaly) -> Anomaly:
    """The same step on several ranks is one anomaly; on all of them nobody's alone."""
    ranks = _whose(evidence, [*one.ranks, *other.ranks]) if one.ranks else ()
    larger = one if (one.z or 0.0) >= (other.z or 0.0) else other
    words = (
        larger.words
        if ranks
        else larger.words.replace(f"the loss of rank {larger.ranks[0]}", "the loss")
        if larger.ranks
        else larger.words
    )
    return Anomaly(
        one.kind,
        one.cause,
        one.step,
        min(one.at, other.at),
        larger.value,
        larger.usual,
        larger.z,
        ranks,
        one.ties,
        words,
    )


def median_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the median deviation as a normal distribution's standard deviation; never 0."""
    usual = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - usual) for value in values)
    return usual, max(deviation, 1e-3 * abs(usual), 1e-12)


# -- checksums ---------------------------------------------------------------------------------------------------------


def checksums(evidence: Evidence) -> Disagreement | None:
    """Whether ranks that should hold the same parameters do. None: they agree, or nothing was compared."""
    if _sharded(evidence):
        return None
    known = _compared(evidence.ranks)
    differing = sorted(key for key, values in known.items() if len(set(values.values())) > 1)
    if not differing:
        return None
    step, part = differing[0]
    moved = _moved(evidence.ranks, step)
    if moved is not None:
        return _by_itself(evidence, moved, step)
    agreed = [s for (s, p), values in known.items() if s < step and len(set(values.values())) == 1]
    same = [s for (s, p), values in known.items() if p == part and s < step and len(set(values.values())) == 1]
    last = max(same or agreed, default=None)
    cause = "param_desync" if last is None else "sdc"
    at = _when(evidence.ranks, step)
    suspects = _suspects(evidence, known[step, part], cause, step)
    ties = near(evidence, at)
    who = named(suspects) if suspects else "no rank is in the minority"
    began = "from the first comparison on" if last is None else f"they agreed up to step {last}"
    words = f"checksums of parameters differ at step {step}: {who}; {began}{_told(ties)}"
    return Disagreement(cause, step, last, at, suspects, ties, words)


@dataclass(frozen=True, slots=True)
class _Moved:
    """Of one rank, between the end of a step and the optimizer's next one."""

    rank: int
    step: int
    written: bool  # the program wrote to them; no: they changed by themselves
    at: float


def _moved(ranks: Sequence[Rank], differ: int) -> _Moved | None:
    """The last change of one rank alone, before the step at which they differ; what all of them do is meant to be."""
    found: dict[int, list[_Moved]] = {}
    for rank in ranks:
        for reading in rank.counters:
            step = reading.values.get("moved_step")
            if step is not None and step <= differ:
                written = reading.values.get("moved_written", 0.0) > 0
                found.setdefault(int(step), []).append(_Moved(rank.rank, int(step), written, reading.at))
    return next((found[step][0] for step in sorted(found, reverse=True) if len(found[step]) == 1), None)


def _by_itself(evidence: Evidence, moved: _Moved, differ: int) -> Disagreement:
    cause = "param_desync" if moved.written else "sdc"
    ties = near(evidence, moved.at)
    how = "the program wrote to them" if moved.written else "nothing in the program had written to them"
    words = (
        f"the parameters of rank {moved.rank} changed after step {moved.step} while no optimizer ran, and {how}; the ranks'"
        f" checksums differ from step {differ} on{_told(ties)}"
    )
    return Disagreement(cause, differ, moved.step, moved.at, (moved.rank,), ties, words)


def _sharded(evidence: Evidence) -> bool:
    """Whether each rank holds its own part of the parameters, so that nothing should be equal."""
    wrappers = {str(rank.config.get("wrapper", "")) for rank in evidence.ranks}
    return evidence.topology in _SHARDED or bool(wrappers & _SHARDED)


def _compared(ranks: Sequence[Rank]) -> dict[tuple[int, int], dict[int, float]]:
    """By step and part: each rank's checksum, where two or more have one."""
    found: dict[tuple[int, int], dict[int, float]] = {}
    for rank in ranks:
        for reading in rank.counters:
            value = reading.values.get("checksum")
            if value is not None and math.isfinite(value):
                key = (int(reading.values.get("checksum_step", 0)), int(reading.values.get("checksum_part", 0)))
                found.setdefault(key, {})[rank.rank] = value
    return {key: values for key, values in found.items() if len(values) > 1}


def _suspects(evidence: Evidence, values: Mapping[int, float], cause: str, step: int) -> tuple[int, ...]:
    """The minority; of two alike large groups the one whose losses jumped, or, from the first step on, the one without rank 0."""
    counts = Counter(values.values()).most_common()
    if len(counts) > 1 and counts[0][1] > counts[1][1]:
        return tuple(sorted(rank for rank, value in values.items() if value != counts[0][0]))
    if cause == "param_desync":
        return tuple(sorted(rank for rank, value in values.items() if value != values.get(0, counts[0][0])))
    return _jumped(evidence, values, step)


def _jumped(evidence: Evidence, values: Mapping[int, float], step: int) -> tuple[int, ...]:
    """The rank whose own loss or gradient left its course most near that step, if one clearly did."""
    by_rank: list[tuple[float, int]] = []
    for rank in evidence.ranks:
        if rank.rank in values:
            by_rank.append((max(_jump(rank.steps, step, name) for name in ("loss", "grad_norm")), rank.rank))
    by_rank.sort(reverse=True)
    if not by_rank or by_rank[0][0] < t.SPIKE:
        return ()
    return (by_rank[0][1],) if len(by_rank) < 2 or by_rank[0][0] > 2 * by_rank[1][0] else ()


def _jump(steps: Sequence[Step], step: int, name: str) -> float:
    known = [(s.step, v) for s in steps[-MOST_STEPS:] if (v := getattr(s, name)) is not None and math.isfinite(v)]
    past = [value for number, value in known if number < step - LASTING][-WINDOW:]
    recent = [value for number, value in known if step - LASTING <= number <= step + LASTING]
    if len(past) < FEWEST or not recent:
        return 0.0
    usual, deviation = median_and_deviation(past)
    return max(abs(float(value) - usual) / deviation for value in recent)


def _when(ranks: Sequence[Rank], number: int) -> float:
    ends = [step.at for rank in ranks for step in rank.steps if step.step == number]
    read = [r.at for rank in ranks for r in rank.counters if r.values.get("checksum_step") == number]
    return min(ends or read or [0.0])


# -- what happened near --------------------------------------------------------------------------------------------------


def near(evidence: Evidence, at: float, before_s: float = NEAR_S) -> tuple[Tie, ...]:
    """Findings of the job's nodes and events of the job shortly before ``at``, hardware first."""
    known = {rank.node for rank in evidence.ranks}
    ties = [
        Tie(finding.first_at, finding.rule, finding.message, node.name)
        for node in evidence.nodes
        if node.name in known or not known
        for finding in node.findings
        if at - before_s <= finding.first_at <= at + 1.0 or at - before_s <= finding.at <= at + 1.0
    ]
    ties += [Tie(e.at, e.what, e.message) for e in evidence.happened if at - before_s <= e.at <= at + 1.0]
    ordered = sorted(ties, key=lambda tie: (not tie.hardware, abs(at - tie.at), tie.what, tie.words))
    return tuple(ordered[:MOST_TIES])


def _told(ties: Sequence[Tie]) -> str:
    hard = [tie for tie in ties if tie.hardware]
    return f"; shortly before, {hard[0].node} told of {hard[0].what}: {hard[0].words}" if hard else ""


def _whose(evidence: Evidence, ranks: Sequence[int]) -> tuple[int, ...]:
    """() where it is every rank."""
    return () if len(set(ranks)) == len(evidence.ranks) > 1 else tuple(sorted(set(ranks)))
