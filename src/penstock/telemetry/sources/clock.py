"""The node's clock: whether anything keeps it right, how far off it is, and a clock beside it that nobody sets."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from penstock.telemetry.sources.tree import gauge
from penstock.telemetry.spec import Reading

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
_STA_NANO = 0x2000


class _Timex(ctypes.Structure):
    """``struct timex`` of adjtimex(2), as far as it is read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def adjtimex() -> tuple[bool, float, float]:
    """Whether the clock is synchronized, its offset and its largest error, in seconds. Raises OSError."""
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")
    unit = 1e9 if timex.status & _STA_NANO else 1e6
    return state != _TIME_ERROR, timex.offset / unit, timex.maxerror / 1e6


class Clock:
    name = "clock"

    def __init__(
        self,
        every_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
        ask: Callable[[], tuple[bool, float, float]] = adjtimex,
    ) -> None:
        self.every_s = every_s
        self._monotonic = monotonic
        self._ask = ask

    def read(self, now: float) -> Reading:
        points = gauge("penstock_node_monotonic_seconds", self._monotonic())
        points += gauge("penstock_node_time_seconds", now)
        try:
            kept, offset, error = self._ask()
        except OSError as refused:
            return Reading(self.name, now, tuple(points), problem=f"adjtimex: {refused.strerror}")
        points += gauge("penstock_node_clock_synchronized", float(kept))
        points += gauge("penstock_node_clock_offset_seconds", offset)
        points += gauge("penstock_node_clock_error_seconds", error)
        return Reading(self.name, now, tuple(points))

    def close(self) -> None:
        return
