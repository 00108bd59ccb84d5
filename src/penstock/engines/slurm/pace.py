"""How fast an attempt goes, by its reports. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from penstock.engines.reports import own_time, parse

_SMOOTHING = 0.3


@dataclass(slots=True)
class Pace:
    """The newest report, and the smoothed steps a second between those that were seen."""

    line: bytes = b""
    summary: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None

    def take(self, line: bytes, now: float) -> bool:
        """Whether it is a new report."""
        if line == self.line or (report := parse(line, 0, now)) is None or "event" in report:
            return False
        report["at"] = at = own_time(line, now)  # it is read some seconds after it was made
        last, step, total = self.summary, report["step"], report["total_steps"]
        if step is not None and last.get("step") is not None:
            since, steps = at - last["at"], step - last["step"]
            if steps < 0:
                self.rate = None  # begun anew
            elif since > 0:
                pace = steps / since
                self.rate = pace if self.rate is None else self.rate + _SMOOTHING * (pace - self.rate)
        left = (
            (total - step) / self.rate
            if self.rate and step is not None and total is not None and total >= step
            else None
        )
        self.line = line
        self.summary = {
            **report,
            "rate": self.rate and round(self.rate, 4),
            "eta_s": left if left is None else round(left, 1),
        }
        return True
