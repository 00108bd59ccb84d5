"""What another program that watches nodes has found, as findings of ours. Pure.

One file each. What such a program says is taken as its word, under one rule (``External``) with its own name as the code; and where it tells of a Xid the finding is that of the Xid, which the policy knows already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from penstock.base.errors import InvalidInput
from penstock.base.text import one_line
from penstock.telemetry.spec import Finding, Severity

MOST = 10_000  # findings of one document
_XID = re.compile(r"\bxid[^0-9]{0,12}(\d{1,3})\b", re.IGNORECASE)


def document(text: bytes | str, name: str) -> Any:
    """Raises InvalidInput."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"this is no JSON of {name}: {str(error)[:200]}") from error


def at(value: Any, now: float) -> float:
    """RFC 3339 -> epoch seconds; what is none, or lies ahead, is now."""
    try:
        return min(datetime.fromisoformat(str(value)).timestamp(), now)
    except (ValueError, OverflowError):
        return now


def found(source: str, node: str, rule: str, message: str, when: float, severity: Severity) -> Finding:
    """A finding of ``source`` that is so. One that tells of a Xid is that Xid's."""
    xid = _XID.search(f"{rule} {message}") if source in {"gpud", "nvsentinel"} else None
    return Finding(
        rule="Xid" if xid else "External",
        code=xid[1] if xid else pascal(rule),
        node=node,
        at=when,
        first_at=when,
        message=one_line(message, 1000),
        severity=severity,
        source=source,
        evidence=(one_line(f"{rule}: {message}", 1000),),
    )


def pascal(text: str) -> str:
    """``check_gpu_count`` -> ``CheckGpuCount``; what is PascalCase stays; no name is ``Check``."""
    words = re.split(r"[^A-Za-z0-9]+", text[:100])
    name = "".join(word[:1].upper() + word[1:] for word in words if word)
    return name if name.isidentifier() else f"Check{name}"


def objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    """A list of objects, or one. Raises InvalidInput."""
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) for row in rows):
        raise InvalidInput(f"{name}: expected an object, or a list of them")
    if len(rows) > MOST:
        raise InvalidInput(f"{name}: {len(rows)} entries; at most {MOST} are taken at once")
    return rows


def texts(value: Any) -> Iterable[str]:
    return [str(one) for one in value] if isinstance(value, list) else []
