"""Exporters' names in our own: one rule and one chart for a value, whoever read it. Pure.

What an exporter says keeps its name on the agent's own page; rules and the server get what is here. What is not here has no
name of ours, and no rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from penstock.telemetry.spec import Labels, Point

Kind = Literal["gauge", "counter"]
_More = tuple[tuple[str, str], ...]

# nvml.h's nvmlClocksEventReason..., which DCGM hands on as they are
REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
_SINCE_BOOT, _EVER = ("since", "boot"), ("since", "ever")
_CORRECTED, _UNCORRECTED = ("kind", "corrected"), ("kind", "uncorrected")
_ECC = "penstock_gpu_ecc_errors_total"
_ROWS = "penstock_gpu_remapped_rows_total"
_NVLINK = "penstock_gpu_nvlink_errors_total"
_DCGM: dict[str, tuple[str, float, _More]] = {
    "DCGM_FI_DEV_GPU_TEMP": ("penstock_gpu_temperature_celsius", 1.0, (("sensor", "gpu"),)),
    "DCGM_FI_DEV_MEMORY_TEMP": ("penstock_gpu_temperature_celsius", 1.0, (("sensor", "memory"),)),
    "DCGM_FI_DEV_POWER_USAGE": ("penstock_gpu_power_watts", 1.0, ()),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("penstock_gpu_energy_joules_total", 1e-3, ()),
    "DCGM_FI_DEV_SM_CLOCK": ("penstock_gpu_clock_hertz", 1e6, (("clock", "sm"),)),
    "DCGM_FI_DEV_MEM_CLOCK": ("penstock_gpu_clock_hertz", 1e6, (("clock", "memory"),)),
    "DCGM_FI_DEV_GPU_UTIL": ("penstock_gpu_utilization_ratio", 0.01, ()),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("penstock_gpu_memory_utilization_ratio", 0.01, ()),
    "DCGM_FI_DEV_FB_USED": ("penstock_gpu_memory_used_bytes", float(1 << 20), ()),
    "DCGM_FI_DEV_FB_TOTAL": ("penstock_gpu_memory_total_bytes", float(1 << 20), ()),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("penstock_gpu_pcie_replays_total", 1.0, ()),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": (_ECC, 1.0, (_CORRECTED, _SINCE_BOOT)),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": (_ECC, 1.0, (_UNCORRECTED, _SINCE_BOOT)),
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": (_ECC, 1.0, (_CORRECTED, _EVER)),
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": (_ECC, 1.0, (_UNCORRECTED, _EVER)),
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": (_ROWS, 1.0, (_CORRECTED,)),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": (_ROWS, 1.0, (_UNCORRECTED,)),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": ("penstock_gpu_row_remap_failed", 1.0, ()),
    "DCGM_FI_DEV_ROW_REMAP_PENDING": ("penstock_gpu_row_remap_pending", 1.0, ()),
    "DCGM_FI_DEV_RETIRED_SBE": ("penstock_gpu_retired_pages_total", 1.0, (_CORRECTED,)),
    "DCGM_FI_DEV_RETIRED_DBE": ("penstock_gpu_retired_pages_total", 1.0, (_UNCORRECTED,)),
    "DCGM_FI_DEV_RETIRED_PENDING": ("penstock_gpu_page_retirement_pending", 1.0, ()),
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": (_NVLINK, 1.0, (("kind", "crc"),)),
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": (_NVLINK, 1.0, (("kind", "replay"),)),
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": (_NVLINK, 1.0, (("kind", "recovery"),)),
    "DCGM_FI_DEV_XID_ERRORS": ("penstock_gpu_xid_last", 1.0, ()),
}
_DCGM_REASONS = frozenset({"DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"})

_NODE_EXPORTER: dict[str, tuple[str, _More]] = {
    "node_boot_time_seconds": ("penstock_node_boot_time_seconds", ()),
    "node_cpu_seconds_total": ("penstock_node_cpu_seconds_total", ()),
    "node_disk_io_time_seconds_total": ("penstock_node_disk_busy_seconds_total", ()),
    "node_disk_read_bytes_total": ("penstock_node_disk_read_bytes_total", ()),
    "node_disk_reads_completed_total": ("penstock_node_disk_reads_total", ()),
    "node_disk_written_bytes_total": ("penstock_node_disk_written_bytes_total", ()),
    "node_disk_writes_completed_total": ("penstock_node_disk_writes_total", ()),
    "node_edac_correctable_errors_total": ("penstock_node_memory_errors_total", (_CORRECTED,)),
    "node_edac_uncorrectable_errors_total": ("penstock_node_memory_errors_total", (_UNCORRECTED,)),
    "node_filesystem_avail_bytes": ("penstock_node_filesystem_available_bytes", ()),
    "node_filesystem_files": ("penstock_node_filesystem_inodes", ()),
    "node_filesystem_files_free": ("penstock_node_filesystem_inodes_available", ()),
    "node_filesystem_readonly": ("penstock_node_filesystem_readonly", ()),
    "node_filesystem_size_bytes": ("penstock_node_filesystem_size_bytes", ()),
    "node_load1": ("penstock_node_load1", ()),
    "node_memory_MemAvailable_bytes": ("penstock_node_memory_available_bytes", ()),
    "node_memory_MemFree_bytes": ("penstock_node_memory_free_bytes", ()),
    "node_memory_MemTotal_bytes": ("penstock_node_memory_total_bytes", ()),
    "node_memory_SwapFree_bytes": ("penstock_node_memory_swap_free_bytes", ()),
    "node_memory_SwapTotal_bytes": ("penstock_node_memory_swap_total_bytes", ()),
    "node_netstat_Tcp_OutSegs": ("penstock_node_tcp_segments_out_total", ()),
    "node_netstat_Tcp_RetransSegs": ("penstock_node_tcp_retransmits_total", ()),
    "node_network_carrier_down_changes_total": ("penstock_node_network_carrier_losses_total", ()),
    "node_network_receive_bytes_total": ("penstock_node_network_receive_bytes_total", ()),
    "node_network_receive_drop_total": ("penstock_node_network_receive_drops_total", ()),
    "node_network_receive_errs_total": ("penstock_node_network_receive_errors_total", ()),
    "node_network_speed_bytes": ("penstock_node_network_speed_bytes_per_second", ()),
    "node_network_transmit_bytes_total": ("penstock_node_network_transmit_bytes_total", ()),
    "node_network_transmit_drop_total": ("penstock_node_network_transmit_drops_total", ()),
    "node_network_transmit_errs_total": ("penstock_node_network_transmit_errors_total", ()),
    "node_network_up": ("penstock_node_network_up", ()),
    "node_pressure_cpu_waiting_seconds_total": (
        "penstock_node_pressure_seconds_total",
        (("kind", "some"), ("resource", "cpu")),
    ),
    "node_pressure_io_stalled_seconds_total": (
        "penstock_node_pressure_seconds_total",
        (("kind", "full"), ("resource", "io")),
    ),
    "node_pressure_io_waiting_seconds_total": (
        "penstock_node_pressure_seconds_total",
        (("kind", "some"), ("resource", "io")),
    ),
    "node_pressure_memory_stalled_seconds_total": (
        "penstock_node_pressure_seconds_total",
        (("kind", "full"), ("resource", "memory")),
    ),
    "node_pressure_memory_waiting_seconds_total": (
        "penstock_node_pressure_seconds_total",
        (("kind", "some"), ("resource", "memory")),
    ),
    "node_procs_blocked": ("penstock_node_processes", (("state", "blocked"),)),
    "node_procs_running": ("penstock_node_processes", (("state", "running"),)),
    "node_timex_maxerror_seconds": ("penstock_node_clock_error_seconds", ()),
    "node_timex_offset_seconds": ("penstock_node_clock_offset_seconds", ()),
    "node_timex_sync_status": ("penstock_node_clock_synchronized", ()),
    "node_vmstat_oom_kill": ("penstock_node_oom_kills_total", ()),
    "node_vmstat_pgmajfault": ("penstock_node_major_faults_total", ()),
    "node_infiniband_link_downed_total": ("penstock_infiniband_link_downs_total", ()),
    "node_infiniband_link_error_recovery_total": ("penstock_infiniband_link_recoveries_total", ()),
    "node_infiniband_local_link_integrity_errors_total": ("penstock_infiniband_integrity_errors_total", ()),
    "node_infiniband_physical_state_id": ("penstock_infiniband_physical_state", ()),
    "node_infiniband_port_data_received_bytes_total": ("penstock_infiniband_receive_bytes_total", ()),
    "node_infiniband_port_data_transmitted_bytes_total": ("penstock_infiniband_transmit_bytes_total", ()),
    "node_infiniband_port_discards_transmitted_total": ("penstock_infiniband_transmit_discards_total", ()),
    "node_infiniband_port_errors_received_total": ("penstock_infiniband_receive_errors_total", ()),
    "node_infiniband_port_transmit_wait_total": ("penstock_infiniband_transmit_wait_ticks_total", ()),
    "node_infiniband_rate_bytes_per_second": ("penstock_infiniband_rate_bytes_per_second", ()),
    "node_infiniband_state_id": ("penstock_infiniband_state", ()),
    "node_infiniband_symbol_error_total": ("penstock_infiniband_symbol_errors_total", ()),
}


SUMMED = frozenset({"penstock_node_cpu_seconds_total"})  # one for each CPU of an exporter's


def canonical(point: Point) -> Iterator[Point]:
    """The point under our name; nothing where it has none. A GPU's PCI address is told by ``penstock_gpu_info``."""
    if point.name.startswith("penstock_"):
        yield point
    elif point.name.startswith("DCGM_FI_"):
        yield from _of_dcgm(point)
    elif point.name in _NODE_EXPORTER:
        name, more = _NODE_EXPORTER[point.name]
        labels = dict(point.labels)
        if name.startswith("penstock_infiniband_") and "port" in labels:
            labels["device"] = f"{labels.get('device', '')}/{labels.pop('port')}"
        if name in SUMMED:
            labels.pop("cpu", None)
        yield Point(name, point.value, _sorted(labels, more), _kind(name))


def pci_address(text: str) -> str:
    """``00000000:1B:00.0`` and ``0000:1b:00`` as the kernel writes it: ``0000:1b:00.0``."""
    domain, _, rest = text.lower().partition(":")
    if not rest:
        return text.lower()
    return f"{domain[-4:]}:{rest}" if "." in rest else f"{domain[-4:]}:{rest}.0"


def _of_dcgm(point: Point) -> Iterator[Point]:
    said = dict(point.labels)
    labels = {"gpu": said.get("gpu", ""), "uuid": said.get("UUID", said.get("uuid", ""))}
    if point.name == "DCGM_FI_DEV_GPU_TEMP" and said.get("pci_bus_id"):
        more = {
            "pci": pci_address(said["pci_bus_id"]),
            "model": said.get("modelName", ""),
            "driver": said.get("DCGM_FI_DRIVER_VERSION", ""),
            "vendor": "nvidia",
        }
        yield Point("penstock_gpu_info", 1.0, _sorted({**labels, **more}, ()))
    if point.name in _DCGM_REASONS and 0 <= point.value < 1 << 32:
        for bit, reason in REASONS.items():
            active = float(bool(int(point.value) & bit))
            yield Point("penstock_gpu_clock_reason", active, _sorted(labels, (("reason", reason),)))
    elif point.name in _DCGM:
        name, factor, further = _DCGM[point.name]
        yield Point(name, point.value * factor, _sorted(labels, further), _kind(name))


def _sorted(labels: dict[str, str], more: _More) -> Labels:
    return tuple(sorted((*labels.items(), *more)))


def _kind(name: str) -> Kind:
    return "counter" if name.endswith("_total") else "gauge"
