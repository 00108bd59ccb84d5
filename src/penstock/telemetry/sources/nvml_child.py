"""Asks NVML, in a process of its own: a driver that hangs takes this process with it and nothing else.

A line on standard input is a question; the answer is a line of JSON: what NVML said, as it said it, by its own words and
units. ``nvml.py`` makes points of it. Imports what it must: it stays in memory on every node. ``--record`` answers once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

SLOW_EVERY_S = 60.0  # what seldom changes, or costs many calls
MAX_GPUS = 64
MAX_LINKS = 36
MAX_PROCESSES = 64

# key, function, arguments
Asked = tuple[str, str, tuple[int, ...]]
_FAST: tuple[Asked, ...] = (
    ("utilization", "nvmlDeviceGetUtilizationRates", ()),
    ("memory", "nvmlDeviceGetMemoryInfo", ()),
    ("temperature_gpu", "nvmlDeviceGetTemperature", (0,)),
    ("power_mw", "nvmlDeviceGetPowerUsage", ()),
    ("energy_mj", "nvmlDeviceGetTotalEnergyConsumption", ()),
    ("clock_sm_mhz", "nvmlDeviceGetClockInfo", (1,)),
    ("clock_memory_mhz", "nvmlDeviceGetClockInfo", (2,)),
    ("clock_reasons", "nvmlDeviceGetCurrentClocksEventReasons", ()),
    ("performance_state", "nvmlDeviceGetPerformanceState", ()),
    ("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration", ()),
    ("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", ()),
    ("remapped_rows", "nvmlDeviceGetRemappedRows", ()),
    ("processes", "nvmlDeviceGetComputeRunningProcesses", ()),
)
_SLOW: tuple[Asked, ...] = (
    ("name", "nvmlDeviceGetName", ()),
    ("serial", "nvmlDeviceGetSerial", ()),
    ("vbios", "nvmlDeviceGetVbiosVersion", ()),
    ("power_limit_mw", "nvmlDeviceGetEnforcedPowerLimit", ()),
    ("power_limit_default_mw", "nvmlDeviceGetPowerManagementDefaultLimit", ()),
    ("temperature_shutdown", "nvmlDeviceGetTemperatureThreshold", (0,)),
    ("temperature_slowdown", "nvmlDeviceGetTemperatureThreshold", (1,)),
    ("temperature_memory_max", "nvmlDeviceGetTemperatureThreshold", (2,)),
    ("clock_sm_max_mhz", "nvmlDeviceGetMaxClockInfo", (1,)),
    ("clock_memory_max_mhz", "nvmlDeviceGetMaxClockInfo", (2,)),
    ("pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration", ()),
    ("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth", ()),
    ("ecc_mode", "nvmlDeviceGetEccMode", ()),
    ("mig_mode", "nvmlDeviceGetMigMode", ()),
    ("persistence_mode", "nvmlDeviceGetPersistenceMode", ()),
    ("retired_pending", "nvmlDeviceGetRetiredPagesPendingStatus", ()),
    ("row_remapper", "nvmlDeviceGetRowRemapperHistogram", ()),
)
_FAST_FIELDS = (
    "NVML_FI_DEV_MEMORY_TEMP",
    "NVML_FI_DEV_ECC_SBE_VOL_TOTAL",
    "NVML_FI_DEV_ECC_DBE_VOL_TOTAL",
    "NVML_FI_DEV_ECC_SBE_AGG_TOTAL",
    "NVML_FI_DEV_ECC_DBE_AGG_TOTAL",
    "NVML_FI_DEV_RETIRED_SBE",
    "NVML_FI_DEV_RETIRED_DBE",
    "NVML_FI_DEV_PCIE_REPLAY_COUNTER",
    "NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS",
    "NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR",
    "NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR",
    "NVML_FI_DEV_PERF_POLICY_POWER",
    "NVML_FI_DEV_PERF_POLICY_THERMAL",
    "NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT",
    "NVML_FI_DEV_PERF_POLICY_RELIABILITY",
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
    "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",
)
_LINK_FIELDS = (
    "NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY",
    "NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY",
    "NVML_FI_DEV_NVLINK_ERROR_DL_CRC",
    "NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS",
    "NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS",
    "NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS",
)
# c_nvmlValue_t's member by valueType (nvml.h: nvmlValueType_t)
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class Child:
    """What was found out of each GPU is kept, so that one that is lost can still be named."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.slow: dict[int, dict[str, Any]] = {}
        self.slow_at: dict[int, float] = {}
        self.started = False

    def look(self, now: float) -> dict[str, Any]:
        """``{"driver", "devices": [{"index", "lost", ...}], "error"}``; "error" where NVML itself could not be asked."""
        nvml = self.nvml
        try:
            if not self.started:
                nvml.nvmlInit()
                self.started = True
            count = nvml.nvmlDeviceGetCount()
            driver = _plain(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError as error:
            return {"driver": "", "devices": [], "error": str(error), "code": int(error.value)}
        devices = [self._device(index, now) for index in range(min(int(count), MAX_GPUS))]
        return {"driver": driver, "count": int(count), "devices": devices, "error": ""}

    def _device(self, index: int, now: float) -> dict[str, Any]:
        nvml = self.nvml
        known = self.slow.setdefault(index, {})
        found: dict[str, Any] = {"index": index, "lost": ""}
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            known["uuid"] = _plain(nvml.nvmlDeviceGetUUID(handle))
            if "pci" not in known:
                known["pci"] = _plain(nvml.nvmlDeviceGetPciInfo(handle).busId)
        except nvml.NVMLError as error:
            return {**found, **known, "lost": str(error)}
        if now - self.slow_at.get(index, float("-inf")) >= SLOW_EVERY_S or now < self.slow_at[index]:
            known.update(self._answers(handle, _SLOW))
            known["links"] = self._links(handle)
            known["fabric"] = self._fabric(handle)
            self.slow_at[index] = now
        found.update(known)
        found.update(self._answers(handle, _FAST))
        found["fields"] = {
            name: value
            for (name, _), value in self._fields(handle, [(name, 0) for name in _FAST_FIELDS])
            if value is not None
        }
        since = int((now - 10.0) * 1e6)
        found["process_utilization"] = self._asked("nvmlDeviceGetProcessUtilization", handle, since)
        found["processes"] = (found.get("processes") or [])[:MAX_PROCESSES]
        return found

    def _answers(self, handle: Any, asked: tuple[Asked, ...]) -> dict[str, Any]:
        found = {key: self._asked(function, handle, *arguments) for key, function, arguments in asked}
        return {key: value for key, value in found.items() if value is not None}

    def _asked(self, function: str, *arguments: Any) -> Any:
        """None where this model or driver has no answer."""
        try:
            return _plain(getattr(self.nvml, function)(*arguments))
        except (self.nvml.NVMLError, AttributeError):  # an older binding has not every function
            return None

    def _fields(self, handle: Any, asked: list[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], float | None]]:
        """Values by (field's name, scope), in one call."""
        known = [(one, getattr(self.nvml, one[0])) for one in asked if hasattr(self.nvml, one[0])]
        try:
            values = self.nvml.nvmlDeviceGetFieldValues(handle, [(number, scope) for (_, scope), number in known])
        except self.nvml.NVMLError:
            return
        for (one, _), value in zip(known, values, strict=True):
            member = _MEMBERS[value.valueType] if value.nvmlReturn == 0 and value.valueType < len(_MEMBERS) else None
            yield one, getattr(value.value, member) if member else None

    def _links(self, handle: Any) -> list[dict[str, Any]]:
        """``{"link", "up", <field>: count}`` of each NVLink that this GPU has."""
        links: dict[int, dict[str, Any]] = {}
        for number in range(MAX_LINKS):
            up = self._asked("nvmlDeviceGetNvLinkState", handle, number)
            if up is None:
                break
            links[number] = {"link": number, "up": up}
        asked = [(name, number) for number in links for name in _LINK_FIELDS]
        for (name, number), value in self._fields(handle, asked) if asked else ():
            if value is not None:
                links[number][name] = value
        return list(links.values())

    def _fabric(self, handle: Any) -> dict[str, int] | None:
        """NVSwitch systems: whether the fabric manager has taken this GPU in (nvml.h: nvmlGpuFabricInfoV_t)."""
        try:
            info = self.nvml.c_nvmlGpuFabricInfoV_t()
            self.nvml.nvmlDeviceGetGpuFabricInfoV(handle, self.nvml.byref(info))
        except (self.nvml.NVMLError, AttributeError):
            return None
        return {"state": int(info.state), "status": int(info.status), "health": int(info.healthMask)}


def _plain(value: Any) -> Any:
    """NVML's structures as JSON has them."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value[:MAX_PROCESSES]]
    names = [field[0] for field in value._fields_] if hasattr(value, "_fields_") else list(vars(value))
    return {name: _plain(getattr(value, name)) for name in names}


def load() -> Any:
    """The bindings; None where they are not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


MISSING = {"driver": "", "devices": [], "error": "the Python module pynvml is not installed", "code": -1}


def main() -> None:
    nvml = load()
    child = Child(nvml) if nvml is not None else None

    def answer() -> str:
        return json.dumps(child.look(time.time()) if child is not None else MISSING)

    if "--record" in sys.argv:
        sys.stdout.write(answer() + "\n")
        return
    for _ in sys.stdin:
        sys.stdout.write(answer() + "\n")
        sys.stdout.flush()
    os._exit(0)  # NVML's own shutdown may hang as anything else of it


if __name__ == "__main__":
    main()
