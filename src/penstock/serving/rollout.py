"""How a candidate takes over, step by step, or is taken back. Pure: ``decide`` is asked about once a second and answers all of
what is to hold now; the time is an argument, and what it remembers is plain JSON that the caller keeps.

A step begins when the candidate has the replicas for it. It is over after its time, when enough requests were seen and every
test passes. A test that fails rolls back at once, in every step, also in a pause. Nobody waits for traffic for ever: after
``give_up_after`` the rollout pauses. Until it is over the stable version keeps its replicas, so the way back is one change of
weights (a rolling update alone gives them up one by one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.serving import analysis
from penstock.serving.analysis import Look, Test
from penstock.serving.plan import CRASHES
from penstock.serving.rollout_memory import Kept, Point, from_json, to_json
from penstock.serving.spec import Rollout, Step
from penstock.serving.state import WHOLE, Counts, RolloutDecision, RolloutPhase, RolloutSeen, Want

STEPS = (Step(weight=10), Step(weight=25), Step(weight=50))  # of a canary that names none
WATCHED_S = 10.0  # before a blue-green switch: what the stable version is like, while no replica starts beside it
OVER = frozenset({RolloutPhase.PROMOTED, RolloutPhase.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class Stage:
    """One step as it is carried out. ``judged``: it is over only when every test passes. ``last``: nothing comes after it."""

    words: str
    weight: int = 0
    mirror: int = 0
    time: float = 0.0
    pause: bool = False
    judged: bool = True
    last: bool = False

    @property
    def share(self) -> int:
        return max(self.weight, self.mirror)


def stages(rollout: Rollout) -> tuple[Stage, ...]:
    """Of every strategy but ``rolling``, which goes by replicas."""
    if rollout.strategy == "blue_green":
        return (Stage("all requests, the old replicas are kept", WHOLE, time=rollout.keep, judged=False, last=True),)
    found = []
    if rollout.strategy == "shadow":
        mirror = round(rollout.shadow * WHOLE / 100)
        found.append(Stage(f"copies of {rollout.shadow:g}% of requests", 0, mirror, rollout.shadow_time))
    steps = rollout.steps or (STEPS if rollout.strategy == "canary" else ())
    for step in steps:
        weight = round(step.weight * WHOLE / 100)
        found.append(Stage(f"{step.weight:g}% of requests", weight, 0, step.time, step.pause))
    if not found or found[-1].weight != WHOLE:
        found.append(Stage("all requests", WHOLE, judged=False))
    return (*found[:-1], replace(found[-1], last=True))


@dataclass(frozen=True, slots=True)
class _Case:
    """All that a decision is made of."""

    rollout: Rollout
    seen: RolloutSeen
    kept: Kept
    tests: tuple[Test, ...]
    now: float

    @property
    def have(self) -> int:
        return self.seen.ready.get(self.seen.candidate, 0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return stages(self.rollout)

    @property
    def at(self) -> int:
        """The step; one beyond the last (its specification has fewer now) is the last."""
        return min(max(self.seen.step, 0), len(self.stages) - 1)

    @property
    def stage(self) -> Stage:
        return self.stages[self.at]

    def needed(self, stage: Stage) -> int:
        """Replicas of the candidate that a step begins with."""
        return max(1, math.ceil(self.seen.wanted * stage.share / WHOLE))

    @property
    def place(self) -> str:
        return f"step {self.at + 1} of {len(self.stages)} ({self.stage.words})"


def decide(rollout: Rollout, seen: RolloutSeen, now: float) -> RolloutDecision:
    """Total and deterministic. What a person asked for is done when the phase or the step is another. An earlier version has
    served before: it comes back as soon as its replicas are ready, whatever the strategy.
    """
    if seen.candidate < seen.stable:
        rollout = rollout.model_copy(update={"strategy": "blue_green", "keep": 0.0, "auto": True})
    if seen.phase in OVER:
        winner = seen.candidate if seen.phase is RolloutPhase.PROMOTED else seen.stable
        return RolloutDecision(seen.phase, seen.step, seen.since, {winner: Want(seen.wanted, WHOLE)}, seen.memory)
    case = _look(rollout, seen, now)
    end = _unfit(case)
    if end is not None:
        return _rolled_back(case, end)
    if rollout.strategy == "rolling":
        return _rolling(case)
    if not case.kept.applied:
        return _waiting(case)
    return _judged(case)


def _look(rollout: Rollout, seen: RolloutSeen, now: float) -> _Case:
    """Take in what was counted since the last look."""
    mine = seen.metrics.get(seen.candidate, {})
    spec = rollout.analysis
    kept = from_json(seen.memory) if seen.memory else None
    known = kept.analysis if kept is not None else analysis.Memory()
    look = Look(
        now,
        seen.counts.get(seen.candidate, known.candidate),  # one that is not told of has not begun anew
        seen.counts.get(seen.stable, known.stable),
        seen.agreement or known.agreement,
        mine.get(spec.metric) if spec.metric is not None else None,
        kept is not None and kept.weight == WHOLE,
    )
    if kept is None:
        return _Case(rollout, seen, Kept(analysis.begin(look)), (), now)
    before = kept.analysis
    after = analysis.remember(before, spec, look)
    kept = replace(kept, analysis=after).drawn(
        _point(now, kept.weight, look.candidate.since(before.candidate), look.stable.since(before.stable))
    )
    tests = analysis.tests(after, spec, live=kept.weight > 0, shadow=kept.mirror > 0)
    return _Case(rollout, seen, kept, tests, now)


def _point(now: float, weight: int, candidate: Counts, stable: Counts) -> Point:
    p95, stable_p95 = (one.latency.quantile(1 - analysis.TAIL) for one in (candidate, stable))
    return Point(now, weight, candidate.requests, _rate(candidate), _rate(stable), p95, stable_p95)


def _rate(counts: Counts) -> float | None:
    return counts.bad / counts.requests if counts.requests else None


# ------------------------------------------------------------------------------------------------------------- the ways


def _unfit(case: _Case) -> str | None:
    """Why the candidate is taken back now."""
    seen, limit = case.seen, case.rollout.analysis.give_up_after
    if seen.asked == "rollback":
        return "asked for"
    failed = [test for test in case.tests if test.verdict == "fail"]
    if failed:
        return "; ".join(f"{test.name}: {test.words}" for test in failed)
    if seen.failures >= CRASHES:
        return f"no replica of version {seen.candidate} became of use"
    need = max(1, seen.wanted) if case.rollout.strategy == "rolling" else case.needed(case.stage)
    waits = not case.kept.applied and seen.phase is not RolloutPhase.PAUSED and seen.wanted > 0
    if waits and case.have < need and case.now - seen.since > limit:
        return f"{case.have} of {need} replicas of version {seen.candidate} were ready after {format_duration(limit)}"
    return None


def _rolling(case: _Case) -> RolloutDecision:
    """One replica more of the candidate at a time; of the stable version as many are left as are needed. Weights follow what
    is ready; the step is the number of the candidate's that were. One replica proves the candidate where none is wanted.
    """
    seen = case.seen
    have, old, wanted = case.have, seen.ready.get(seen.stable, 0), max(1, seen.wanted)
    whole = have >= wanted
    if whole and (case.rollout.auto or seen.asked == "promote"):
        return _promoted(case, "all of its replicas are ready")
    left = max(seen.wanted - have, 0 if case.rollout.auto else min(1, seen.wanted))
    weight = WHOLE * have // max(have + min(old, left), 1)
    wants = {seen.stable: Want(left, WHOLE - weight), seen.candidate: Want(min(wanted, have + 1), weight)}
    kept = replace(case.kept, applied=have > 0, weight=weight)
    told = f"{have} of {wanted} replicas are of version {seen.candidate}"
    if whole:
        told = f"version {seen.candidate} has all of its replicas and waits for somebody to promote it"
        if seen.phase is RolloutPhase.PAUSED:
            return _still(case, kept, seen.phase, wants, told)
        return _said(case, kept, RolloutPhase.PAUSED, wants, (Reason.RolloutPaused, told), have)
    if have > seen.step and seen.phase is not RolloutPhase.PAUSED:  # more that are wanted while it waits end no wait
        return _said(case, kept, RolloutPhase.PROGRESSING, wants, (Reason.RolloutAdvanced, told), have)
    return _still(case, kept, seen.phase, wants, told)


def _waiting(case: _Case) -> RolloutDecision:
    """The step's replicas start; the weights are still those of the step before."""
    stage, need = case.stage, case.needed(case.stage)
    wants = _wants(case, case.kept, stage)
    if case.have < need:
        message = f"{case.place} waits for replicas of version {case.seen.candidate}: {case.have} of {need} are ready"
        return _still(case, case.kept, case.seen.phase, wants, message)
    watched = _watched(case, wants)
    if watched is not None:
        return watched
    if not case.rollout.auto and stage.weight == WHOLE and case.seen.asked != "promote":
        told = f"{case.place} waits for somebody to promote version {case.seen.candidate}"
        if case.seen.phase is RolloutPhase.PAUSED:
            return _still(case, case.kept, case.seen.phase, wants, told)
        return _said(case, case.kept, RolloutPhase.PAUSED, wants, (Reason.RolloutPaused, told))
    if stage.last and not stage.time:
        back = case.seen.candidate < case.seen.stable
        return _promoted(case, "it has served before" if back else "every step was passed")
    told = f"{case.place} begins"
    kept = replace(
        case.kept, applied=True, weight=stage.weight, mirror=stage.mirror, analysis=case.kept.analysis.stepped()
    )
    return _said(
        replace(case, kept=kept),
        kept,
        RolloutPhase.PROGRESSING,
        _wants(case, kept, stage),
        (Reason.RolloutAdvanced, told),
    )


def _watched(case: _Case, wants: Mapping[int, Want]) -> RolloutDecision | None:
    """Before all requests go to the candidate at once: the stable version is its measure from then on, as it is while no
    replica starts beside it.
    """
    stage, kept = case.stage, case.kept
    if stage.weight != WHOLE or kept.weight or not stage.time or not case.seen.wanted or case.seen.asked:
        return None
    if kept.ready_at is None:
        kept = replace(kept, ready_at=case.now, analysis=replace(kept.analysis, typical=Counts()))
    elif case.now - kept.ready_at >= WATCHED_S:
        return None
    message = f"{case.place} waits until the stable version was watched for {WATCHED_S:g} s"
    return _still(case, kept, case.seen.phase, wants, message)


def _judged(case: _Case) -> RolloutDecision:
    """The step's replicas take requests: is it over?"""
    seen, stage = case.seen, case.stage
    asked = seen.asked == "promote"
    lasted = case.now - seen.since
    passed = not stage.judged or (_enough(case) and all(test.verdict == "pass" for test in case.tests))
    wants = _wants(case, case.kept, stage)
    if asked or (seen.phase is not RolloutPhase.PAUSED and lasted >= stage.time and passed and not stage.pause):
        return _next(case, "asked for" if asked else "every test passes" if stage.judged else "its time is over")
    if seen.phase is RolloutPhase.PAUSED:
        return _still(case, case.kept, seen.phase, wants, f"{case.place} waits for somebody to promote it")
    if lasted >= stage.time and passed:
        told = f"{case.place} is passed and waits for somebody to promote it"
        return _said(case, case.kept, RolloutPhase.PAUSED, wants, (Reason.RolloutPaused, told))
    if stage.judged and lasted > max(stage.time, case.rollout.analysis.give_up_after):
        told = f"{case.place} is not decided after {format_duration(round(lasted))}: {_open(case)}"
        return _said(case, case.kept, RolloutPhase.PAUSED, wants, (Reason.RolloutPaused, told))
    left = stage.time - lasted
    message = f"{case.place}: " + (_open(case) if not passed else f"{left:.0f} s more")
    return _still(case, case.kept, seen.phase, wants, message)


def _enough(case: _Case) -> bool:
    """Requests that the candidate answered in this step; answers compared, where it is in shadow."""
    memory = case.kept.analysis
    count = memory.step[0].requests if case.stage.weight else memory.compared[0]
    return not case.stage.share or count >= case.rollout.analysis.min_requests


def _open(case: _Case) -> str:
    undecided = [f"{test.name}: {test.words}" for test in case.tests if test.verdict == "undecided"]
    return "; ".join(undecided) or "too few requests to judge"


# ---------------------------------------------------------------------------------------------------------- the answers


def _wants(case: _Case, kept: Kept, stage: Stage) -> Mapping[int, Want]:
    """Both versions while the rollout is under way; their weights are WHOLE together."""
    seen = case.seen
    return {
        seen.stable: Want(seen.wanted, WHOLE - kept.weight),
        seen.candidate: Want(min(case.needed(stage), max(1, seen.wanted)), kept.weight, kept.mirror),
    }


def _next(case: _Case, why: str) -> RolloutDecision:
    """On to the next step, which begins now where its replicas are ready."""
    if case.stage.last:
        return _promoted(case, why)
    at = case.at + 1
    kept = replace(case.kept, applied=False)
    told = f"{case.place} is passed: {why}"
    wants = _wants(case, kept, case.stages[at])
    passed = _said(case, kept, RolloutPhase.PROGRESSING, wants, (Reason.RolloutAdvanced, told), at)
    seen = replace(case.seen, step=at, since=case.now, phase=RolloutPhase.PROGRESSING, asked="")
    begun = _waiting(replace(case, seen=seen, kept=kept))
    return replace(begun, evidence=(*passed.evidence, *begun.evidence)) if begun.evidence else passed


def _promoted(case: _Case, why: str) -> RolloutDecision:
    seen = case.seen
    kept = replace(case.kept, applied=True, weight=WHOLE, mirror=0)
    wants = {seen.candidate: Want(seen.wanted, WHOLE)}
    told = f"version {seen.candidate} serves all requests: {why}"
    return _said(case, kept, RolloutPhase.PROMOTED, wants, (Reason.Promoted, told))


def _rolled_back(case: _Case, why: str) -> RolloutDecision:
    """As it was before: all requests and all replicas are the stable version's."""
    seen = case.seen
    kept = replace(case.kept, weight=0, mirror=0)
    wants = {seen.stable: Want(seen.wanted, WHOLE)}
    told = f"version {seen.stable} serves all requests again: {why}"
    return _said(case, kept, RolloutPhase.ROLLED_BACK, wants, (Reason.RolledBack, told))


def _still(case: _Case, kept: Kept, phase: RolloutPhase, wants: Mapping[int, Want], message: str) -> RolloutDecision:
    """Nothing that is worth an event."""
    return RolloutDecision(phase, case.seen.step, case.seen.since, wants, to_json(kept), message=message)


def _said(
    case: _Case,
    kept: Kept,
    phase: RolloutPhase,
    wants: Mapping[int, Want],
    told: tuple[Reason, str],
    step: int | None = None,
) -> RolloutDecision:
    """A change, with what was known when it was decided. A pause in a step leaves the step's beginning as it is."""
    reason, message = told
    at = case.seen.step if step is None else step
    since = case.seen.since if phase is RolloutPhase.PAUSED and kept.applied else case.now
    entry = _entry(case, kept, reason, message)
    return RolloutDecision(phase, at, since, wants, to_json(kept), (entry,), str(reason), message)


def _entry(case: _Case, kept: Kept, reason: Reason, message: str) -> Mapping[str, object]:
    """What is stored of a decision."""
    memory, agreement = case.kept.analysis, case.seen.agreement
    entry: dict[str, object] = {
        "at": case.now,
        "step": case.seen.step,
        "what": str(reason),
        "why": message,
        "weight": kept.weight,
        "mirror": kept.mirror,
        "seconds": round(case.now - case.seen.since, 3),
        "candidate": _told(memory.step[0]),
        "stable": _told(memory.step[1]),
        "tests": [asdict(test) for test in case.tests],
    }
    if memory.compared[0] and agreement is not None:
        entry["compared"], entry["agreed"] = memory.compared
        entry["failed"] = agreement.failed
        entry["slower_s"] = agreement.slower_s / max(agreement.compared + agreement.failed, 1)
        entry["examples"] = [dict(example) for example in agreement.examples]
    return entry


def _told(counts: Counts) -> Mapping[str, object]:
    p50, p95 = counts.latency.quantile(0.5), counts.latency.quantile(1 - analysis.TAIL)
    return {
        "requests": counts.requests,
        "errors": counts.errors,
        "refused": counts.refused,
        "p50": p50,
        "p95": p95,
    }
