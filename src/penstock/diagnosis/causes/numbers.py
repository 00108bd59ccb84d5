"""What a training computes: losses that leave their course, parameters that ranks should share and do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from penstock.diagnosis import numerics
from penstock.diagnosis.causes.rule import Found, Proof, job, ranks, said
from penstock.diagnosis.features import Features
from penstock.diagnosis.numerics import Kind, Tie

_SURE: Final = {Kind.NOT_FINITE: 0.95, Kind.DIVERGENCE: 0.5, Kind.SPIKE: 0.35, Kind.JUMP: 0.3}


def losses(features: Features) -> Iterator[Found]:
    broken = numerics.checksums(features.evidence)
    found = numerics.losses(features.evidence)
    first = min((anomaly.step for anomaly in found), default=0)
    lost = any(anomaly.kind is Kind.NOT_FINITE for anomaly in found)
    for anomaly in found:
        tied = any(tie.hardware for tie in anomaly.ties)
        began = anomaly.step == first and (lost or anomaly.kind is Kind.NOT_FINITE)
        yield Found(
            anomaly.cause,
            Proof.FACT if began else Proof.COUNTER,
            _SURE.get(anomaly.kind, 0.3) if began or anomaly.kind is not Kind.NOT_FINITE else 0.5,
            ranks(anomaly.ranks) or job(features),
            said(anomaly.words),
            said(
                f"the loss had left its course before, at step {first}" if anomaly.step > first else "",
                f"the ranks' parameters differ since step {broken.step}"
                if broken is not None and broken.step <= anomaly.step
                else "",
                f"hardware told of an error near it: {_first(anomaly.ties)}" if tied else "",
            ),
        )


def parameters(features: Features) -> Iterator[Found]:
    found = numerics.checksums(features.evidence)
    if found is None:
        return
    yield Found(
        found.cause,
        Proof.FACT,
        0.9 if found.cause == "sdc" else 0.7,
        ranks(found.ranks) or job(features),
        said(found.words, f"near it: {_first(found.ties)}" if found.ties else ""),
    )


def _first(ties: Sequence[Tie]) -> str:
    tie = next((tie for tie in ties if tie.hardware), ties[0])
    return f"{tie.what} {tie.words}".strip()


RULES = (losses, parameters)
