"""A rank's report of its progress, checked: one JSON line, whoever wrote it. Pure."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

_METRICS = 64
_NAME = 64
_WHERE = ("step", "total_steps", "rank", "at", "metrics")


def parse(line: bytes, rank: int, now: float) -> dict[str, Any] | None:
    """``{"step","total_steps","metrics":{..}}`` or flat ``{"step","loss"}``; None for what is no report."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    metrics = body.get("metrics")
    if not isinstance(metrics, dict):
        metrics = {name: value for name, value in body.items() if name not in _WHERE}
    numbers = {name[:_NAME]: _number(value) for name, value in list(metrics.items())[:_METRICS] if _numeric(value)}
    step, total = _count(body.get("step")), _count(body.get("total_steps"))
    if step is None and not numbers:
        return None
    return {"at": round(now, 3), "rank": rank, "step": step, "total_steps": total, "metrics": numbers}


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
