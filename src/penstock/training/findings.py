"""A hang that was found: its words, what the event keeps of it, and the file beside the run's logs that has all of it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from penstock.base.quantities import format_duration
from penstock.training.culprit import where
from penstock.training.plan import Answer, Verdict
from penstock.training.state import Culprit, Evidence, Look

FOLDER = "hangs"
_RANKS = 8  # whose stacks go into the event
_FRAMES = 12
_DONE = {
    Answer.TELL: "nothing is done about it",
    Answer.IN_PLACE: "its ranks are started again in place",
    Answer.ANEW: "the attempt is ended",
}


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    evidence: Evidence
    culprit: Culprit
    answer: Answer
    at: float

    @property
    def stalled_s(self) -> float:
        return max(self.at - self.verdict.since, 0.0)


def headline(found: Finding) -> str:
    """``no step for 6.2s: rank 1 on n2 is ...``."""
    what = "no step" if found.verdict.started else "no report" if found.evidence.steps else "no sign of life"
    return f"{what} for {format_duration(round(found.stalled_s, 1))}: {found.culprit.words}"


def words(found: Finding) -> str:
    limit = format_duration(round(found.verdict.limit_s, 1))
    return f"{headline(found)} (limit {limit}); {_DONE[found.answer]}"


def data(found: Finding, file: str | None) -> dict[str, Any]:
    """What the event has: enough to see which rank did what, of a bounded number of ranks, the culprits first."""
    named = set(found.culprit.ranks)
    shown = sorted(found.evidence.looks, key=lambda look: (look.rank not in named, look.rank))[:_RANKS]
    return {
        "ranks": list(found.culprit.ranks),
        "clue": str(found.culprit.clue),
        "blamed_nodes": list(found.culprit.nodes),
        "stalled_s": round(found.stalled_s, 3),
        "limit_s": round(found.verdict.limit_s, 3),
        "answer": str(found.answer),
        "restarted": found.answer is Answer.IN_PLACE,
        "steps": {str(rank): step for rank, step in sorted(found.evidence.steps.items())[:64]},
        "stacks": [_shown(look) for look in shown],
        "silent_nodes": dict(list((found.evidence.silent or {}).items())[:_RANKS]),
        "file": file,
    }


def _shown(look: Look) -> dict[str, Any]:
    return {
        "rank": look.rank,
        "node": look.node,
        "state": look.state,
        "wait": look.wait,
        "in": where(look.frames) if look.frames else look.why_no_stack,
        "frames": [str(frame) for frame in look.frames[:_FRAMES]],
    }


def keep(run_dir: str, found: Finding) -> str | None:
    """All of it as JSON in the run folder, of which jobs own parts: no link is followed. None where it cannot be written."""
    name = f"{FOLDER}/{found.at:.3f}.json"
    body: Mapping[str, Any] = {
        **data(found, name),
        "words": words(found),
        "looks": [asdict(look) for look in found.evidence.looks],
        "flight": [
            {"name": group.name, "last": {str(rank): number for rank, number in sorted(group.last.items())}}
            for group in found.evidence.flight.groups
        ],
    }
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{run_dir}/{FOLDER}", 0o700)
        folder = os.open(f"{run_dir}/{FOLDER}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fd = os.open(
                f"{found.at:.3f}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder
            )
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(body, file)
        finally:
            os.close(folder)
        return name
    return None
