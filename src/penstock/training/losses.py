"""What a job lost most by, and what would help: words for an account's parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from penstock.base.quantities import format_duration
from penstock.training.goodput import End, Life, Part
from penstock.training.saves import best_interval

# Parts as they are drawn and listed: what was useful first.
ORDER = (
    Part.STEPS,
    Part.CHECKPOINT,
    Part.LOST,
    Part.HANG,
    Part.RESTART,
    Part.STARTUP,
    Part.WAITING,
    Part.OTHER,
    Part.UNMEASURED,
)
WORDS: Mapping[Part, str] = {
    Part.STEPS: "steps that were kept",
    Part.CHECKPOINT: "waiting for saves",
    Part.LOST: "steps done again or lost",
    Part.HANG: "hanging",
    Part.RESTART: "restarting",
    Part.STARTUP: "starting",
    Part.WAITING: "waiting to run",
    Part.OTHER: "pauses, and after the last step",
    Part.UNMEASURED: "running, steps not reported",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured of a job's failures and saves."""

    failures: int
    restarts: int
    ran_s: float
    stall_s: float | None  # the median
    saves: int
    interval_s: float | None  # between saves, the median

    @property
    def mtbf_s(self) -> float | None:
        return self.ran_s / self.failures if self.failures else None

    @property
    def best_s(self) -> float | None:
        return None if self.stall_s is None or self.mtbf_s is None else best_interval(self.stall_s, self.mtbf_s)

    def to_json(self) -> dict[str, Any]:
        own = {"failures": self.failures, "restarts": self.restarts, "saves": self.saves, "stall_s": self.stall_s}
        return own | {"mtbf_s": self.mtbf_s, "interval_s": self.interval_s, "best_interval_s": self.best_s}


def facts(lives: Sequence[Life], until: int) -> Facts:
    ran = sum((until if life.ended is None else life.ended) - life.began for life in lives)
    stalls = [length for life in lives for _, length in life.stalls]
    starts = [sorted(since for since, _ in life.stalls) for life in lives]
    between = [two - one for each in starts for one, two in pairwise(each)]
    return Facts(
        sum(life.end in (End.FAILED, End.HUNG) for life in lives),
        max(0, len(lives) - 1),
        max(ran, 0) / 1000,
        median(stalls) / 1000 if stalls else None,
        len(stalls),
        median(between) / 1000 if between else None,
    )


def losses(parts: Mapping[Part, int], known: Facts, *, saves_known: bool) -> list[dict[str, Any]]:
    """The largest first, each with words and what would help; what is next to nothing is left out."""
    wall = sum(parts.values())
    found = []
    for part in sorted(ORDER[1:], key=lambda part: -parts[part]):
        if parts[part] * 200 >= wall > 0 and parts[part] > 0:
            help_ = _help(part, parts, known, saves_known=saves_known)
            found.append({"part": part.value, "ms": parts[part], "share": parts[part] / wall, "help": help_})
    return found


def _help(part: Part, parts: Mapping[Part, int], known: Facts, *, saves_known: bool) -> str:
    if part is Part.LOST:
        return _help_lost(known, saves_known=saves_known)
    if part is Part.CHECKPOINT:
        return _help_stalls(known)
    if part is Part.RESTART:
        each = format_duration(round(parts[part] / 1000 / max(known.restarts, 1), 1))
        return (
            f"{known.restarts} restart{'s' * (known.restarts != 1)} of {each} each, from the failure to the next step: what "
            "the script does before its first step (imports, data, compilation) is done anew each time"
        )
    words = {
        Part.STARTUP: "what the script does before its first step: imports, data, compilation, loading a checkpoint",
        Part.WAITING: "`penstock why JOB` says what it waited for; `penstock queues` whose quota is in use",
        Part.HANG: "a shorter limit sees a hang earlier; `penstock events` names the rank",
        Part.OTHER: "evaluation, data that was late, or work after the last step; reporting more often shows which",
        Part.UNMEASURED: "one line in the script measures it: penstock.report(step=step)",
    }
    return words[part]


def _help_lost(known: Facts, *, saves_known: bool) -> str:
    if not saves_known:
        return "no checkpoint was reported: penstock.checkpoint saves, and goes on where it was (docs/checkpoints.md)"
    if known.best_s is None or known.interval_s is None:
        return "a shorter interval between saves loses less at each failure"
    now, best = (format_duration(round(s, 1)) for s in (known.interval_s, known.best_s))
    sum_ = f"sqrt(2 x {known.stall_s:.3g}s x {format_duration(round(known.mtbf_s or 0))})"
    if known.best_s < 0.8 * known.interval_s:
        return f"save every {best}, not every {now}: {sum_}, from the waits and failures that were measured"
    return f"saves every {now} are near the best for these failures ({best} = {sum_}): fewer failures would help"


def _help_stalls(known: Facts) -> str:
    each = f"{known.saves} saves, {known.stall_s:.3g}s each" if known.stall_s is not None else "saves"
    if known.best_s is not None and known.interval_s is not None and known.best_s > 1.25 * known.interval_s:
        return (
            f"{each}: save every {format_duration(round(known.best_s, 1))}, which loses least at the measured failures"
        )
    return f"{each}: asynchronous saves make the loop wait for a copy alone; a longer interval has fewer of them"
