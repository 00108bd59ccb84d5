"""AMD's GPUs by ``amd-smi metric --json``, with the names that NVIDIA's have here. Identities come from ``amd-smi list --json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.telemetry.sources.command import Command
from penstock.telemetry.sources.tree import counter, gauge
from penstock.telemetry.spec import Point, Reading

METRIC = ("amd-smi", "metric", "--json")
LIST = ("amd-smi", "list", "--json")
MAX_GPUS = 64

# path in the document, name, factor to base units, further labels
_GAUGES: tuple[tuple[str, str, float, tuple[tuple[str, str], ...]], ...] = (
    ("usage.gfx_activity", "penstock_gpu_utilization_ratio", 0.01, ()),
    ("usage.umc_activity", "penstock_gpu_memory_utilization_ratio", 0.01, ()),
    ("power.socket_power", "penstock_gpu_power_watts", 1.0, ()),
    ("temperature.hotspot", "penstock_gpu_temperature_celsius", 1.0, (("sensor", "gpu"),)),
    ("temperature.mem", "penstock_gpu_temperature_celsius", 1.0, (("sensor", "memory"),)),
    ("clock.gfx_0.clk", "penstock_gpu_clock_hertz", 1e6, (("clock", "sm"),)),
    ("clock.gfx_0.max_clk", "penstock_gpu_clock_max_hertz", 1e6, (("clock", "sm"),)),
    ("clock.mem_0.clk", "penstock_gpu_clock_hertz", 1e6, (("clock", "memory"),)),
    ("clock.mem_0.max_clk", "penstock_gpu_clock_max_hertz", 1e6, (("clock", "memory"),)),
    ("mem_usage.total_vram", "penstock_gpu_memory_total_bytes", 1 << 20, ()),
    ("mem_usage.used_vram", "penstock_gpu_memory_used_bytes", 1 << 20, ()),
    ("pcie.width", "penstock_gpu_pcie_width", 1.0, ()),
)
_COUNTERS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("ecc.total_correctable_count", "penstock_gpu_ecc_errors_total", (("kind", "corrected"), ("since", "boot"))),
    ("ecc.total_uncorrectable_count", "penstock_gpu_ecc_errors_total", (("kind", "uncorrected"), ("since", "boot"))),
    ("pcie.replay_count", "penstock_gpu_pcie_replays_total", ()),
)
_THROTTLED = {  # words of throttle.*_violation_status
    "socket_thermal": "hw_thermal_slowdown",
    "hbm_thermal": "hw_thermal_slowdown",
    "vr_thermal": "hw_thermal_slowdown",
    "ppt": "sw_power_cap",
    "prochot": "hw_slowdown",
}


class AmdSmi:
    name = "amd-smi"

    def __init__(self, metric: Sequence[str] = METRIC, listing: Sequence[str] = LIST, every_s: float = 15.0) -> None:
        self.every_s = every_s
        self._metric = Command(metric)
        self._list = Command(listing)
        self._known: dict[str, dict[str, str]] = {}

    def read(self, now: float) -> Reading:
        problem = ""
        if not self._known:
            text, problem = self._list.run()
            self._known = identities(text)
        text, wrong = self._metric.run()
        try:
            points = tuple(gpu_points(text, self._known))
        except (ValueError, TypeError, AttributeError) as error:
            return Reading(
                self.name, now, problem=wrong or f"amd-smi printed no JSON that can be read: {str(error)[:120]}"
            )
        return Reading(self.name, now, points, problem=wrong or problem)

    def close(self) -> None:
        self._metric.close()
        self._list.close()


def identities(text: str) -> dict[str, dict[str, str]]:
    """PCI address and UUID by index; empty where it is not that."""
    try:
        found = json.loads(text)
        return {
            str(gpu["gpu"]): {"pci": str(gpu.get("bdf", "")), "uuid": str(gpu.get("uuid", ""))} for gpu in _gpus(found)
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def gpu_points(text: str, known: Mapping[str, Mapping[str, str]]) -> Iterator[Point]:
    """Raises ValueError, TypeError or AttributeError where it is not ``amd-smi metric``'s JSON."""
    gpus = _gpus(json.loads(text))
    yield from gauge("penstock_gpus", float(len(gpus)))
    for gpu in gpus:
        index = str(gpu.get("gpu", ""))
        identity = known.get(index, {})
        labels = (("gpu", index), ("uuid", identity.get("uuid", "")))
        yield from gauge("penstock_gpu_up", 1.0, *labels)
        yield from gauge("penstock_gpu_info", 1.0, *labels, ("pci", identity.get("pci", "")), ("vendor", "amd"))
        for path, name, factor, more in _GAUGES:
            value = _value(gpu, path)
            yield from gauge(name, value * factor if value is not None else None, *labels, *more)
        for path, name, more in _COUNTERS:
            yield from counter(name, _value(gpu, path), *labels, *more)
        throttle: Any = gpu.get("throttle")
        reasons = dict.fromkeys(_THROTTLED.values(), 0.0)
        for word, reason in _THROTTLED.items() if isinstance(throttle, dict) else ():
            if throttle.get(f"{word}_violation_status") in {"ACTIVE", "TRUE", True}:
                reasons[reason] = 1.0
        for reason, active in reasons.items() if isinstance(throttle, dict) else ():
            yield from gauge("penstock_gpu_clock_reason", active, *labels, ("reason", reason))


def _gpus(found: Any) -> list[dict[str, Any]]:
    """A bare list before 7.0, below ``gpu_data`` since."""
    listed = found.get("gpu_data", []) if isinstance(found, dict) else found
    gpus = [gpu for gpu in listed if isinstance(gpu, dict) and "gpu" in gpu][:MAX_GPUS]
    if not gpus:
        raise ValueError("it names no GPU")
    return gpus


def _value(gpu: Mapping[str, Any], path: str) -> float | None:
    """A number, or the ``value`` beside a ``unit``; "N/A" is none."""
    found: Any = gpu
    for word in path.split("."):
        found = found.get(word) if isinstance(found, dict) else None
    if isinstance(found, dict):
        found = found.get("value")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
