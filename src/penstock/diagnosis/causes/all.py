"""All rules, by layer; and which cause brings about the signs of which other. Data, and pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.diagnosis.causes import (
    checkpoint,
    compute,
    config,
    fabric,
    gpu,
    hang,
    host,
    job,
    logged,
    network,
    numbers,
    software,
    standing,
    telling,
    transport,
)
from penstock.diagnosis.causes import input as feeding
from penstock.diagnosis.causes.rule import Rule

RULES: Final[tuple[Rule, ...]] = (
    *feeding.RULES,
    *checkpoint.RULES,
    *host.RULES,
    *standing.RULES,
    *compute.RULES,
    *network.RULES,
    *software.RULES,
    *hang.RULES,
    *job.RULES,
    *telling.RULES,
    *logged.RULES,
    *config.RULES,
    *numbers.RULES,
    *gpu.RULES,
    *fabric.RULES,
    *transport.RULES,
)

# What a cause makes look like another one, where both blame the same: the other is then its effect. Where the other is the better
# founded one, it stays. A rank that is starved, throttled or collects garbage computes longer; a loss makes a link look narrow.
BRINGS: Final[Mapping[str, frozenset[str]]] = {
    "cgroup_throttle": frozenset(
        {"cpu_contention", "slow_compute_rank", "process_frozen", "net_bandwidth_low", "net_latency"}
    ),
    "cpu_contention": frozenset({"slow_compute_rank", "process_frozen", "net_bandwidth_low", "net_latency"}),
    "gc_pause": frozenset({"slow_compute_rank", "process_frozen", "cpu_contention"}),
    "seq_imbalance": frozenset({"slow_compute_rank"}),
    "packet_loss_tcp": frozenset({"net_bandwidth_low", "net_latency", "congestion_pfc", "ib_rate_degraded"}),
    "storage_slow": frozenset({"data_loader_bound", "data_loader_one_rank"}),
    "metadata_storm": frozenset({"data_loader_bound", "data_loader_one_rank", "storage_slow"}),
    "cold_cache": frozenset({"data_loader_bound", "storage_slow"}),
    "ckpt_stall": frozenset({"process_frozen", "storage_slow"}),
    "memory_leak": frozenset({"gc_pause"}),
    "process_frozen": frozenset({"collective_hang", "gil_lock"}),
    "gil_lock": frozenset({"collective_hang"}),
    "collective_mismatch": frozenset({"collective_hang"}),
    "nfs_hang": frozenset({"collective_hang", "storage_slow", "data_loader_bound"}),
    "ib_link_down": frozenset({"net_bandwidth_low", "packet_loss_tcp", "collective_hang", "nccl_internal_error"}),
    "link_flap": frozenset({"net_bandwidth_low", "packet_loss_tcp", "process_frozen", "ib_link_down"}),
    "bad_cable": frozenset({"packet_loss_tcp", "net_bandwidth_low"}),
    "ib_rate_degraded": frozenset({"net_bandwidth_low"}),
    "slow_link_pair": frozenset({"net_bandwidth_low", "net_latency"}),
    "rack_power_cooling": frozenset({"gpu_thermal_throttle", "gpu_power_brake", "slow_compute_rank"}),
    **dict.fromkeys(
        (
            "gpu_thermal_throttle",
            "gpu_power_brake",
            "gpu_clocks_locked",
            "pcie_downgrade",
            "numa_misbind",
            "cpu_freq_low",
        ),
        frozenset({"slow_compute_rank"}),
    ),
    "kernel_soft_lockup": frozenset({"process_frozen", "slow_compute_rank", "cpu_contention", "collective_hang"}),
    "nvme_degraded": frozenset({"storage_slow", "data_loader_one_rank", "data_loader_bound", "ckpt_stall"}),
    "congestion_pfc": frozenset({"net_bandwidth_low", "net_latency"}),
    **dict.fromkeys(
        ("nccl_socket_fallback", "gdr_off", "nvlink_errors", "ecn_misconfig"),
        frozenset({"net_bandwidth_low", "net_latency"}),
    ),
    "gpu_off_bus": frozenset({"gpu_count_short", "gpu_app_fault", "collective_hang", "nccl_internal_error"}),
    "gpu_ecc_dbe": frozenset({"gpu_app_fault", "gpu_row_remap_pending", "collective_hang", "nccl_internal_error"}),
    "host_oom": frozenset(
        {"memory_leak", "data_worker_dead", "nccl_internal_error", "collective_hang", "restart_loop"}
    ),
    "node_down": frozenset({"collective_hang", "nccl_internal_error", "ib_link_down"}),
}
