"""Settings that cost time: what lint says, and whether the steps' times fit to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.compute import work
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, job, ms, ranks, said
from penstock.diagnosis.features import Features
from penstock.diagnosis.lint import lint

# Causes that are settings: the others' lint is a hint, which their own rules prove or not.
_SETTINGS: Final = frozenset(
    {"tf32_amp_off", "debug_flags_on", "nccl_wrong_env", "nccl_socket_fallback", "gdr_off", "numa_misbind"}
)
_SURE: Final = 0.7  # of an advice's strength


def settings(features: Features) -> Iterator[Found]:
    told: set[str] = set()
    for advice in lint(features.evidence):
        if not advice.cause or advice.cause in told:
            continue
        told.add(advice.cause)
        grown = _grown(features) if advice.cause in {"tf32_amp_off", "debug_flags_on"} else 0.0
        sure = advice.cause in _SETTINGS and advice.strength >= _SURE
        proof = Proof.COUNTER if sure and grown >= t.LOST else Proof.SETTING if sure else Proof.HINT
        yield Found(
            advice.cause,
            proof,
            by_lost(grown) if proof is Proof.COUNTER else advice.strength,
            ranks(advice.ranks) or job(features),
            said(advice.evidence, _words(features) if proof is Proof.COUNTER else ""),
            said(advice.against),
        )


def _grown(features: Features) -> float:
    """What every rank computes longer than before, as a part of a step: the least of them."""
    more = [
        (now - old) / features.step
        for view in features.ranks
        if view.before is not None and (now := work(view.now)) is not None and (old := work(view.before)) is not None
    ]
    return min(more) if len(more) == len(features.ranks) and more and features.step > 0 else 0.0


def _words(features: Features) -> str:
    pairs = [(work(view.before), work(view.now)) for view in features.ranks if view.before is not None]
    olds, nows = ([pair[n] or 0.0 for pair in pairs] for n in (0, 1))
    return (
        f"every rank computes longer since step {features.change.step}: {ms(max(nows))}, it was {ms(max(olds))}"
        if features.change
        else ""
    )


RULES = (settings,)
