"""Evidence to a diagnosis: every rule is asked, what is only another's effect is set back, and the best founded comes first. Pure.

The order is by a score that each cause shows the reasons of (``causes/rule.py``); where two are alike, by how often causes have
ended trainings elsewhere (``PRIOR``, the Llama 3 table). Two faults at once both stand at the top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.all import BRINGS, RULES
from penstock.diagnosis.causes.rule import Found, Proof
from penstock.diagnosis.features import Features, features
from penstock.diagnosis.state import Diagnosis, Evidence, Happened, Ranked

HEALTHY: Final = "healthy"
UNKNOWN: Final = "unknown"
TOP: Final = 8  # causes that are told

# Unexpected interruptions of 54 days on 16,384 GPUs (Llama 3): GPU 148, HBM3 72, switch or cable 35, SRAM 19, GSP 17, CPU 2.
# It breaks ties, no more.
PRIOR: Final[Mapping[str, float]] = {
    "gpu_off_bus": 148,
    "gpu_ecc_dbe": 91,
    "ib_link_down": 35,
    "bad_cable": 34,
    "gpu_hang_gsp": 17,
    "slow_compute_rank": 3,
    "cpu_contention": 2,
}


def diagnose(evidence: Evidence, since: float | None = None) -> Diagnosis:
    """``since``: when somebody says that it began."""
    return concluded(features(evidence, since))


def concluded(known: Features) -> Diagnosis:
    """The same, of what was computed already."""
    causes = ranked(found for rule in RULES for found in rule(known))
    verdict, confidence = _verdict(known, causes)
    top = causes[0] if causes and causes[0].cause == verdict else None
    return Diagnosis(
        verdict,
        round(confidence, 3),
        top.culprits if top is not None else (),
        tuple(causes[:TOP]),
        None if known.slowdown is None else round(known.slowdown, 3),
        _timeline(known),
        _missing(known, causes),
    )


def ranked(found: Iterable[Found]) -> list[Ranked]:
    """Each cause once, by its score; what another one brings about is set back, and says so."""
    best: dict[str, Found] = {}
    for each in found:
        if each.cause not in best or each.score > best[each.cause].score:
            best[each.cause] = each
    causes = [_weighed(each, best) for each in best.values()]
    return sorted(causes, key=lambda cause: (-cause.score, -PRIOR.get(cause.cause, 0.0), cause.cause))


def _weighed(each: Found, others: Mapping[str, Found]) -> Ranked:
    score, against = each.score, list(each.against)
    for name, effects in BRINGS.items():
        other = others.get(name)
        if other is None or each.cause not in effects or other.proof is Proof.HINT or other.score <= each.score * 0.6:
            continue
        if _alike(each, other):
            score *= t.EXPLAINED_AWAY
            against.append(f"{name} brings the same about, and is better founded")
            break
    return Ranked(each.cause, round(score, 4), each.culprits, each.evidence, tuple(against))


def _alike(one: Found, other: Found) -> bool:
    """Whether they blame the same; who blames the job or a node blames its ranks too."""
    whole = {"job", "node"}
    if any(culprit.kind in whole for culprit in (*one.culprits, *other.culprits)):
        return True
    return bool(set(one.culprits) & set(other.culprits))


def _verdict(known: Features, causes: list[Ranked]) -> tuple[str, float]:
    if causes and causes[0].score >= t.VERDICT:
        return causes[0].cause, _confidence(causes)
    if not known.ranks or not (known.timed() or known.evidence.phase == "Succeeded"):
        return UNKNOWN, 0.0
    if known.evidence.phase == "Failed" or _still_s(known) is not None:
        return UNKNOWN, 0.0
    if known.slowdown is not None and known.slowdown >= t.UNEXPLAINED:
        return UNKNOWN, 0.0
    return HEALTHY, 1.0 - (causes[0].score if causes else 0.0)


def _still_s(known: Features) -> float | None:
    """How long no step has ended, of a job that runs and had steps; None where that is nothing unusual."""
    ends = [step.at for view in known.ranks for step in view.source.steps[-1:]]
    if known.evidence.phase != "Running" or not ends:
        return None
    since = known.evidence.at - max(ends)
    return since if since > max(t.STILL_S, t.STILL_STEPS * known.step) else None


def _confidence(causes: list[Ranked]) -> float:
    """The first's score, less what speaks for a look-alike: one that blames somebody and is not its effect."""
    first = causes[0]
    rival = next((c for c in causes[1:] if set(c.culprits) & set(first.culprits) and c.score >= t.VERDICT), None)
    return first.score if rival is None else first.score * (1 - 0.3 * rival.score / first.score)


def _timeline(known: Features) -> tuple[Happened, ...]:
    told = list(known.evidence.happened)
    change = known.change
    if change is not None:
        words = f"steps became {change.ratio:.1f} times as long: {1000 * change.before:.0f} ms before, {1000 * change.after:.0f} ms after"
        told.append(Happened(change.at, "SlowDown", words, {"step": change.step}))
    return tuple(sorted(told, key=lambda event: (event.at, event.what, event.message)))


def _missing(known: Features, causes: Sequence[Ranked]) -> tuple[str, ...]:
    still = _still_s(known)
    missing = [] if still is None else [f"no step has ended for {still:.0f} s, and why is not known"]
    if known.evidence.phase == "Failed" and not any(cause.score >= t.VERDICT for cause in causes):
        missing.append("it failed; what it said last is in its log: `penstock logs`")
    missing += known.evidence.missing
    if known.ranks and not known.timed():
        missing.append(f"step times: fewer than {t.FEWEST} steps of every rank are known, so timing tells nothing")
    return tuple(missing)
