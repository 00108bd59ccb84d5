"""Which series of a push the server keeps for a while, and in which unit: a closed list, so that no label can make it grow. Pure.

Prometheus has everything. What is kept here is what the console charts and a diagnosis asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from penstock.telemetry.push import Series

_GIB, _MEGA = float(1 << 30), 1e6
MAX_DEVICE = 80  # characters of a device's name
_Told = dict[str, tuple[str, ...]]  # labels that tell series of one name apart, and the values that are kept


class Kept(NamedTuple):
    """``scale``: what is written is the value divided by it, so that half a float holds it with three digits. A counter is
    kept as its rate per second.
    """

    name: str  # as it is shown: with the labels that tell it from others of its kind
    scale: float
    counter: bool


MODES = ("user", "system", "iowait", "idle", "steal")
_THROTTLES = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "sw_power_cap")
_LISTED: tuple[tuple[str, float, _Told], ...] = (
    ("penstock_gpu_utilization_ratio", 1.0, {}),
    ("penstock_gpu_memory_used_bytes", _GIB, {}),
    ("penstock_gpu_temperature_celsius", 1.0, {"sensor": ("gpu", "memory")}),
    ("penstock_gpu_power_watts", 1.0, {}),
    ("penstock_gpu_clock_hertz", _MEGA, {"clock": ("sm",)}),
    ("penstock_gpu_clock_reason", 1.0, {"reason": _THROTTLES}),
    ("penstock_gpu_pcie_width", 1.0, {}),
    ("penstock_gpu_pcie_replays_total", 1.0, {}),
    ("penstock_gpu_ecc_errors_total", 1.0, {"kind": ("corrected", "uncorrected"), "since": ("boot",)}),
    ("penstock_node_cpu_seconds_total", 1.0, {"mode": MODES}),
    ("penstock_node_cpu_clock_hertz", _MEGA, {}),
    ("penstock_node_run_delay_seconds_total", 1.0, {}),
    ("penstock_node_cgroup_throttled_seconds_total", 1.0, {}),
    ("penstock_node_memory_total_bytes", _GIB, {}),
    ("penstock_node_memory_available_bytes", _GIB, {}),
    ("penstock_node_major_faults_total", 1.0, {}),
    (
        "penstock_node_pressure_seconds_total",
        1.0,
        {"resource": ("cpu", "io", "memory"), "kind": ("some", "full")},
    ),
    ("penstock_node_network_receive_bytes_total", _MEGA, {}),
    ("penstock_node_network_transmit_bytes_total", _MEGA, {}),
    ("penstock_node_network_receive_drops_total", 1.0, {}),
    ("penstock_node_network_receive_errors_total", 1.0, {}),
    ("penstock_node_tcp_segments_out_total", 1.0, {}),
    ("penstock_node_tcp_retransmits_total", 1.0, {}),
    ("penstock_node_disk_read_bytes_total", _MEGA, {}),
    ("penstock_node_disk_written_bytes_total", _MEGA, {}),
    ("penstock_node_disk_busy_seconds_total", 1.0, {}),
    ("penstock_node_clock_offset_seconds", 1.0, {}),
    ("penstock_infiniband_receive_bytes_total", _MEGA, {}),
    ("penstock_infiniband_transmit_bytes_total", _MEGA, {}),
    ("penstock_infiniband_symbol_errors_total", 1.0, {}),
    ("penstock_infiniband_link_downs_total", 1.0, {}),
    ("penstock_infiniband_transmit_wait_ticks_total", _MEGA, {}),
)


def written(name: str, labels: dict[str, str]) -> str:
    """As Prometheus writes it."""
    return name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")


def _kept() -> Iterator[Kept]:
    for name, scale, told in _LISTED:
        for values in product(*told.values()):
            shown = written(name, dict(zip(told, values, strict=True)))
            yield Kept(shown, scale, name.endswith("_total"))


KEPT = tuple(_kept())
_NUMBER = {one.name: number for number, one in enumerate(KEPT)}
_TOLD = {name: tuple(told) for name, _, told in _LISTED}


def place(series: Series) -> tuple[int, str] | None:
    """Which of ``KEPT`` it is, and of which device; None: it is not kept."""
    told = _TOLD.get(series.name)
    if told is None:
        return None
    labels = dict(series.labels)
    number = _NUMBER.get(written(series.name, {key: labels.get(key, "") for key in told}))
    device = labels.get("uuid") or labels.get("device") or labels.get("gpu") or ""
    return (number, device) if number is not None and len(device) <= MAX_DEVICE else None
