"""Use, line and waits over time, by queue: evenly spaced spans, of which two become one whenever they grow too many.

So a replay needs not know beforehand how long it will be, and a long one takes no more room than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from penstock.capacity.accounts import Accounts

FIRST_S = 1.0  # the width of the first spans
SHOWN = 8  # queues with a series of their own, the busiest; the others together


class Series:
    """Spans of ``width`` seconds from the first submission on, at most twice ``samples`` of them.

    ``gpu_s``: GPU-seconds used in a span, exactly; ``waiting``: in line at its end (the mean of the ends of those that
    became one); ``waited`` and ``jobs``: of those submitted in it, once they have ended.
    """

    def __init__(self, samples: int, accounts: Accounts) -> None:
        self.most = 2 * max(samples, 1)
        self.width = FIRST_S
        self.next_at = FIRST_S
        self.spans = 0
        self.gpu_s: dict[str, list[float]] = {}
        self.waiting: dict[str, list[float]] = {}
        self.waited: dict[str, list[float]] = {}
        self.jobs: dict[str, list[float]] = {}
        self._accounts = accounts
        self._before: dict[str, float] = {}  # GPU-seconds by queue up to the last span's end

    def roll(self, now: float) -> None:
        """Close the spans that end by ``now``. Nothing has changed since what the accounts were last told."""
        while now > self.width * self.most:
            self._halve()
        while self.next_at <= now:
            self._close(self.next_at)
            self.next_at = self.width * (self.spans + 1)

    def _close(self, at: float) -> None:
        n = self.spans
        for name, account in self._accounts.by_queue.items():
            total = account.used + account.now_used * (at - account.since)
            _grown(self.gpu_s, name, n + 1)[n] += total - self._before.get(name, 0.0)
            self._before[name] = total
            _grown(self.waiting, name, n + 1)[n] = account.waiting
        self.spans += 1

    def _halve(self) -> None:
        if self.spans % 2:
            self._close(self.next_at)
        for rows, shrink in ((self.gpu_s, 1.0), (self.waiting, 0.5), (self.waited, 1.0), (self.jobs, 1.0)):
            for name, row in rows.items():
                if len(row) % 2:
                    row.append(0.0)
                rows[name] = [(a + b) * shrink for a, b in zip(row[::2], row[1::2], strict=True)]
        self.spans //= 2
        self.width *= 2
        self.next_at = self.width * (self.spans + 1)

    def add(self, queue: str, queued_at: float, waited: float) -> None:
        """A job has ended."""
        n = int(queued_at // self.width)
        _grown(self.waited, queue, n + 1)[n] += waited
        _grown(self.jobs, queue, n + 1)[n] += 1

    def finish(self, now: float) -> None:
        """The replay is over: what is left is the last span."""
        self.roll(now)
        if now > self.spans * self.width:
            self._close(now)

    def to_dict(self, capacity: int, makespan: float) -> dict[str, Any]:
        """For charts and sparklines; times in seconds since the first submission.

        ``gpus``: used on the mean of a span; ``wait_s``: the mean wait of those submitted in it, None where nobody was.
        """
        by_jobs = sorted(self._accounts.by_queue, key=lambda name: (-sum(self.jobs.get(name, ())), name))
        groups = {name: [name] for name in by_jobs[:SHOWN]}
        if rest := by_jobs[SHOWN:]:
            groups["other queues"] = rest
        found = {name: self._together(members, makespan) for name, members in groups.items()}
        return {
            "width_s": self.width,
            "at": [n * self.width for n in range(self.spans)],
            "capacity": capacity,
            **{what: {name: row[what] for name, row in found.items()} for what in ("gpus", "waiting", "wait_s")},
            "all": self._together(by_jobs, makespan),
        }

    def _together(self, names: Sequence[str], makespan: float) -> dict[str, list[Any]]:
        spans = range(self.spans)
        lasts = [max(min(self.width, makespan - n * self.width), 1e-9) for n in spans]
        return {
            "gpus": [round(_sum(self.gpu_s, names, n) / lasts[n], 2) for n in spans],
            "waiting": [round(_sum(self.waiting, names, n), 2) for n in spans],
            "wait_s": [_mean(_sum(self.waited, names, n), _sum(self.jobs, names, n)) for n in spans],
        }


def _grown(rows: dict[str, list[float]], name: str, length: int) -> list[float]:
    row = rows.get(name)
    if row is None:
        row = rows[name] = []
    if len(row) < length:
        row.extend([0.0] * (length - len(row)))
    return row


def _sum(rows: dict[str, list[float]], names: Iterable[str], n: int) -> float:
    return sum(row[n] for name in names if n < len(row := rows.get(name, [])))


def _mean(total: float, count: float) -> float | None:
    return round(total / count, 1) if count else None


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int, top: float) -> str:
    """So many characters; a blank where there is no value or nothing, the lowest bar for nearly nothing."""
    marks = []
    for n in range(width):
        part = values[n * len(values) // width : max((n + 1) * len(values) // width, n * len(values) // width + 1)]
        known = [value for value in part if value is not None]
        if not any(known):
            marks.append(" ")
            continue
        share = sum(known) / len(known) / top if top > 0 else 0.0
        marks.append(_BARS[min(max(math.ceil(share * len(_BARS)) - 1, 0), len(_BARS) - 1)])
    return "".join(marks)
