"""NVIDIA's GPUs by NVML. Asked in a process of its own (``nvml_child.py``): one that hangs is given up, and told of.

While a child that was given up has not ended (a call that hangs in the driver cannot be killed) no other is started: so
there is at most one. Without ``pynvml``, a driver or a GPU it says so and asks again every five minutes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.base.text import one_line
from penstock.telemetry.names import REASONS, pci_address
from penstock.telemetry.rules import HANGING, MISSING, NO_DRIVER
from penstock.telemetry.sources.tree import counter, gauge
from penstock.telemetry.spec import Labels, Point, Reading

WORDS = (sys.executable, "-m", "penstock.telemetry.sources.nvml_child")
PATIENCE_S = 10.0
AGAIN_S = 300.0  # after NVML could not be had at all
MAX_ANSWER = 4 << 20
_BLIND = (-1, 12)  # no pynvml, NVML_ERROR_LIBRARY_NOT_FOUND: what the agent lacks, and not the node

# key of the child's answer, name, factor to base units, further labels
_GAUGES: tuple[tuple[str, str, float, tuple[tuple[str, str], ...]], ...] = (
    ("temperature_gpu", "penstock_gpu_temperature_celsius", 1.0, (("sensor", "gpu"),)),
    ("temperature_slowdown", "penstock_gpu_temperature_limit_celsius", 1.0, (("limit", "slowdown"),)),
    ("temperature_shutdown", "penstock_gpu_temperature_limit_celsius", 1.0, (("limit", "shutdown"),)),
    ("temperature_memory_max", "penstock_gpu_temperature_limit_celsius", 1.0, (("limit", "memory"),)),
    ("power_mw", "penstock_gpu_power_watts", 1e-3, ()),
    ("power_limit_mw", "penstock_gpu_power_limit_watts", 1e-3, ()),
    ("power_limit_default_mw", "penstock_gpu_power_limit_default_watts", 1e-3, ()),
    ("clock_sm_mhz", "penstock_gpu_clock_hertz", 1e6, (("clock", "sm"),)),
    ("clock_memory_mhz", "penstock_gpu_clock_hertz", 1e6, (("clock", "memory"),)),
    ("clock_sm_max_mhz", "penstock_gpu_clock_max_hertz", 1e6, (("clock", "sm"),)),
    ("clock_memory_max_mhz", "penstock_gpu_clock_max_hertz", 1e6, (("clock", "memory"),)),
    ("performance_state", "penstock_gpu_performance_state", 1.0, ()),
    ("pcie_generation", "penstock_gpu_pcie_generation", 1.0, ()),
    ("pcie_generation_max", "penstock_gpu_pcie_generation_max", 1.0, ()),
    ("pcie_width", "penstock_gpu_pcie_width", 1.0, ()),
    ("pcie_width_max", "penstock_gpu_pcie_width_max", 1.0, ()),
    ("retired_pending", "penstock_gpu_page_retirement_pending", 1.0, ()),
    ("persistence_mode", "penstock_gpu_persistence_mode", 1.0, ()),
)
_ECC = "penstock_gpu_ecc_errors_total"
_THROTTLED = "penstock_gpu_throttled_seconds_total"
_FIELDS: dict[str, tuple[str, float, tuple[tuple[str, str], ...]]] = {
    "NVML_FI_DEV_ECC_SBE_VOL_TOTAL": (_ECC, 1.0, (("kind", "corrected"), ("since", "boot"))),
    "NVML_FI_DEV_ECC_DBE_VOL_TOTAL": (_ECC, 1.0, (("kind", "uncorrected"), ("since", "boot"))),
    "NVML_FI_DEV_ECC_SBE_AGG_TOTAL": (_ECC, 1.0, (("kind", "corrected"), ("since", "ever"))),
    "NVML_FI_DEV_ECC_DBE_AGG_TOTAL": (_ECC, 1.0, (("kind", "uncorrected"), ("since", "ever"))),
    "NVML_FI_DEV_RETIRED_SBE": ("penstock_gpu_retired_pages_total", 1.0, (("kind", "corrected"),)),
    "NVML_FI_DEV_RETIRED_DBE": ("penstock_gpu_retired_pages_total", 1.0, (("kind", "uncorrected"),)),
    "NVML_FI_DEV_PCIE_REPLAY_COUNTER": ("penstock_gpu_pcie_replays_total", 1.0, ()),
    "NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS": ("penstock_gpu_pcie_errors_total", 1.0, (("severity", "corrected"),)),
    "NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR": ("penstock_gpu_pcie_errors_total", 1.0, (("severity", "nonfatal"),)),
    "NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR": ("penstock_gpu_pcie_errors_total", 1.0, (("severity", "fatal"),)),
    "NVML_FI_DEV_PERF_POLICY_POWER": (_THROTTLED, 1e-9, (("reason", "power"),)),
    "NVML_FI_DEV_PERF_POLICY_THERMAL": (_THROTTLED, 1e-9, (("reason", "thermal"),)),
    "NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT": (_THROTTLED, 1e-9, (("reason", "board_limit"),)),
    "NVML_FI_DEV_PERF_POLICY_RELIABILITY": (_THROTTLED, 1e-9, (("reason", "reliability"),)),
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN": (_THROTTLED, 1e-9, (("reason", "sw_thermal_slowdown"),)),
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN": (_THROTTLED, 1e-9, (("reason", "hw_thermal_slowdown"),)),
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN": (_THROTTLED, 1e-9, (("reason", "power_brake"),)),
}
_LINK_ERRORS = {
    "NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY": "replay",
    "NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY": "recovery",
    "NVML_FI_DEV_NVLINK_ERROR_DL_CRC": "crc",
    "NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS": "receive",
    "NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS": "failed_recovery",
    "NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS": "symbol",
}


class Nvml:
    name = "nvml"

    def __init__(self, every_s: float = 10.0, words: Sequence[str] = WORDS, patience_s: float = PATIENCE_S) -> None:
        self.every_s = every_s
        self._words = tuple(words)
        self._patience_s = patience_s
        self._child: subprocess.Popen[bytes] | None = None
        self._given_up: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        self._missing = ""

    def read(self, now: float) -> Reading:
        if self._missing and time.monotonic() < self._not_before:
            return Reading(self.name, now, problem=self._missing)
        if self._given_up is not None:
            if self._given_up.poll() is None:
                return Reading(self.name, now, problem=f"{HANGING}, and its process cannot be ended")
            self._given_up = None
        text, problem = self._asked()
        if problem:
            self._give_up()
            return Reading(self.name, now, problem=problem)
        try:
            answer = json.loads(text)
            points = tuple(gpu_points(answer))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._give_up()
            return Reading(self.name, now, problem=f"NVML's child answered nonsense: {one_line(str(error))}")
        if answer["error"]:
            kind = MISSING if answer["code"] in _BLIND else NO_DRIVER
            self._missing, self._not_before = f"{kind}: {answer['error']}", time.monotonic() + AGAIN_S
            self.close()
            return Reading(self.name, now, problem=self._missing)
        self._missing = ""
        lost = [f"GPU {one['index']}: {one['lost']}" for one in answer["devices"] if one["lost"]]
        return Reading(self.name, now, points, problem="; ".join(lost))

    def close(self) -> None:
        self._give_up()

    def _asked(self) -> tuple[str, str]:
        """One line of the child's, and what was wrong."""
        if self._child is None:
            try:
                self._child = subprocess.Popen(
                    self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
                )
            except OSError as error:
                return "", f"NVML's child cannot be started: {error.strerror}"
        asking, answering = self._child.stdin, self._child.stdout
        assert asking is not None
        assert answering is not None
        try:
            asking.write(b"\n")
        except BrokenPipeError:
            return "", "NVML's child has ended"
        answer = b""
        deadline = time.monotonic() + self._patience_s
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([answering], [], [], left)[0]:
                return "", f"{HANGING} in {self._patience_s:g} s"
            chunk = os.read(answering.fileno(), 1 << 16)
            answer += chunk
            if not chunk or len(answer) > MAX_ANSWER:
                return "", "NVML's child has ended" if not chunk else "NVML's child answers without end"
        return answer.decode("utf-8", "replace"), ""

    def _give_up(self) -> None:
        """Ends the child without waiting for it longer than a moment."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        child.kill()
        try:
            child.wait(1.0)
        except subprocess.TimeoutExpired:
            self._given_up = child


def gpu_points(answer: Mapping[str, Any]) -> Iterator[Point]:
    """What the child said, in our names. Pure."""
    if answer["error"]:
        return
    yield from gauge("penstock_gpus", float(answer["count"]))
    for device in answer["devices"]:
        labels = (("gpu", str(device["index"])), ("uuid", str(device.get("uuid", ""))))
        yield from gauge("penstock_gpu_up", float(not device["lost"]), *labels)
        yield from gauge("penstock_gpu_info", 1.0, *labels, *_identity(device, str(answer["driver"])))
        if not device["lost"]:
            yield from _device(device, labels)


def _identity(device: Mapping[str, Any], driver: str) -> Labels:
    found = {
        "pci": pci_address(str(device.get("pci", ""))),
        "model": device.get("name", ""),
        "serial": device.get("serial", ""),
        "vbios": device.get("vbios", ""),
        "driver": driver,
        "vendor": "nvidia",
    }
    return tuple((key, one_line(str(value), 80)) for key, value in found.items())


def _device(device: Mapping[str, Any], labels: Labels) -> Iterator[Point]:
    for key, name, factor, more in _GAUGES:
        if key in device:
            yield from gauge(name, device[key] * factor, *labels, *more)
    memory, busy = device.get("memory"), device.get("utilization")
    if memory:
        yield from gauge("penstock_gpu_memory_total_bytes", float(memory["total"]), *labels)
        yield from gauge("penstock_gpu_memory_used_bytes", float(memory["used"]), *labels)
    if busy:
        yield from gauge("penstock_gpu_utilization_ratio", busy["gpu"] / 100, *labels)
        yield from gauge("penstock_gpu_memory_utilization_ratio", busy["memory"] / 100, *labels)
    if "energy_mj" in device:
        yield from counter("penstock_gpu_energy_joules_total", device["energy_mj"] / 1e3, *labels)
    if "clock_reasons" in device:
        for bit, reason in REASONS.items():
            active = float(bool(device["clock_reasons"] & bit))
            yield from gauge("penstock_gpu_clock_reason", active, *labels, ("reason", reason))
    if "ecc_mode" in device:
        yield from gauge("penstock_gpu_ecc_enabled", float(device["ecc_mode"][0]), *labels)
    if "mig_mode" in device:
        yield from gauge("penstock_gpu_mig_enabled", float(device["mig_mode"][0]), *labels)
    fields = device.get("fields", {})
    yield from gauge(
        "penstock_gpu_temperature_celsius", fields.get("NVML_FI_DEV_MEMORY_TEMP") or None, *labels, ("sensor", "memory")
    )
    yield from gauge("penstock_gpu_recovery_action", fields.get("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"), *labels)
    for field, (name, factor, more) in _FIELDS.items():
        if field in fields:
            yield from counter(name, fields[field] * factor, *labels, *more)
    yield from _rows(device, labels)
    yield from _links(device, labels)
    yield from _processes(device, labels)


def _rows(device: Mapping[str, Any], labels: Labels) -> Iterator[Point]:
    if "remapped_rows" in device:
        corrected, uncorrected, pending, failed = device["remapped_rows"]
        yield from counter("penstock_gpu_remapped_rows_total", float(corrected), *labels, ("kind", "corrected"))
        yield from counter("penstock_gpu_remapped_rows_total", float(uncorrected), *labels, ("kind", "uncorrected"))
        yield from gauge("penstock_gpu_row_remap_pending", float(pending), *labels)
        yield from gauge("penstock_gpu_row_remap_failed", float(failed), *labels)
    for level, banks in (device.get("row_remapper") or {}).items():
        yield from gauge("penstock_gpu_row_remap_banks", float(banks), *labels, ("spare", level))


def _links(device: Mapping[str, Any], labels: Labels) -> Iterator[Point]:
    links = device.get("links") or []
    if links:
        yield from gauge("penstock_gpu_nvlinks", float(len(links)), *labels)
        yield from gauge("penstock_gpu_nvlinks_up", float(sum(one["up"] for one in links)), *labels)
    for field, kind in _LINK_ERRORS.items():
        told = [one[field] for one in links if field in one]
        if told:
            yield from counter("penstock_gpu_nvlink_errors_total", float(sum(told)), *labels, ("kind", kind))
    fabric = device.get("fabric")
    if fabric and fabric["state"]:  # 0: no NVSwitch here
        yield from gauge("penstock_gpu_fabric_state", float(fabric["state"]), *labels)
        yield from gauge("penstock_gpu_fabric_status", float(fabric["status"]), *labels)


def _processes(device: Mapping[str, Any], labels: Labels) -> Iterator[Point]:
    for process in device.get("processes") or []:
        used = process.get("usedGpuMemory")
        yield from gauge(
            "penstock_gpu_process_memory_bytes",
            float(used) if used is not None else None,
            *labels,
            ("pid", str(process["pid"])),
        )
    newest: dict[int, Mapping[str, Any]] = {}
    for sample in device.get("process_utilization") or []:
        if sample["pid"] and sample["timeStamp"] >= newest.get(sample["pid"], sample)["timeStamp"]:
            newest[sample["pid"]] = sample
    for pid, sample in newest.items():
        share = sample["smUtil"] / 100
        yield from gauge("penstock_gpu_process_utilization_ratio", share, *labels, ("pid", str(pid)))
