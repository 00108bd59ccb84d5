"""Accounts as the JSON of docs/internals.md. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.base.quantities import format_time
from penstock.training import saves
from penstock.training.accounts import Known
from penstock.training.goodput import Part, Segment, ratio
from penstock.training.losses import ORDER, WORDS, losses

COLUMNS = 400  # of the picture


def goodput(known: Known) -> dict[str, Any]:
    account, row = known.account, known.job
    parts, wall = account.parts(), account.wall
    held = wall - parts[Part.WAITING]
    return {
        "project": row.project,
        "name": row.name,
        "id": row.id,
        "phase": row.phase,
        "since": format_time(row.created_at),
        "until": format_time(known.until),
        "measured": account.measured,
        "saves_known": account.saves_known,
        "wall_ms": wall,
        "goodput": ratio(parts),
        "goodput_running": parts[Part.STEPS] / held if account.measured and held else None,
        "parts": [
            {"part": part.value, "words": WORDS[part], "ms": parts[part], "share": parts[part] / wall if wall else 0.0}
            for part in ORDER
        ],
        "attempts": [
            {
                "number": attempt["number"],
                "lives": len(known.readings[attempt["number"]].lives),
                "parts": {part.value: length for part, length in account.parts(attempt["number"]).items() if length},
            }
            for attempt in known.attempts[-100:]
        ],
        "facts": known.facts.to_json(),
        "losses": losses(parts, known.facts, saves_known=account.saves_known),
        "picture": picture(account.segments),
    }


def picture(segments: Sequence[Segment]) -> list[list[Any]]:
    """``[part, columns]`` from the left, of ``COLUMNS`` in all: each column is what it has most of."""
    if not segments:
        return []
    begin, wall = segments[0].begin, segments[-1].end - segments[0].begin
    found: list[list[Any]] = []
    n = 0
    for column in range(COLUMNS):
        low, high = begin + wall * column // COLUMNS, begin + wall * (column + 1) // COLUMNS
        while n < len(segments) - 1 and segments[n].end <= low:
            n += 1
        here: dict[Part, int] = {}
        m = n
        while m < len(segments) and (segments[m].begin < high or m == n):
            length = min(segments[m].end, high) - max(segments[m].begin, low)
            here[segments[m].part] = here.get(segments[m].part, 0) + length
            m += 1
        part = max(here, key=lambda each: here[each]).value
        if found and found[-1][0] == part:
            found[-1][1] += 1
        else:
            found.append([part, 1])
    return found


def checkpoints(known: Known) -> dict[str, Any]:
    folded = saves.fold(known.told, known.running)
    return {
        "project": known.job.project,
        "name": known.job.name,
        "running": known.running is not None,
        "measured": known.facts.to_json(),
        **folded,
    }
