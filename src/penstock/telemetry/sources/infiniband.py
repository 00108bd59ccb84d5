"""InfiniBand and RoCE ports: sysfs' counters, and what ``perfquery`` prints where sysfs has none.

The counters of old adapters stop at their largest value and are reset by whoever runs ``perfquery -R``: here they are told as
they are; ``rules.py`` takes a step back for what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from penstock.telemetry.sources.command import Command
from penstock.telemetry.sources.tree import Tree, counter, gauge
from penstock.telemetry.spec import Point, Reading

# sysfs' file or perfquery's word -> our name, unit
_COUNTERS = {
    "symbol_error": ("symbol_errors", 1.0),
    "link_error_recovery": ("link_recoveries", 1.0),
    "link_downed": ("link_downs", 1.0),
    "local_link_integrity_errors": ("integrity_errors", 1.0),
    "excessive_buffer_overrun_errors": ("buffer_overruns", 1.0),
    "port_rcv_errors": ("receive_errors", 1.0),
    "port_rcv_remote_physical_errors": ("receive_remote_errors", 1.0),
    "port_rcv_switch_relay_errors": ("receive_relay_errors", 1.0),
    "port_xmit_discards": ("transmit_discards", 1.0),
    "port_xmit_wait": ("transmit_wait_ticks", 1.0),
    "port_rcv_data": ("receive_bytes", 4.0),
    "port_xmit_data": ("transmit_bytes", 4.0),
}
_HARDWARE = {
    "out_of_sequence": "out_of_sequence",
    "packet_seq_err": "sequence_errors",
    "local_ack_timeout_err": "ack_timeouts",
    "roce_adp_retrans": "adaptive_retransmits",
    "np_cnp_sent": "cnps_sent",
    "rp_cnp_handled": "cnps_handled",
    "rx_icrc_encapsulated": "icrc_errors",
}
_PERFQUERY = {
    "SymbolErrorCounter": "symbol_error",
    "LinkErrorRecoveryCounter": "link_error_recovery",
    "LinkDownedCounter": "link_downed",
    "LocalLinkIntegrityErrors": "local_link_integrity_errors",
    "ExcessiveBufferOverrunErrors": "excessive_buffer_overrun_errors",
    "PortRcvErrors": "port_rcv_errors",
    "PortRcvRemotePhysicalErrors": "port_rcv_remote_physical_errors",
    "PortRcvSwitchRelayErrors": "port_rcv_switch_relay_errors",
    "PortXmitDiscards": "port_xmit_discards",
    "PortXmitWait": "port_xmit_wait",
    "PortRcvData": "port_rcv_data",
    "PortXmitData": "port_xmit_data",
}
MAX_PORTS = 64


class Infiniband:
    name = "infiniband"

    def __init__(self, root: str = "/", every_s: float = 10.0) -> None:
        self.tree = Tree(root)
        self.every_s = every_s

    def read(self, now: float) -> Reading:
        ports = [
            (device, port)
            for device in self.tree.names("sys/class/infiniband")
            for port in self.tree.names(f"sys/class/infiniband/{device}/ports")
        ]
        return Reading(self.name, now, tuple(point for one in ports[:MAX_PORTS] for point in self._port(*one)))

    def close(self) -> None:
        return

    def _port(self, device: str, port: str) -> Iterator[Point]:
        base = f"sys/class/infiniband/{device}/ports/{port}"
        labels = (("device", f"{device}/{port}"),)
        yield from gauge("penstock_infiniband_state", _leading(self.tree.text(f"{base}/state")), *labels)
        yield from gauge("penstock_infiniband_physical_state", _leading(self.tree.text(f"{base}/phys_state")), *labels)
        rate = self.tree.number(f"{base}/rate")  # "400 Gb/sec (4X NDR)"
        yield from gauge(
            "penstock_infiniband_rate_bytes_per_second", rate * 1e9 / 8 if rate is not None else None, *labels
        )
        for file, (name, unit) in _COUNTERS.items():
            value = self.tree.number(f"{base}/counters/{file}")  # "N/A (no PMA)" is no number
            yield from counter(
                f"penstock_infiniband_{name}_total", value * unit if value is not None else None, *labels
            )
        for file, name in _HARDWARE.items():
            yield from counter(
                f"penstock_infiniband_{name}_total", self.tree.number(f"{base}/hw_counters/{file}"), *labels
            )


class Perfquery:
    """``perfquery -x`` of one port: for adapters whose counters sysfs does not have, and for switches' ports."""

    def __init__(self, device: str, words: Sequence[str], every_s: float = 60.0) -> None:
        self.name = f"perfquery-{device}".lower().replace("/", "-")  # one for each port
        self.every_s = every_s
        self.device = device
        self._command = Command(words)

    def read(self, now: float) -> Reading:
        text, problem = self._command.run()
        return Reading(self.name, now, parse_perfquery(text, self.device), problem=problem)

    def close(self) -> None:
        self._command.close()


def parse_perfquery(text: str, device: str) -> tuple[Point, ...]:
    """``SymbolErrorCounter:.............0`` a line."""
    points: list[Point] = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+):\.*\s*(\d+|0x[0-9a-fA-F]+)", line.strip())
        if match and match[1] in _PERFQUERY:
            name, unit = _COUNTERS[_PERFQUERY[match[1]]]
            points += counter(f"penstock_infiniband_{name}_total", int(match[2], 0) * unit, ("device", device))
    return tuple(points)


def _leading(text: str) -> float | None:
    """``4: ACTIVE``."""
    head = text.partition(":")[0].strip()
    return float(head) if head.isdecimal() else None
