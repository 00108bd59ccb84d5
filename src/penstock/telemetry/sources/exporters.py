"""The three exporters that are scraped where they run: dcgm-exporter, node_exporter, Envoy. Names stay as they are."""

from __future__ import annotations

from penstock.telemetry.sources.pages import Page

# Of the some 1,500 samples of a node_exporter those that rules, charts and diagnosis read.
NODE_EXPORTER_KEEP = (
    "node_boot_time_seconds",
    "node_cpu_seconds_total",
    "node_disk_",
    "node_edac_",
    "node_filesystem_avail_bytes",
    "node_filesystem_files",
    "node_filesystem_readonly",
    "node_filesystem_size_bytes",
    "node_infiniband_",
    "node_load1",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemFree_bytes",
    "node_memory_MemTotal_bytes",
    "node_memory_SwapFree_bytes",
    "node_memory_SwapTotal_bytes",
    "node_netstat_Tcp_",
    "node_network_carrier_down_changes_total",
    "node_network_receive_",
    "node_network_speed_bytes",
    "node_network_transmit_",
    "node_network_up",
    "node_pressure_",
    "node_procs_",
    "node_timex_",
    "node_vmstat_",
)
ENVOY_KEEP = (
    "envoy_server_live",
    "envoy_server_memory_allocated",
    "envoy_server_uptime",
    "envoy_cluster_membership_healthy",
    "envoy_cluster_membership_total",
    "envoy_cluster_upstream_cx_active",
    "envoy_cluster_upstream_cx_connect_fail",
    "envoy_cluster_upstream_rq_active",
    "envoy_cluster_upstream_rq_completed",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_cluster_upstream_rq_timeout",
    "envoy_cluster_upstream_rq_xx",
)


def dcgm(url: str, every_s: float = 15.0) -> Page:
    return Page("dcgm", url, ("DCGM_FI_",), every_s)


def node_exporter(url: str, every_s: float = 15.0) -> Page:
    return Page("node_exporter", url, NODE_EXPORTER_KEEP, every_s)


def envoy(url: str, every_s: float = 15.0) -> Page:
    return Page("envoy", url, ENVOY_KEEP, every_s)
