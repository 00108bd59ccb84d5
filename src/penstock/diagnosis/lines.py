"""Which lines of a log may matter. Pure. What they mean is the knowledge's: here many are taken, and few kept."""

from __future__ import annotations

import re
from collections.abc import Iterable

from penstock.diagnosis.state import LogLine

KEPT = 300  # of a rank: the first 200 and the newest
FIRST = 200
LONGEST = 500
_MATTERS = re.compile(
    r"error|exception|traceback|warn|fail|fatal|abort|killed|signal|timed? ?out|refused|reset by peer|unreachable|no space"
    r"|out of memory|\boom\b|NCCL|gloo|c10d|watchdog|CUDA|cudnn|cublas|\bECC\b|xid|nan\b|\binf\b|overflow|diverg|mismatch"
    r"|corrupt|stale|denied|not found|too many|deadlock|hang|hung|slow|retry|retri|disconnect|segfault|core dumped"
    r"|recompil|graph break|straggl|throttl|preempt|SIG[A-Z]+",
    re.IGNORECASE,
)
_FRAME = re.compile(r'^\s+File "|^\s+\^|^\s{4}\S')  # of a traceback


def telling(lines: Iterable[LogLine]) -> tuple[LogLine, ...]:
    """Those that may matter, with the frames of tracebacks; the first and the newest of many."""
    found: list[LogLine] = []
    within = False
    for line in lines:
        within = line.text.startswith("Traceback") or (within and bool(_FRAME.match(line.text)))
        if within or _MATTERS.search(line.text):
            found.append(LogLine(line.at, line.text[:LONGEST], line.rank))
    return tuple(found) if len(found) <= KEPT else (*found[:FIRST], *found[FIRST - KEPT :])
