"""All rules, by layer; and which cause brings about the signs of which other. Data, and pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.diagnosis.causes import checkpoint, compute, host, network, software, standing
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
}
