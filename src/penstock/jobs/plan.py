"""What follows an observation: pure decisions over a job's row."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.jobs.state import BLAMELESS, HOPELESS, Phase, end_phase

BACKOFF_FIRST_S = 1.0
BACKOFF_LIMIT_S = 60.0
CALM_S = 600.0
_IN_WORDS = {
    str(Reason.NodeDrained): "its node is being drained",
    str(Reason.NodeAvoided): "its node is at fault",
    str(Reason.Resizing): "there is room for more of its nodes",
    str(Reason.Preempted): "it made room for another",
    str(Reason.Reclaimed): "what its queue had borrowed was claimed back",
    str(Reason.IdleReclaimed): "its GPUs had done nothing for too long",
    str(Reason.Updated): "its specification was changed",
    str(Reason.Hung): "it made no progress",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended, with what the job has spent. ``restarts`` counts in-place ones of this attempt too.

    ``loop``: what is said of failures that are the script's fault; empty: they are not. ``calm_at``: restarts that were
    spent when it last made progress.
    """

    reason: str
    message: str
    restarts: int
    max_restarts: int
    cancel_requested: bool = False
    loop: str = ""
    calm_at: int = 0


@dataclass(frozen=True, slots=True)
class AfterEnd:
    """The job's next phase; ``delay_s`` before a new attempt; ``restarts`` now spent."""

    phase: Phase
    reason: str
    message: str
    restarts: int
    delay_s: float = 0.0


def after_end(ended: Ended) -> AfterEnd:
    """A final phase, or Pending for a new attempt.

    ``max_restarts`` bounds restarts in place and new attempts together; drains and preemptions cost none of it.
    """
    if ended.cancel_requested and ended.reason != Reason.Completed:
        return AfterEnd(Phase.CANCELLED, Reason.Cancelled, ended.message, ended.restarts)
    if ended.reason in BLAMELESS:
        why = ended.message or _IN_WORDS[ended.reason]
        where = {str(Reason.Updated): "", str(Reason.Resizing): " larger"}.get(ended.reason, " elsewhere")
        return AfterEnd(Phase.PENDING, Reason.Restarting, f"{why}; starts again{where}", ended.restarts)
    if ended.loop and (ended.reason == Reason.CrashLoop or ended.restarts < ended.max_restarts):
        return AfterEnd(Phase.FAILED, Reason.CrashLoop, _in_vain(ended), ended.restarts)
    if ended.reason in HOPELESS:
        return AfterEnd(end_phase(ended.reason), ended.reason, ended.message, ended.restarts)
    why = ended.message or _IN_WORDS.get(ended.reason, "")
    if ended.restarts >= ended.max_restarts:
        spent = f"; all {ended.max_restarts} restarts are spent" if ended.max_restarts else ""
        return AfterEnd(Phase.FAILED, ended.reason, why + spent, ended.restarts)
    delay = backoff_s(ended.restarts - ended.calm_at)
    wait = f" in {format_duration(delay)}" if delay else ""
    message = f"{why}; restart {ended.restarts + 1} of {ended.max_restarts}{wait}"
    return AfterEnd(Phase.PENDING, Reason.Restarting, message, ended.restarts + 1, delay)


def _in_vain(ended: Ended) -> str:
    """What is said of the loop, with the restarts that are not spent on it in its first line."""
    left = max(ended.max_restarts - ended.restarts, 0)
    first, newline, lines = ended.loop.partition("\n")
    said = f"{first.removesuffix(':')}; {left} of {ended.max_restarts} restarts are left, and none would mend it"
    return f"{said}:{newline}{lines}" if lines else said


def made_progress(ran_s: float, started: bool) -> bool:
    """Whether a run was long enough for the next restart to be at once again; the budget is not given back."""
    return started and ran_s >= CALM_S


def backoff_s(restarts: int) -> float:
    """The first restart is at once; then 1 s, doubling to 60 s."""
    return 0.0 if restarts <= 0 else min(BACKOFF_FIRST_S * 2.0 ** min(restarts - 1, 16), BACKOFF_LIMIT_S)
