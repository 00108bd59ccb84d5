"""The last minute's P95 out of a histogram that only grows, as runtimes print them. Pure."""

from __future__ import annotations

from collections import deque

from penstock.serving.state import Histogram

WINDOW_S = 60.0


class Recent:
    """Of one histogram; what was counted before it was first seen is nobody's last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Histogram]] = deque()

    def take(self, now: float, total: Histogram) -> tuple[float, float] | None:
        """(P95, of how many); None while nothing was counted in that minute."""
        self._seen.append((now, total))
        while self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()
        latest = total.since(self._seen[0][1])
        p95 = latest.quantile(0.95)
        return None if p95 is None else (p95, latest.total)
