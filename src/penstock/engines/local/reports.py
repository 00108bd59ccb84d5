"""What ranks report of their progress: checked, kept in a bounded file, told on at a bounded rate."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

from penstock.engines.local.folder import WATCH as FOLDER
from penstock.engines.local.logwriter import LogWriter
from penstock.engines.local.loop import Loop
from penstock.engines.reports import EVENT, WATCH, parse

_LINES_A_BATCH = 50
_FILE_BYTES = 2 << 20
_TELL_EVERY_S = 0.5
_EVENTS = 2000
_SMOOTHING = 0.3
_WATCH_FIRST, _WATCH_NEWEST = 1 << 17, 1 << 19  # bytes of each rank


class Progress:
    """All ranks' reports of one attempt. ``tell`` is called with the newest of the lowest rank, twice a second at most."""

    def __init__(self, path: str, loop: Loop, tell: Callable[[dict[str, Any]], None]) -> None:
        self.seen = 0  # batches taken
        self.latest: dict[str, Any] | None = None
        self.reached: int | None = None  # the highest step of any rank since the ranks were last started
        self._path = path
        self._loop = loop
        self._tell = tell
        self._fd = -1
        self._size = 0
        self._told_at = -math.inf
        self._rate: tuple[float, float, float | None] | None = None  # (at, step, steps a second)
        self._watched: dict[int, LogWriter] = {}  # what penstock.watch says, by rank

    def take(self, rank: int, lines: list[bytes]) -> None:
        """A batch of lines; of more than ``_LINES_A_BATCH`` evenly spread ones are kept, the last always, and events."""
        if not lines:
            return
        self.seen += 1
        stride = -(-len(lines) // _LINES_A_BATCH)
        first = (len(lines) - 1) % stride
        chosen = [line for n, line in enumerate(lines) if n % stride == first or EVENT in line]
        now = time.time()
        reports = [report for line in chosen if (report := parse(line, rank, now)) is not None]
        if watched := [report for report in reports if report.get("event") in WATCH]:
            reports = [report for report in reports if report.get("event") not in WATCH]
            self._keep(rank, watched)
        if not reports:
            return
        steps = [report["step"] for report in reports if report["step"] is not None]
        self.reached = max([*steps, -1 if self.reached is None else self.reached]) if steps else self.reached
        self._write(_lines(reports))
        steps = [report for report in reports if "event" not in report]
        if steps and (self.latest is None or rank <= self.latest["rank"]):
            self.latest = steps[-1]
            self._schedule()

    def _schedule(self) -> None:
        wait = self._told_at + _TELL_EVERY_S - time.monotonic()
        if wait <= 0:
            self._tell_now()
        else:
            self._loop.at("progress", wait, self._tell_now)

    def _tell_now(self) -> None:
        self._told_at = time.monotonic()
        if (summary := self.summary()) is not None:
            self._tell(summary)

    def summary(self) -> dict[str, Any] | None:
        """The newest report with its rate (steps a second, smoothed) and the seconds left at that rate."""
        if self.latest is None:
            return None
        rate = self._smoothed(self.latest)
        step, total = self.latest["step"], self.latest["total_steps"]
        left = (total - step) / rate if rate and total is not None and step is not None and total >= step else None
        return {**self.latest, "rate": rate and round(rate, 4), "eta_s": left if left is None else round(left, 1)}

    def _smoothed(self, report: dict[str, Any]) -> float | None:
        step, at = report["step"], report["at"]
        if step is None:
            return None
        if self._rate is None or step < self._rate[1] or at < self._rate[0]:
            self._rate = (at, step, None)  # the first report, or after a restart
        before_at, before_step, rate = self._rate
        if at - before_at >= _TELL_EVERY_S and step > before_step:
            fresh = (step - before_step) / (at - before_at)
            rate = fresh if rate is None else rate + _SMOOTHING * (fresh - rate)
            self._rate = (at, step, rate)
        return rate

    def _write(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._size += os.write(self._fd, data)
            if self._size > _FILE_BYTES:
                self._thin_out()
        except OSError:  # a full disk costs points of a chart, no more
            return

    def _keep(self, rank: int, reports: list[dict[str, Any]]) -> None:
        writer = self._watched.get(rank)
        if writer is None:
            writer = self._watched[rank] = LogWriter(f"{FOLDER}/{rank}", _WATCH_FIRST, _WATCH_NEWEST)
        writer.write(_lines(reports))

    def _thin_out(self) -> None:
        """Keep every second of the older points: the whole run stays visible, at half the density. Events stay, the newest
        of very many.
        """
        with open(self._path, "rb") as file:
            lines = file.readlines()
        older = len(lines) - len(lines) // 4
        events = {n for n, line in enumerate(lines) if EVENT in line}
        stay = set(sorted(events)[-_EVENTS:])
        kept = b"".join(
            line for n, line in enumerate(lines) if n in stay or (n not in events and (n >= older or n % 2 == 0))
        )
        with open(f"{self._path}.new", "wb") as file:
            file.write(kept)
        os.rename(f"{self._path}.new", self._path)
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._size = len(kept)

    def close(self) -> None:
        for writer in self._watched.values():
            writer.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lines(reports: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(report, separators=(",", ":")).encode() + b"\n" for report in reports)
