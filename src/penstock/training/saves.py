"""What a job's checkpointer said, as a list of its saves: when, how large, what the loop waited, where copies are. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from penstock.base.quantities import format_duration, format_time

MAX_KEPT = 200  # words of an attempt that are kept once it has ended: the newest
MAX_SHOWN = 100  # saves
_STATES = {"saving", "saved", "failed", "verified", "damaged", "removed", "copied", "uncopied", "loaded", "unusable"}


_TIMES = ("at", "began")
_SECONDS = ("stall_s", "durable_s", "took_s", "interval_s", "mtbf_s")
_COUNTS = ("step", "bytes", "ranks", "every_steps", "keep")
_TEXTS = ("state", "id", "place", "reason", "why", "directory")
_LISTS = ("ids", "tiers")
_YEAR_10000 = 253_402_300_800


def clean(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a script says of a checkpoint is what it likes: only what has the right kind and is sane is taken."""
    found: dict[str, Any] = {}
    for names, most in ((_TIMES, _YEAR_10000), (_SECONDS, 1e12)):
        for name in names:
            value = _float(data.get(name))
            found |= {name: value} if value is not None and 0 <= value < most else {}
    for name in _COUNTS:
        value = data.get(name)
        found |= {name: value} if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else {}
    found |= {name: data[name] for name in _TEXTS if isinstance(data.get(name), str)}
    found |= {n: [v for v in data[n] if isinstance(v, str)] for n in _LISTS if isinstance(data.get(n), list)}
    return found | {"auto": data.get("auto") is True}


def told(points: Iterable[Mapping[str, Any]], attempt: int) -> list[dict[str, Any]]:
    """The words of an attempt, oldest first."""
    words = [clean(p["data"]) | {"attempt": attempt, "told": p["at"]} for p in points if p.get("event") == "checkpoint"]
    policy = [word for word in words if word.get("state") == "policy"][-1:]
    rest = [word for word in words if word.get("state") in _STATES or word.get("state") == "fresh"]
    return policy + rest[-MAX_KEPT:]


def fold(words: Sequence[Mapping[str, Any]], running: int | None) -> dict[str, Any]:
    """``running``: the attempt that still runs; a save that an earlier one began, and never finished, came to nothing."""
    found: dict[str, dict[str, Any]] = {}
    policy: Mapping[str, Any] | None = None
    loads: list[dict[str, Any]] = []
    for word in words:
        state = word.get("state")
        if state == "policy":
            policy = word
        elif state in ("loaded", "fresh", "unusable"):
            loads.append(_load(word))
        if state in ("policy", "loaded", "fresh"):
            _cut_short(found.values())
        for key in [word["id"]] if isinstance(word.get("id"), str) else word.get("ids") or ():
            row = found.get(key)
            if row is None:
                row = found[key] = _new(key, word)
            _take(row, word)
    if running is None:
        _cut_short(found.values())
    rows = sorted(found.values(), key=lambda row: (row["at"] or "", row["step"] or 0), reverse=True)
    return {
        "saves": rows[:MAX_SHOWN],
        "count": len(rows),
        "policy": None if policy is None else _policy(policy, words),
        "loads": loads[-20:][::-1],
    }


def _cut_short(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        if row["state"] == "writing":
            row["state"], row["reason"] = "cut short", "its process ended before it was committed"


def _new(key: str, word: Mapping[str, Any]) -> dict[str, Any]:
    blank = {"bytes": None, "stall_s": None, "durable_s": None, "ranks": None, "why": None, "reason": None}
    return {"id": key, "step": word.get("step"), "attempt": word.get("attempt"), "at": None, "state": "committed"} | {
        **blank,
        "verified": False,
        "tiers": [],
    }


def _take(row: dict[str, Any], word: Mapping[str, Any]) -> None:
    state = word["state"]
    if state == "saving":
        row |= {"state": "writing", "at": format_time(_float(word.get("began"))), "attempt": word.get("attempt")}
        row |= {name: word.get(name) for name in ("bytes", "stall_s", "why")}
    elif state == "saved":
        row |= {name: word.get(name) for name in ("durable_s", "bytes", "ranks")}
        row |= {"state": "committed", "at": row["at"] or format_time(_float(word.get("at")))}
    elif state in ("failed", "damaged"):
        row |= {"state": state, "reason": word.get("reason"), "verified": False}
    elif state == "removed":
        row["state"] = "removed"
    elif state in ("verified", "loaded"):
        row["verified"] = True
    elif state in ("copied", "uncopied"):
        row["tiers"] = [tier for tier in row["tiers"] if tier["place"] != word.get("place")]
        done = {"place": word.get("place"), "took_s": word.get("took_s"), "reason": word.get("reason")}
        row["tiers"].append(done | {"there": state == "copied"})


def _load(word: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: word.get(name) for name in ("step", "attempt", "place", "took_s", "reason")}
    return {"at": format_time(_float(word.get("at"))), "state": word["state"]} | kept


def _policy(word: Mapping[str, Any], words: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    stalls = [s for w in words if w.get("state") == "saving" and (s := _float(w.get("stall_s"))) is not None]
    last: Mapping[str, Any] = next((w for w in reversed(list(words)) if w.get("state") == "saving"), {})
    interval = _float(last.get("interval_s")) or _float(word.get("interval_s"))
    stall, mtbf = (median(stalls) if stalls else None), _float(word.get("mtbf_s"))
    if isinstance(word.get("every_steps"), int):
        why = f"every {word['every_steps']} steps, as the script says"
    elif word.get("auto") and stall is not None and mtbf is not None:
        why = f"Young and Daly: sqrt(2 x {stall:.3g}s of waiting x {format_duration(mtbf)} between failures)"
    elif word.get("auto"):
        why = "until a save has been measured; then by Young and Daly"
    else:
        why = f"every {format_duration(interval or 0)}, as the script says"
    names = ("directory", "every_steps", "auto", "keep", "tiers")
    return {name: word.get(name) for name in names} | {
        "interval_s": interval,
        "mtbf_s": mtbf,
        "stall_s": stall,
        "why": why,
    }


def best_interval(stall_s: float, mtbf_s: float) -> float:
    """Seconds between saves that lose least, by Young and Daly."""
    return max(1.0, math.sqrt(2 * max(stall_s, 1e-3) * mtbf_s))


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
