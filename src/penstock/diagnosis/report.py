"""A diagnosis in words that a researcher understands, and as the JSON that the API answers. Pure.

``DIAGNOSIS`` is the answer's shape: verdict, culprits, confidence, causes, slowdown, timeline; and what the pages and the terminal draw.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from penstock.base.quantities import format_time
from penstock.diagnosis.features import Change, Features, View
from penstock.diagnosis.knowledge.catalogue import CAUSES
from penstock.diagnosis.plan import HEALTHY, UNKNOWN
from penstock.diagnosis.state import Culprit, Diagnosis, Evidence, Happened, Ranked
from penstock.diagnosis.ticket import Window

POINTS: Final = 240  # of the picture of step times
EVENTS: Final = 40
_NEAR_S: Final = 120.0  # an event so near to the change may have to do with it
_PLAIN: Final = frozenset(
    {
        "SlowDown",
        "SlowedDown",
        "SlowdownEnded",
        "AttemptStarted",
        "AttemptEnded",
        "Started",
        "Completed",
        "Admitted",
        "Progressing",
    }
)  # what changes nothing, or is the change itself
_RATIO: Final = 1.1  # slower than that is slower


def answer(evidence: Evidence, known: Features, found: Diagnosis, asked: Window | None = None) -> dict[str, Any]:
    """Everything, as JSON."""
    return {
        "project": evidence.project,
        "job": evidence.job,
        "phase": evidence.phase,
        "at": format_time(evidence.at),
        "verdict": found.verdict,
        "confidence": found.confidence,
        "culprits": [_culprit(one, evidence) for one in found.culprits],
        "causes": [_cause(one, evidence) for one in found.causes],
        "slowdown": found.slowdown,
        "timeline": [_event(event) for event in found.timeline[-EVENTS:]],
        "summary": list(summary(evidence, known, found, asked)),
        "steps": picture(known),
        "ranks": [_rank(view) for view in known.ranks[:64]],
        "change": _change(known.change),
        "missing": list(found.missing),
    }


def _culprit(one: Culprit, evidence: Evidence) -> dict[str, Any]:
    where = {"kind": one.kind, "name": one.name}
    node = next((rank.node for rank in evidence.ranks if one.kind == "rank" and str(rank.rank) == one.name), "")
    return {**where, "node": node} if node else where


def _cause(one: Ranked, evidence: Evidence) -> dict[str, Any]:
    known = CAUSES.get(one.cause)
    return {
        "cause": one.cause,
        "name": known.name if known is not None else one.cause,
        "score": round(one.score, 3),
        "culprits": [_culprit(each, evidence) for each in one.culprits],
        "for": list(one.evidence),
        "against": list(one.against),
        "what_it_is": known.what_it_is if known is not None else "",
        "do": list(known.what_to_do) if known is not None else [],
        "severity": str(known.severity) if known is not None else "",
    }


def _event(event: Happened) -> dict[str, Any]:
    return {"at": format_time(event.at), "what": event.what, "message": event.message}


def _change(change: Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "step": change.step,
        "at": format_time(change.at),
        "before_ms": round(1000 * change.before, 3),
        "after_ms": round(1000 * change.after, 3),
        "until_step": change.until,
    }


def _rank(view: View) -> dict[str, Any]:
    """What its steps were spent on, milliseconds a step."""
    phases = ("total", "data", "compute", "comm", "optimizer", "checkpoint", "gc", "wait")
    return {
        "rank": view.rank,
        "node": view.node,
        "steps": len(view.now.steps),
        **{phase: round(1000 * view.now.mean[phase], 3) if phase in view.now.mean else None for phase in phases},
        "run_delay": _share(view.now.rate.get("run_delay_s")),
        "throttled": _share(view.now.rate.get("throttled_s")),
    }


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def picture(known: Features) -> list[list[float]]:
    """``[step, milliseconds]``, the median over the ranks, at most ``POINTS`` of them."""
    lengths: dict[int, list[float]] = {}
    for view in known.ranks:
        for step in view.whole.steps:
            lengths.setdefault(step.step, []).append(1000 * step.total)
    numbers = sorted(lengths)
    groups = (
        [numbers[n * len(numbers) // POINTS : (n + 1) * len(numbers) // POINTS] for n in range(POINTS)]
        if len(numbers) > POINTS
        else [[n] for n in numbers]
    )
    return [[group[0], round(max(statistics.median(lengths[n]) for n in group), 3)] for group in groups if group]


# -- words -----------------------------------------------------------------------------------------------------------


def summary(evidence: Evidence, known: Features, found: Diagnosis, asked: Window | None) -> Sequence[str]:
    """A few sentences: what is wrong, who it is, since when, what changed then, and what to do first."""
    words = [_first(evidence, found)]
    words += _asked(known, asked)
    words += _since(known)
    words += _changed(found, known.change)
    if found.verdict in CAUSES:
        cause = CAUSES[found.verdict]
        words.append(cause.what_it_is)
        words += [f"What to do first: {cause.what_to_do[0]}"] if cause.what_to_do else []
    rival = _also(found)
    return [*words, *([rival] if rival else [])]


def _first(evidence: Evidence, found: Diagnosis) -> str:
    if found.verdict == HEALTHY:
        return f"{evidence.job}: nothing is wrong that its steps, counters, nodes or logs would show."
    if found.verdict == UNKNOWN:
        why = "; ".join(found.missing[:2])
        return f"{evidence.job}: the cause is not known" + (
            f" ({why})." if why else ": nothing that is known explains it."
        )
    name = CAUSES[found.verdict].name if found.verdict in CAUSES else found.verdict
    return f"{evidence.job}: {_inside(name)}{_who(found.culprits, evidence)}. {sure(found.confidence)}"


def _inside(name: str) -> str:
    """A name within a sentence: what is written in capitals stays so, as do Python and NCCL."""
    first = name.split(maxsplit=1)[0].removesuffix("'s")
    return (
        name if first != first.capitalize() or first in {"Python", "InfiniBand", "Xid"} else name[0].lower() + name[1:]
    )


def _who(culprits: Sequence[Culprit], evidence: Evidence) -> str:
    names = []
    for one in culprits[:4]:
        if one.kind == "rank":
            node = next((rank.node for rank in evidence.ranks if str(rank.rank) == one.name), "")
            names.append(f"rank {one.name}" + (f" on {node}" if node else ""))
        elif one.kind != "job":
            names.append(f"{one.kind} {one.name}")
    return f" ({', '.join(names)})" if names else ""


def sure(confidence: float) -> str:
    """How sure, in words."""
    if confidence >= 0.85:
        return "This is certain."
    if confidence >= 0.65:
        return "This is likely."
    return "This is the best explanation, and not a certain one."


def _asked(known: Features, asked: Window | None) -> list[str]:
    if asked is None:
        return []
    if not asked.words:
        return ["The ticket names no time, so all of the run was looked at."]
    change = known.change
    if change is None:
        return [f"Of what the ticket says ({asked.words}): the steps that are known took no longer then than before."]
    if asked.since is not None and change.at < asked.since - _NEAR_S:
        return [f"The ticket says {asked.words}; the steps became longer before that."]
    return [
        f"The ticket says {asked.words}, and the steps' times agree."
        if asked.since is not None
        else f"The ticket says {asked.words}."
    ]


def _since(known: Features) -> list[str]:
    change = known.change
    if change is None or change.ratio < _RATIO:
        return [f"A step takes {1000 * known.step:.0f} ms, and did so all the while."] if known.step > 0 else []
    ended = f" Since step {change.until} they are as before." if change.until is not None else ""
    return [
        (
            f"Since step {change.step} ({format_time(change.at)}) a step takes {1000 * change.after:.0f} ms instead of "
            f"{1000 * change.before:.0f}: {change.ratio:.1f} times as long.{ended}"
        )
    ]


def _changed(found: Diagnosis, change: Change | None) -> list[str]:
    """Events near to the change."""
    if change is None:
        return []
    near = [e for e in found.timeline if e.what not in _PLAIN and abs(e.at - change.at) <= _NEAR_S]
    return [f"About then: {'; '.join(f'{e.what} {e.message}'.strip() for e in near[:3])}."] if near else []


def _also(found: Diagnosis) -> str:
    """A second cause that is about as well founded."""
    if len(found.causes) < 2 or found.verdict in {HEALTHY, UNKNOWN}:
        return ""
    first, second = found.causes[:2]
    name = CAUSES[second.cause].name if second.cause in CAUSES else second.cause
    return f"There is a second cause beside it: {_inside(name)}." if second.score >= 0.75 * first.score else ""
