"""Quantities with units: memory in bytes, durations in seconds, CPUs in cores, times in epoch seconds."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from datetime import UTC, datetime

# Kubernetes' suffixes: powers of 1024 with an i, powers of 1000 without.
_MEMORY = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    unit + "i": 1024**power for power, unit in enumerate("KMGTP", start=1)
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d|w))")


def parse_memory(text: str | float) -> int:
    """``"8Gi"`` -> 8589934592. A bare number is bytes. Raises ValueError with the accepted forms."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]{0,2})B?\s*", str(text))
    if not match or match[2] not in _MEMORY:
        raise ValueError(f"{text!r} is not an amount of memory: write 512Mi, 8Gi, 1.5Ti or a number of bytes")
    return int(float(match[1]) * _MEMORY[match[2]])


def format_memory(value: float) -> str:
    """The shortest exact-enough binary form: 8589934592 -> ``"8Gi"``."""
    for unit, size in (("Ti", 1024**4), ("Gi", 1024**3), ("Mi", 1024**2), ("Ki", 1024)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{int(value)}"


def parse_duration(text: str | float) -> float:
    """``"1h30m"`` -> 5400.0. A bare number is seconds. Raises ValueError with the accepted forms."""
    text = str(text).strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    if not text or not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        raise ValueError(f"{text!r} is not a duration: write 30s, 15m, 1h30m, 2d or a number of seconds")
    return sum(float(amount) * _SECONDS[unit] for amount, unit in _DURATION.findall(text))


def format_duration(seconds: float) -> str:
    """For people: 0.42 -> ``"0.42s"``, 5400 -> ``"1h30m"``; two units at the most."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 60:
        return f"{seconds:.3g}s"
    parts = []
    left = round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return "".join(parts[:2])


def parse_cpus(text: str | float) -> float:
    """``"500m"`` -> 0.5; ``"2"`` -> 2.0 (cores)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)(m?)\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a number of CPUs: write 2, 0.5 or 500m")
    return float(match[1]) / (1000 if match[2] else 1)


def parse_time(text: str) -> float:
    """RFC 3339 -> epoch seconds. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()


def parse_moment(text: str, now: float) -> float:
    """RFC 3339, or how long before ``now`` (``7d``) -> epoch seconds, before the year 10000. Raises ValueError."""
    for zero, sign, read in ((now, -1, parse_duration), (0, 1, parse_time)):
        with suppress(ValueError, OverflowError):
            if 0 <= (found := zero + sign * read(text)) < 253_402_300_800:
                return found
    raise ValueError(f"{text!r} is neither a time (2026-11-22T03:40:32Z) nor a duration (7d)")


def format_time(at: float | None) -> str | None:
    """Epoch seconds -> RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None or not math.isfinite(at):
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
