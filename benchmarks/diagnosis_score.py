"""How the diagnoses of a corpus compare with what was injected: the confusion matrix, and the figures of the bars.

``python -m benchmarks.diagnosis_score benchmarks/diagnosis/tuning.jsonl.gz [CAUSE...]``: by the rules as they are now; of the causes
that are named, what each trial that was taken for another was taken for, and why.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.diagnosis_corpus import Record, read
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Counters

HEALTHY = "healthy"
PROVES = 0.2  # run delay of a wall second
LINKS = frozenset(
    {"net_bandwidth_low", "packet_loss_tcp", "net_latency", "congestion_pfc", "ib_rate_degraded", "bad_cable"}
)


def diagnosed(record: Record) -> tuple[Record, str]:
    """The record with what the rules make of it now, and that in a few words."""
    found = diagnose(record.evidence)
    kept = {
        "verdict": found.verdict,
        "confidence": round(found.confidence, 3),
        "culprits": [asdict(culprit) for culprit in found.culprits],
        "causes": [[ranked.cause, round(ranked.score, 3)] for ranked in found.causes[:5]],
    }
    who = ",".join(culprit.name for culprit in found.culprits)
    mark = "ok" if right(record, found.verdict) else "WRONG"
    return replace(record, facts=record.facts | {"diagnosis": kept}), f"{mark} {found.verdict} [{who}]"


def right(record: Record, verdict: str) -> bool:
    return verdict in record.truth.causes if record.truth.causes else verdict == HEALTHY


def in_three(record: Record) -> bool:
    """Every cause that was injected is among the first three."""
    said = [cause for cause, _ in record.facts["diagnosis"]["causes"][:3]]
    return set(record.truth.causes) <= set(said)


def culprit_right(record: Record) -> bool | None:
    """None where the cause concerns the whole job. Of a link that is slow or lossy one of two ends is to be named, be it as a
    link; where there are but two ranks there is but one link, and the job is a name for it.
    """
    found, truth = record.facts["diagnosis"], record.truth
    which = truth.causes.index(found["verdict"]) if found["verdict"] in truth.causes else 0
    wanted = truth.culprits[which] if truth.culprits else ()
    if not wanted:
        return None
    named = {str(culprit["name"]).removeprefix("node-") for culprit in found["culprits"] if culprit["kind"] != "link"}
    for culprit in found["culprits"]:
        if culprit["kind"] == "link":
            named |= {end.strip().removeprefix("node-") for end in str(culprit["name"]).split("->")}
    if truth.causes[which] in LINKS:
        at_it = bool(named & {str(rank) for rank in wanted}) and len(named) <= 2
        return found["verdict"] in truth.causes and (at_it or record.world == 2)
    return named == {str(rank) for rank in wanted}


def apart(record: Record) -> bool:
    """Whether a healthy run was flagged for contention that was there: its rank's own run delay proves it."""
    if record.facts["diagnosis"]["verdict"] != "cpu_contention":
        return False
    return any(_delayed(rank.counters) > PROVES for rank in record.evidence.ranks)


def _delayed(counters: Sequence[Counters]) -> float:
    """The part of the wall time in which a rank could have run, and did not."""
    told = [reading for reading in counters if "run_delay_s" in reading.values]
    wall = told[-1].at - told[0].at if len(told) > 1 else 0.0
    return (told[-1].values["run_delay_s"] - told[0].values["run_delay_s"]) / wall if wall else 0.0


def pairs(records: Sequence[Record]) -> Counter[tuple[str, str]]:
    """(what was injected, what it was taken for) -> trials."""
    return Counter((r.truth.causes[0] if r.truth.causes else HEALTHY, _said(r)) for r in records)


def report(records: Sequence[Record]) -> str:
    injected = [record for record in records if record.truth.causes and not record.facts["refused"]]
    healthy = [record for record in records if not record.truth.causes]
    found = pairs([*injected, *healthy])
    lines = [f"{'injected':28} {'n':>4} {'right':>6}  taken for"]
    for cause in sorted({one for one, _ in found}):
        row = {said: count for (one, said), count in found.items() if one == cause}
        total = sum(row.values())
        others = ", ".join(f"{said} {n}" for said, n in sorted(row.items(), key=lambda each: -each[1]) if said != cause)
        lines.append(f"{cause:28} {total:4} {row.get(cause, 0) / total:6.0%}  {others}")
    return "\n".join([*lines, "", *summary(injected, healthy)])


def _said(record: Record) -> str:
    """Of two faults at once either is right, and is counted for the first."""
    verdict = str(record.facts["diagnosis"]["verdict"])
    return record.truth.causes[0] if record.truth.causes and right(record, verdict) else verdict


def summary(injected: Sequence[Record], healthy: Sequence[Record]) -> list[str]:
    def share(values: Sequence[bool]) -> str:
        return f"{sum(values) / len(values):.1%} ({sum(values)} of {len(values)})" if values else "none"

    named = [found for record in injected if (found := culprit_right(record)) is not None]
    return [
        f"top-1 {share([right(r, r.facts['diagnosis']['verdict']) for r in injected])}",
        f"top-3 {share([in_three(r) for r in injected])}",
        f"culprit {share(named)}",
        f"healthy flagged {share([r.facts['diagnosis']['verdict'] != HEALTHY and not apart(r) for r in healthy])}",
        f"healthy, but contention that run delay proves: {sum(apart(r) for r in healthy)}",
    ]


def main() -> int:
    path, *causes = sys.argv[1:]
    records = []
    for record in read(Path(path)):
        again, said = diagnosed(record)
        records.append(again)
        if set(causes) & set(record.truth.causes or (HEALTHY,)) and not said.startswith("ok"):
            print(
                f"{record.number}: {'+'.join(record.truth.faults) or HEALTHY} {record.truth.strengths} of {record.truth.culprits}: {said}"
            )
            for ranked in diagnose(record.evidence).causes[:3]:
                print(
                    f"    {ranked.score:.2f} {ranked.cause}: {'; '.join(ranked.evidence[:2])} BUT {'; '.join(ranked.against[:2])}"
                )
    print(report(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
