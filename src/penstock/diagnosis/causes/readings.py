"""Telemetry as the rules ask for it: one value of one device, of the time that is looked at, whoever measured it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.diagnosis.causes.rule import ranks
from penstock.diagnosis.features import Features
from penstock.diagnosis.state import Culprit, Series
from penstock.telemetry.kept import KEPT

# One quantity under the names that sources give it; a vendor's stay as they are. Units are those of the first.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "temperature": ("penstock_gpu_temperature_celsius", "DCGM_FI_DEV_GPU_TEMP"),
    "temperature_limit": ("penstock_gpu_temperature_limit_celsius",),
    "clock": ("penstock_gpu_clock_hertz", "DCGM_FI_DEV_SM_CLOCK"),
    "clock_max": ("penstock_gpu_clock_max_hertz", "DCGM_FI_DEV_MAX_SM_CLOCK"),
    "reasons": ("penstock_gpu_throttle_reasons", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"),
    "power": ("penstock_gpu_power_watts", "DCGM_FI_DEV_POWER_USAGE"),
    "power_limit": ("penstock_gpu_power_limit_watts", "DCGM_FI_DEV_POWER_MGMT_LIMIT"),
    "utilization": ("penstock_gpu_utilization_ratio", "DCGM_FI_DEV_GPU_UTIL"),
    "sm_active": ("DCGM_FI_PROF_SM_ACTIVE",),
    "tensor_active": ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",),
    "pcie_width": ("penstock_gpu_pcie_width", "penstock_gpu_pcie_link_width", "DCGM_FI_DEV_PCIE_LINK_WIDTH"),
    "pcie_width_max": ("penstock_gpu_pcie_width_max", "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH"),
    "pcie_replays": ("penstock_gpu_pcie_replays_total", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER"),
    "memory_free": ("DCGM_FI_DEV_FB_FREE",),
    "gpus": ("penstock_gpus",),
    "gpus_plugged": ("penstock_node_pci_gpus",),
    "cpu_clock": ("penstock_node_cpu_clock_hertz", "node_cpu_scaling_frequency_hertz"),
    "link_rate": ("penstock_infiniband_rate_bytes_per_second", "node_infiniband_rate_bytes_per_second"),
    "link_state": ("penstock_infiniband_state", "node_infiniband_state_id"),
    "link_up": ("penstock_node_network_up", "node_network_up"),
    "link_downs": ("penstock_infiniband_link_downs_total", "penstock_infiniband_link_downed_total", "penstock_node_network_carrier_losses_total", "node_infiniband_link_downed_total"),
    "symbol_errors": ("penstock_infiniband_symbol_errors_total", "node_infiniband_symbol_error_total", "penstock_infiniband_symbol_error_total"),
    "transmit_wait": (
        "penstock_infiniband_transmit_wait_ticks_total", "penstock_infiniband_transmit_wait_total",
        "node_infiniband_port_transmit_wait_total", "node_infiniband_port_xmit_wait_total",
    ),
    "cnp_sent": ("np_cnp_sent", "penstock_infiniband_np_cnp_sent_total"),
    "out_of_sequence": ("penstock_infiniband_packet_sequence_errors_total", "packet_seq_err", "out_of_sequence"),
    "mtu": ("penstock_node_network_mtu_bytes", "node_network_mtu_bytes"),
    "pair_bandwidth": ("penstock_link_bandwidth_bytes_per_second",),
}  # fmt: skip
_RATES: Final = frozenset(kept.name for kept in KEPT if kept.counter)
_LAST = 6  # readings where no time is looked at


@dataclass(frozen=True, slots=True)
class Reading:
    node: str
    device: str
    value: float  # the median of the time that is looked at
    before: float | None
    series: Series


def readings(features: Features, what: str) -> Iterator[Reading]:
    names = NAMES[what]
    change = features.change
    for node in features.evidence.nodes:
        for series in node.series:
            values = [value for at, value in series.samples if change is None or at >= change.at] or [
                value for _, value in series.samples[-_LAST:]
            ]
            if _called(series.name, names) and values:
                old = [value for at, value in series.samples if change is not None and at < change.at]
                now = statistics.median(values if change is not None else values[-_LAST:])
                yield Reading(node.name, series.device, now, statistics.median(old) if old else None, series)


def _called(name: str, names: tuple[str, ...]) -> bool:
    """A GPU's memory has a clock and a temperature of its own, which are not asked for here."""
    return name.partition("{")[0] in names and '="memory"' not in name


def by_device(features: Features, what: str) -> dict[tuple[str, str], Reading]:
    return {(reading.node, reading.device): reading for reading in readings(features, what)}


def rose(reading: Reading) -> float:
    """Of a counter: by how much it rose. The server's history keeps rates a second (``telemetry/kept.py``); others tell counts."""
    samples = reading.series.samples
    pairs = list(itertools.pairwise(samples))
    if reading.series.name in _RATES:
        return sum(max(0.0, rate) * (at - before) for (before, _), (at, rate) in pairs)
    return sum(max(0.0, new - old) for (_, old), (_, new) in pairs)


def device(features: Features, node: str, name: str) -> tuple[Culprit, ...]:
    """A GPU, and the ranks that compute on it."""
    users = [view.rank for view in features.ranks if name and view.source.gpu == name and view.node in ("", node)]
    return (*ranks(users), Culprit("gpu", f"{node}/{name}" if name else node))
