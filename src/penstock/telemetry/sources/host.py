"""What the kernel says of the node itself: CPU, waiting for it, throttling, memory, pressure, network, services."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from penstock.telemetry.conditions import SERVICES
from penstock.telemetry.sources.tree import Tree, counter, gauge
from penstock.telemetry.spec import Point, Reading

_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_MEMORY = {
    "MemTotal": "total",
    "MemAvailable": "available",
    "MemFree": "free",
    "SwapTotal": "swap_total",
    "SwapFree": "swap_free",
    "Dirty": "dirty",
}
_VMSTAT = {
    "oom_kill": "oom_kills",
    "pgmajfault": "major_faults",
    "pswpin": "swapped_in_pages",
    "pswpout": "swapped_out_pages",
}
_NETWORK = {
    0: "receive_bytes", 2: "receive_errors", 3: "receive_drops",
    8: "transmit_bytes", 10: "transmit_errors", 11: "transmit_drops",
}  # fmt: skip
_VIRTUAL = re.compile(r"lo$|veth|docker|cali|cni|br-|virbr|ifb|dummy|tunl|kube-|flannel|nodelocaldns")
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_GROUPS = (".slice", ".scope", ".service")
MAX_GROUPS = 256  # control groups that are read for throttling
MAX_CPUS = 8  # whose clock is read: a few tell of a governor, and each read may wake a core
MAX_DEVICES = 64


class Host:
    name = "host"

    def __init__(self, root: str = "/", every_s: float = 10.0) -> None:
        self.tree = Tree(root)
        self.every_s = every_s
        self._tick = float(os.sysconf("SC_CLK_TCK"))

    def read(self, now: float) -> Reading:
        points = (
            *self._cpu(),
            *self._frequency(),
            *self._throttling(),
            *self._memory(),
            *self._pressure(),
            *self._network(),
            *self._tcp(),
            *self._services(),
        )
        return Reading(self.name, now, points, problem="" if points else f"there is no /proc below {self.tree.root}")

    def close(self) -> None:
        return

    def _cpu(self) -> Iterator[Point]:
        for line in self.tree.lines("proc/stat"):
            key, *words = line.split()
            if key == "cpu":
                for mode, word in zip(_MODES, words, strict=False):
                    yield from counter("penstock_node_cpu_seconds_total", float(word) / self._tick, ("mode", mode))
            elif key == "btime":
                yield from gauge("penstock_node_boot_time_seconds", float(words[0]))
            elif key in {"procs_running", "procs_blocked"}:
                yield from gauge("penstock_node_processes", float(words[0]), ("state", key.removeprefix("procs_")))
        yield from gauge("penstock_node_load1", self.tree.number("proc/loadavg"))
        delays = [line.split() for line in self.tree.lines("proc/schedstat") if re.match(r"cpu\d", line)]
        if delays:
            waited = sum(float(words[8]) for words in delays if len(words) > 8)
            yield from counter("penstock_node_run_delay_seconds_total", waited / 1e9)

    def _frequency(self) -> Iterator[Point]:
        base = "sys/devices/system/cpu"
        cpus = [name for name in self.tree.names(base) if re.fullmatch(r"cpu\d+", name)]
        now = [self.tree.number(f"{base}/{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus[:MAX_CPUS]]
        known = [value for value in now if value is not None]
        if known:
            yield from gauge("penstock_node_cpu_clock_hertz", max(known) * 1000)
            top = self.tree.number(f"{base}/{cpus[0]}/cpufreq/cpuinfo_max_freq")
            yield from gauge("penstock_node_cpu_clock_max_hertz", top * 1000 if top is not None else None)
            governor = self.tree.text(f"{base}/{cpus[0]}/cpufreq/scaling_governor")
            yield from gauge("penstock_node_cpu_governor_info", 1.0, ("governor", governor[:32]))
        packages: dict[str, float] = {}
        for cpu in cpus:
            throttled = self.tree.number(f"{base}/{cpu}/thermal_throttle/package_throttle_count")
            if throttled is not None:
                packages[self.tree.text(f"{base}/{cpu}/topology/physical_package_id")] = throttled
        if packages:
            yield from counter("penstock_node_cpu_thermal_throttles_total", sum(packages.values()))

    def _throttling(self) -> Iterator[Point]:
        """Seconds that groups had to wait for their quota; the uppermost groups and those right below them."""
        base = "sys/fs/cgroup/unified" if self.tree.has("sys/fs/cgroup/unified/cgroup.procs") else "sys/fs/cgroup"
        base = "sys/fs/cgroup/cpu" if self.tree.has("sys/fs/cgroup/cpu/cpu.stat") else base
        found, told = 0, False
        groups = [name for name in self.tree.names(base) if "." not in name or name.endswith(_GROUPS)]
        inner = [
            f"{group}/{name}"
            for group in groups
            for name in self.tree.names(f"{base}/{group}")
            if "." not in name or name.endswith(_GROUPS)
        ]
        for group in [*groups, *inner][:MAX_GROUPS]:
            text = self.tree.text(f"{base}/{group}/cpu.stat")
            for line in text.splitlines():
                key, _, value = line.partition(" ")
                if key in {"throttled_usec", "throttled_time"} and value.isdecimal():
                    found += int(value) * (1000 if key == "throttled_usec" else 1)
                    told = True
        if told:
            yield from counter("penstock_node_cgroup_throttled_seconds_total", found / 1e9)

    def _memory(self) -> Iterator[Point]:
        for line in self.tree.lines("proc/meminfo"):
            key, _, rest = line.partition(":")
            if key in _MEMORY and rest.split():
                yield from gauge(f"penstock_node_memory_{_MEMORY[key]}_bytes", float(rest.split()[0]) * 1024)
        for line in self.tree.lines("proc/vmstat"):
            key, _, value = line.partition(" ")
            if key in _VMSTAT:
                yield from counter(f"penstock_node_{_VMSTAT[key]}_total", float(value))
        for controller in self.tree.names("sys/devices/system/edac/mc"):
            for kind, file in (("corrected", "ce_count"), ("uncorrected", "ue_count")):
                count = self.tree.number(f"sys/devices/system/edac/mc/{controller}/{file}")
                yield from counter(
                    "penstock_node_memory_errors_total", count, ("controller", controller), ("kind", kind)
                )

    def _pressure(self) -> Iterator[Point]:
        for resource in ("cpu", "io", "memory"):
            for line in self.tree.lines(f"proc/pressure/{resource}"):
                kind, _, rest = line.partition(" ")
                total = re.search(r"total=(\d+)", rest)
                if total:
                    yield from counter(
                        "penstock_node_pressure_seconds_total",
                        int(total[1]) / 1e6,
                        ("kind", kind),
                        ("resource", resource),
                    )

    def _network(self) -> Iterator[Point]:
        devices = 0
        for line in self.tree.lines("proc/net/dev")[2:]:
            device, _, rest = line.strip().partition(":")
            words = rest.split()
            if _VIRTUAL.match(device) or len(words) < 16 or devices >= MAX_DEVICES:
                continue
            devices += 1
            label = ("device", device)
            for column, name in _NETWORK.items():
                yield from counter(f"penstock_node_network_{name}_total", float(words[column]), label)
            base = f"sys/class/net/{device}"
            if not self.tree.has(f"{base}/device"):
                continue  # no hardware of its own
            state = self.tree.text(f"{base}/operstate")
            if state and state != "unknown":
                yield from gauge("penstock_node_network_up", float(state == "up"), label)
            speed = self.tree.number(f"{base}/speed")
            if speed is not None and speed > 0:
                yield from gauge("penstock_node_network_speed_bytes_per_second", speed * 1e6 / 8, label)
            yield from counter(
                "penstock_node_network_carrier_losses_total", self.tree.number(f"{base}/carrier_down_count"), label
            )
            yield from gauge("penstock_node_network_mtu_bytes", self.tree.number(f"{base}/mtu"), label)

    def _tcp(self) -> Iterator[Point]:
        tcp = _named(self.tree.lines("proc/net/snmp"), "Tcp")
        more = _named(self.tree.lines("proc/net/netstat"), "TcpExt")
        yield from counter("penstock_node_tcp_segments_out_total", tcp.get("OutSegs"))
        yield from counter("penstock_node_tcp_retransmits_total", tcp.get("RetransSegs"))
        yield from counter("penstock_node_tcp_timeouts_total", more.get("TCPTimeouts"))

    def _services(self) -> Iterator[Point]:
        for service in SERVICES:
            if not any(self.tree.has(f"{folder}/{service}.service") for folder in _UNITS):
                continue
            group = f"system.slice/{service}.service/cgroup.procs"
            folders = ("sys/fs/cgroup", "sys/fs/cgroup/systemd", "sys/fs/cgroup/unified")
            if not any(self.tree.has(f"{folder}/system.slice") for folder in folders):
                continue  # no systemd here that starts them
            running = any(self.tree.text(f"{folder}/{group}") for folder in folders)
            yield from gauge("penstock_node_service_up", float(running), ("service", service))


def _named(lines: list[str], protocol: str) -> dict[str, float]:
    """Pairs of lines of /proc/net/snmp: names, then values."""
    rows = [line.split()[1:] for line in lines if line.startswith(protocol + ":")]
    return {name: float(value) for name, value in zip(*rows, strict=False)} if len(rows) == 2 else {}
