"""A rank's report of its progress, checked: one JSON line, whoever wrote it. Pure."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

_METRICS = 64
_NAME = 64
_WHERE = ("step", "total_steps", "rank", "at", "metrics")
EVENT = b'"event":'  # in a line that tells of something other than a step
WATCH = frozenset(
    {"steps", "counters", "watched"}
)  # events of penstock.watch: many, and kept apart (docs/launch-contract.md)
_WATCHED_BYTES = 16 << 20  # that are read of all ranks
_EVENT_FIELDS = 48  # `watched` has 35 of a training on GPUs
_EVENT_LIST = 32
_TEXT = 512


def parse(line: bytes, rank: int, now: float) -> dict[str, Any] | None:
    """``{"step","total_steps","metrics":{..}}`` or flat ``{"step","loss"}``; None for what is no report.

    ``{"event":"checkpoint","data":{..}}`` is no step: it comes back with both, without a step and without metrics.
    """
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    if isinstance(body.get("event"), str):
        return _event(body, rank, now)
    metrics = body.get("metrics")
    if not isinstance(metrics, dict):
        metrics = {name: value for name, value in body.items() if name not in _WHERE}
    numbers = {name[:_NAME]: _number(value) for name, value in list(metrics.items())[:_METRICS] if _numeric(value)}
    step, total = _count(body.get("step")), _count(body.get("total_steps"))
    if step is None and not numbers:
        return None
    return {"at": round(now, 3), "rank": rank, "step": step, "total_steps": total, "metrics": numbers}


def share(ranks: int) -> int:
    """Bytes of each rank's events that are read at once: a step's worth of detail needs few of them."""
    return max(_WATCHED_BYTES // max(ranks, 1), 1 << 15)


def own_time(line: bytes, now: float) -> float:
    """When a report says that it was made, as far as that is sane; of one that ``parse`` has taken."""
    at = json.loads(line).get("at")
    sane = isinstance(at, int | float) and not isinstance(at, bool) and 0 < at <= now + 60
    return round(float(at if sane else now), 3)


def _event(body: dict[str, Any], rank: int, now: float) -> dict[str, Any] | None:
    data = body.get("data")
    if not isinstance(data, dict):
        return None
    kept = {str(name)[:_NAME]: _plain(value) for name, value in list(data.items())[:_EVENT_FIELDS]}
    where: dict[str, Any] = {"at": round(now, 3), "rank": rank, "step": None, "total_steps": None, "metrics": {}}
    return where | {"event": body["event"][:_NAME], "data": kept}


def _plain(value: Any) -> Any:
    """A number, a text, a truth, or a short list of them; anything else is null."""
    if isinstance(value, str):
        return value[:_TEXT]
    if isinstance(value, list):
        return [_plain(each) for each in value[:_EVENT_LIST] if not isinstance(each, list)]
    if isinstance(value, bool) or value is None:
        return value
    return _number(value) if isinstance(value, int | float) else None


def _numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float | None:
    with contextlib.suppress(OverflowError):
        return value if value is None or math.isfinite(value) else None
    return None


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or _number(value) is None:
        return None
    return int(value) if 0 <= value < 2**63 else None
