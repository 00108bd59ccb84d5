"""How well causes are named: the held-out corpus (``diagnosis_run --held-out``), diagnosed by the rules as they are now.

The evidence of every trial is kept, so the bars are of this very code whenever they are measured. What the rules that were there
before a trial was drawn made of it stands in its line, and beside each bar. ``python -m benchmarks.diagnosis --docs`` writes
docs/diagnosis-confusion.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.diagnosis_corpus import Record, read
from benchmarks.diagnosis_score import HEALTHY, apart, culprit_right, diagnosed, in_three, pairs, right
from benchmarks.harness import Bar, percentile, show
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Evidence

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "benchmarks/diagnosis/held-out.jsonl.gz"
PAGE = ROOT / "docs/diagnosis-confusion.md"
_LOOKS = (6, 9, 12, 15, 18, 21, 24, 27, 30)  # steps after the fault
SLOW = frozenset(
    {"data_loader_bound", "data_loader_one_rank", "slow_compute_rank", "seq_imbalance", "gc_pause", "cpu_contention",
     "cgroup_throttle", "net_bandwidth_low", "slow_link_pair"}
)  # fmt: skip


def measure() -> list[Bar]:
    before = list(read(CORPUS))
    now = [diagnosed(record)[0] for record in before]
    injected = [record for record in now if record.truth.causes]
    healthy = [record for record in now if not record.truth.causes]
    classes = Counter(record.truth.causes[0] for record in injected)
    drawn = f"n={len(injected)}, {sum(len(r.truth.causes) > 1 for r in injected)} of two faults; by the rules that were there first: "

    def first(shares: Sequence[bool]) -> str:
        return f"{drawn}{_percent(shares):.1f}%"

    named = [found for record in injected if (found := culprit_right(record)) is not None]
    flagged = [record for record in healthy if _verdict(record) != HEALTHY]
    counted = [record for record in flagged if not apart(record)]
    hung = [float(r.facts["hung_s"]) for r in injected if "hung_s" in r.facts]
    seen = [steps for record in injected if (steps := steps_until_seen(record)) is not None]
    old = [record for record in before if record.truth.causes]
    return [
        Bar("cause named first", _percent([right(r, _verdict(r)) for r in injected]), 90, "%", "at least", first([right(r, _verdict(r)) for r in old])),
        Bar("cause among the first three", _percent([in_three(r) for r in injected]), 98, "%", "at least", first([in_three(r) for r in old])),
        Bar("culprit named", _percent(named), 95, "%", "at least", f"n={len(named)}: where the cause is of a rank or a link"),
        Bar("healthy runs flagged", _share(len(counted), len(healthy)), 2, "%", note=f"{len(counted)} of {len(healthy)}; apart, contention that run delay proves: {len(flagged) - len(counted)}"),
        Bar("healthy runs", len(healthy), 200, "runs", "at least"),
        Bar("classes of 10 trials or more", sum(count >= 10 for count in classes.values()), 20, "classes", "at least", f"of {len(classes)}"),
        Bar("a hang is seen (P95)", percentile(hung, 0.95) if hung else None, 15, "s", note=f"n={len(hung)}: no rank reports a step for 5 s"),
        Bar("a slow-down is seen (P95)", percentile(seen, 0.95) if seen else None, 30, "steps", note=_spread(seen)),
    ]  # fmt: skip


def _verdict(record: Record) -> str:
    return str(record.facts["diagnosis"]["verdict"])


def _percent(shares: Sequence[bool]) -> float:
    return _share(sum(shares), len(shares)) or 0.0


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _spread(seen: Sequence[float]) -> str:
    return f"n={len(seen)}, median {statistics.median(seen):g}; looked at each 3 steps" if seen else ""


def steps_until_seen(record: Record) -> float | None:
    """Of a fault that makes steps longer: how many steps after it a diagnosis is no longer "healthy". None: of other faults."""
    if record.truth.causes[0] not in SLOW or not record.truth.at_step:
        return None
    for steps in _LOOKS:
        if diagnose(until(record.evidence, record.truth.at_step + steps)).verdict != HEALTHY:
            return steps
    return float("inf")


def until(evidence: Evidence, step: int) -> Evidence:
    """What was known when ``step`` had ended: of a running job, so that nothing of its end is there."""
    at = max((s.at for rank in evidence.ranks for s in rank.steps if s.step < step), default=evidence.at)
    ranks = tuple(
        replace(
            rank,
            steps=tuple(s for s in rank.steps if s.step < step),
            counters=tuple(reading for reading in rank.counters if reading.at <= at),
            lines=tuple(line for line in rank.lines if line.at <= at),
            exit_code=None,
            signal=None,
            state="S",
        )
        for rank in evidence.ranks
    )
    return replace(evidence, ranks=ranks, phase="Running", at=at)


# -- the page ------------------------------------------------------------------------------------------


def page() -> str:
    records = [diagnosed(record)[0] for record in read(CORPUS)]
    found = pairs(records)
    wrong = sum(count for (cause, said), count in found.items() if cause != said)
    lines = [
        "# What causes are taken for", "",
        "Made from `benchmarks/diagnosis/held-out.jsonl.gz` by `python -m benchmarks.diagnosis --docs`: faults injected for real into",
        "trainings of 2 to 4 ranks, and runs without any. Class, strength, rank and seed were drawn after the rules had been committed; no rule was set",
        "by these trials. Of two faults at once either counts as right, and is counted for the first. `unknown` counts as wrong.", "",
        "| injected | trials | named first | taken for |", "|---|---|---|---|",
    ]  # fmt: skip
    for cause in sorted({cause for cause, _ in found}):
        row = {said: count for (one, said), count in found.items() if one == cause}
        others = ", ".join(f"`{said}` {count}" for said, count in sorted(row.items()) if said != cause)
        lines.append(f"| `{cause}` | {sum(row.values())} | {row.get(cause, 0)} | {others} |")
    lines += [
        "",
        f"{len(records)} trials, {wrong} of them not as injected.",
        "",
        "| bar | measured | asked for |",
        "|---|---|---|",
    ]
    for bar in measure():
        sign = "<=" if bar.direction == "at most" else ">="
        lines.append(
            f"| {bar.name} | {'-' if bar.value is None else f'{bar.value:.1f} {bar.unit}'}; {bar.note} | {sign} {bar.limit:g} {bar.unit} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--docs", action="store_true", help="write docs/diagnosis-confusion.md")
    asked = parser.parse_args()
    if asked.docs:
        PAGE.write_text(page())
        return 0
    return show(measure(), as_json=asked.json)


if __name__ == "__main__":
    sys.exit(main())
