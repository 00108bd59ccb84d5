"""NVML that hangs, ends, is missing, loses a GPU: told of, never waited for, and never a second child beside one that hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.telemetry.rules import HANGING, MISSING, NO_DRIVER
from penstock.telemetry.sources.nvml import Nvml, gpu_points
from penstock.telemetry.sources.nvml_child import MISSING as NOT_INSTALLED
from tests.telemetry.sources.contract import NOW, sound
from tests.telemetry.sources.planted import nvml_child, recorded

BUSY: Mapping[str, Any] = json.loads(recorded("nvml_busy.json"))


def values(answer: Mapping[str, Any]) -> dict[str, float]:
    """By name, and the label that tells points of one name apart."""
    apart = ("sensor", "limit", "clock", "reason", "kind", "since", "severity", "spare", "pid")
    return {
        ".".join(
            [point.name.removeprefix("penstock_gpu_"), *(value for key, value in point.labels if key in apart)]
        ): point.value
        for point in gpu_points(answer)
    }


def test_what_a_real_gpu_says_in_base_units() -> None:
    found = values(BUSY)
    assert found["utilization_ratio"] == 1.0
    assert found["temperature_celsius.gpu"] == 46 and found["temperature_celsius.memory"] == 44
    assert found["power_watts"] == pytest.approx(412.108) and found["power_limit_watts"] == 700
    assert found["energy_joules_total"] == pytest.approx(29325.53)
    assert found["clock_hertz.sm"] == 1.83e9 and found["clock_max_hertz.sm"] == 1.98e9
    assert found["clock_reason.sw_power_cap"] == 1 and found["clock_reason.gpu_idle"] == 0
    assert found["throttled_seconds_total.power"] == pytest.approx(20.869, abs=0.01)
    assert found["memory_used_bytes"] == 1799225344
    assert found["row_remap_pending"] == found["row_remap_failed"] == 0
    assert found["pcie_width"] == found["pcie_width_max"] == 16 and found["pcie_generation"] == 5
    assert found["process_memory_bytes.650"] == 1145044992 and found["process_utilization_ratio.650"] == 0.95
    assert found["recovery_action"] == 0
    assert "fabric_state" not in found  # no NVSwitch
    info = next(point for point in gpu_points(BUSY) if point.name == "penstock_gpu_info")
    assert dict(info.labels)["pci"] == "0000:00:06.0" and dict(info.labels)["model"] == "NVIDIA H200"


def test_nvlinks_and_the_fabric() -> None:
    links = [{"link": n, "up": int(n != 3), "NVML_FI_DEV_NVLINK_ERROR_DL_CRC": n} for n in range(18)]
    device = {**BUSY["devices"][0], "links": links, "fabric": {"state": 3, "status": 0, "health": 0}}
    found = values({**BUSY, "devices": [device]})
    assert (found["nvlinks"], found["nvlinks_up"], found["nvlink_errors_total.crc"]) == (18, 17, 153)
    assert found["fabric_state"] == 3


def test_a_gpu_that_is_lost_is_named(tmp_path: Path) -> None:
    lost = {"index": 1, "lost": "GPU is lost", "uuid": "GPU-2", "pci": "00000000:1B:00.0"}
    both = {**BUSY, "count": 2, "devices": [BUSY["devices"][0], lost]}
    source = Nvml(words=nvml_child(tmp_path, json.dumps(both)))
    reading = source.read(NOW)
    source.close()
    sound(reading)
    assert reading.problem == "GPU 1: GPU is lost"
    up = {dict(point.labels)["uuid"]: point.value for point in reading.points if point.name == "penstock_gpu_up"}
    assert up == {BUSY["devices"][0]["uuid"]: 1.0, "GPU-2": 0.0}


HANGS = (sys.executable, "-c", "import signal, sys, time\nfor _ in sys.stdin:\n    time.sleep(600)")


def test_a_hanging_driver_is_given_up() -> None:
    source = Nvml(words=HANGS, patience_s=0.3)
    first = source.read(NOW)
    assert first.problem.startswith(HANGING) and not first.points
    assert source.read(NOW).problem.startswith(HANGING)
    source.close()


def test_a_child_that_cannot_be_ended_is_the_only_one(tmp_path: Path) -> None:
    source = Nvml(words=HANGS, patience_s=0.3)
    source.read(NOW)
    stuck = Nvml(words=HANGS)._words
    with subprocess.Popen(stuck, stdin=subprocess.PIPE) as child:  # as if it slept in the kernel
        source._given_up = child
        assert "cannot be ended" in source.read(NOW).problem
        assert source._child is None
        child.kill()
        child.wait()
        assert source.read(NOW).problem == f"{HANGING} in 0.3 s"
    source.close()


@pytest.mark.parametrize(
    ("answer", "begins"),
    [
        (NOT_INSTALLED, MISSING),
        ({"driver": "", "devices": [], "error": "NVML Shared Library Not Found", "code": 12}, MISSING),
        ({"driver": "", "devices": [], "error": "Driver Not Loaded", "code": 9}, NO_DRIVER),
        ({"driver": "", "devices": [], "error": "Driver/library version mismatch", "code": 18}, NO_DRIVER),
    ],
)
def test_nvml_that_is_missing_says_so_and_is_not_asked_at_each_read(
    answer: Mapping[str, Any], begins: str, tmp_path: Path
) -> None:
    source = Nvml(words=nvml_child(tmp_path, json.dumps(answer)))
    first, second = source.read(NOW), source.read(NOW + 10)
    assert first.problem == second.problem == f"{begins}: {answer['error']}"
    assert source._child is None
    source.close()


def test_a_child_that_ends_is_begun_anew(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = (
        f"import os, sys\nfirst = not os.path.exists({str(mark)!r})\nopen({str(mark)!r}, 'w')\n"
        f"for _ in sys.stdin:\n    print({json.dumps(BUSY)!r}, flush=True)\n    if first:\n        sys.exit(1)\n"
    )
    source = Nvml(words=(sys.executable, "-c", script))
    assert source.read(NOW).points
    problems = [source.read(NOW).problem for _ in range(3)]
    assert "NVML's child has ended" in problems and problems[-1] == ""
    source.close()


def test_the_real_child_answers_whatever_is_here() -> None:
    source = Nvml()
    reading = source.read(NOW)
    sound(reading)
    assert reading.points or reading.problem
    source.close()
