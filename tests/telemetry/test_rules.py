"""Readings -> findings: each rule, persistence, counters that step back, clocks that jump, bounds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.telemetry import rules as rules_module
from penstock.telemetry.conditions import GROWTHS, LEVELS
from penstock.telemetry.kernel_lines import LINE_RULES, told
from penstock.telemetry.names import canonical
from penstock.telemetry.push import Push, decode, encode
from penstock.telemetry.rules import Rules
from penstock.telemetry.sources.nvml import gpu_points
from penstock.telemetry.sources.pages import parse
from penstock.telemetry.spec import Finding, Line, Point, Reading, Severity
from tests.telemetry.sources.planted import recorded

T0 = 1_800_000_000.0


class World:
    """Readings at times after T0; what is found comes back in order."""

    def __init__(self, gpus: int = 0) -> None:
        self.rules = Rules("n0", gpus)
        self.found: list[Finding] = []

    def says(
        self,
        at: float,
        *points: Point,
        source: str = "host",
        lines: Iterable[str] = (),
        problem: str = "",
        wall: float | None = None,
    ) -> list[Finding]:
        when = T0 + (at if wall is None else wall)
        told = tuple(Line(when, text, f"b/{at}/{n}") for n, text in enumerate(lines))
        found = self.rules.take(Reading(source, when, points, told, problem), at)
        self.found += found
        return found

    def rule(self, name: str) -> list[Finding]:
        return [finding for finding in self.found if finding.rule == name]


def point(name: str, value: float, **labels: str) -> Point:
    return Point(name, value, tuple(sorted(labels.items())), "counter" if name.endswith("_total") else "gauge")


XID = "NVRM: Xid (PCI:0000:1b:00): 79, pid=1234, name=python, GPU has fallen off the bus."


def test_a_xid_is_found_at_once_with_its_line() -> None:
    (found,) = World().says(0, source="kmsg", lines=[XID])
    assert (found.rule, found.code, found.device, found.node) == ("Xid", "79", "0000:1b:00.0", "n0")
    assert (found.count, found.source, found.evidence) == (1, "kmsg", (XID,))
    assert found.facts["process"] == "python" and found.facts["pid"] == 1234
    assert found.at == found.first_at == T0


def test_a_storm_of_one_line_is_one_finding_that_is_counted() -> None:
    world = World()
    for second in range(60):
        world.says(second, source="kmsg", lines=[XID] * 100)
    world.says(70, source="kmsg")
    assert len(world.found) <= 14
    assert world.found[-1].count == 6000
    assert {finding.key for finding in world.found} == {("n0", "Xid", "79", "0000:1b:00.0")}
    assert len(world.found[-1].evidence) <= rules_module.MAX_EVIDENCE


def test_a_gpu_of_the_log_is_the_gpu_of_nvml() -> None:
    world = World()
    busy = json.loads(recorded("nvml_busy.json"))
    world.says(0, *gpu_points(busy), source="nvml")
    (found,) = world.says(1, source="kmsg", lines=["NVRM: Xid (PCI:0000:00:06): 48, pid=1, DBE (double bit error)"])
    assert found.device == "0000:00:06.0"
    assert (found.facts["uuid"], found.facts["gpu"]) == (busy["devices"][0]["uuid"], "0")


def test_healthy_recordings_give_no_findings() -> None:
    world = World()
    gpus = {name: tuple(gpu_points(json.loads(recorded(name)))) for name in ("nvml_busy.json", "nvml_idle.json")}
    pages = {name: parse(recorded(name)) for name in ("dcgm.txt", "node_exporter.txt", "envoy.txt")}
    for at in range(0, 3600, 60):
        for points in gpus.values():
            world.says(at, *points, source="nvml")
        for name, (found, problem) in pages.items():
            world.says(at, *found, source=name, problem=problem)
    usual = {"GpuPowerThrottle", "ClockUnsynchronized"}  # under load, and of a virtual machine
    assert {finding.rule for finding in world.found} <= usual


Case = tuple[list[Point], list[Point]]  # wrong, well


def case(metric: str, wrong: float, well: float, *always: Point, **labels: str) -> Case:
    return [point(metric, wrong, **labels), *always], [point(metric, well, **labels), *always]


LEVEL_CASES: dict[str, Case] = {
    "RowRemapPending": case("penstock_gpu_row_remap_pending", 1, 0, uuid="G"),
    "RowRemapFailed": case("penstock_gpu_row_remap_failed", 1, 0, uuid="G"),
    "PageRetirementPending": case("penstock_gpu_page_retirement_pending", 1, 0, uuid="G"),
    "GpuThermalThrottle": case("penstock_gpu_clock_reason", 1, 0, uuid="G", reason="hw_thermal_slowdown"),
    "GpuPowerBrake": case("penstock_gpu_clock_reason", 1, 0, uuid="G", reason="hw_power_brake_slowdown"),
    "GpuHwSlowdown": case("penstock_gpu_clock_reason", 1, 0, uuid="G", reason="hw_slowdown"),
    "GpuPowerThrottle": case("penstock_gpu_clock_reason", 1, 0, uuid="G", reason="sw_power_cap"),
    "GpuRecovery": case("penstock_gpu_recovery_action", 2, 0, uuid="G"),
    "GpuMissing": case("penstock_gpu_up", 0, 1, uuid="G"),
    "FabricManagerDown": case("penstock_gpu_fabric_state", 1, 3, uuid="G"),
    "ServiceDown": case("penstock_node_service_up", 0, 1, service="slurmd"),
    "PcieWidth": case(
        "penstock_pcie_link_width",
        8,
        16,
        point("penstock_pcie_link_width_max", 16, address="0000:1b:00.0"),
        address="0000:1b:00.0",
    ),
    "NvmeFailed": case("penstock_node_nvme_live", 0, 1, device="nvme0"),
    "DiskFull": case(
        "penstock_node_filesystem_available_bytes",
        4e9,
        40e9,
        point("penstock_node_filesystem_size_bytes", 100e9, mountpoint="/"),
        mountpoint="/",
    ),
    "FileSystemReadOnly": case("penstock_node_filesystem_readonly", 1, 0, mountpoint="/scratch"),
    "MemoryLow": case(
        "penstock_node_memory_available_bytes", 1e9, 50e9, point("penstock_node_memory_total_bytes", 100e9)
    ),
    "LinkDown": case("penstock_infiniband_state", 1, 4, device="mlx5_0/1"),
    "ClockUnsynchronized": case("penstock_node_clock_synchronized", 0, 1),
    "ClockSkew": case("penstock_node_clock_offset_seconds", -0.2, 0.0001),
    "SlurmNode": case("penstock_slurm_node_state", 1, 0, state="DOWN", slurm_node="n0"),
    "LinkRateDegraded": case("penstock_infiniband_rate_bytes_per_second", 25e9, 50e9, device="mlx5_0/1"),
    "NvlinkDown": case("penstock_gpu_nvlinks_up", 17, 18, uuid="G"),
}


def test_every_level_has_a_case() -> None:
    assert {level.rule for level in LEVELS} <= LEVEL_CASES.keys()


@pytest.mark.parametrize("rule", LEVEL_CASES)
def test_a_level_is_found_when_it_lasts_and_ends_when_it_is_well(rule: str) -> None:
    wrong, well = LEVEL_CASES[rule]
    world = World()
    for at in range(0, 100, 10):
        world.says(at, *well)
    assert world.found == []
    for at in range(100, 1100, 10):
        world.says(at, *wrong)
    found = world.rule(rule)
    assert found and all(finding.active for finding in found)
    assert found[0].evidence and found[0].message and "{" not in found[0].message
    assert len(found) <= 1 + 1000 / rules_module.AGAIN_S
    for at in range(1100, 1200, 10):
        world.says(at, *well)
    last = world.rule(rule)[-1]
    assert not last.active
    assert {finding.rule for finding in world.found} == {rule}


@pytest.mark.parametrize("rule", sorted({level.rule for level in LEVELS if level.for_s >= 60}))
def test_a_level_that_comes_and_goes_is_not_found(rule: str) -> None:
    wrong, well = LEVEL_CASES[rule]
    world = World()
    for at in range(0, 3000, 50):
        world.says(at, *well)
        world.says(at + 10, *wrong)
        world.says(at + 20, *well)
    assert world.rule(rule) == [] or rule == "PcieWidth"


@pytest.mark.parametrize(
    "rule", sorted({level.rule for level in LEVELS if level.changed and level.rule != "FabricManagerDown"})
)
def test_what_was_never_otherwise_may_be_meant_so(rule: str) -> None:
    world = World()
    for at in range(0, 1000, 10):
        world.says(at, *LEVEL_CASES[rule][0])
    assert world.rule(rule) == []


@pytest.mark.parametrize(
    "growth", GROWTHS, ids=lambda growth: f"{growth.rule}-{growth.metric}-{dict(growth.where).get('kind', '')}"
)
def test_a_counter_that_grows_is_found_and_one_that_steps_back_is_not(growth: Any) -> None:
    labels = {**dict(growth.where), **dict.fromkeys(growth.device, "G")}
    world = World()
    world.says(0, point(growth.metric, 5.0, **labels))
    world.says(10, point(growth.metric, 5.0, **labels))
    assert world.found == []
    world.says(20, point(growth.metric, 5.0 + growth.by, **labels))
    (found,) = world.rule(growth.rule)
    assert (found.severity, found.device, found.facts["grown"]) == (
        growth.severity,
        "G" if growth.device else "",
        growth.by,
    )
    other = World()
    for at, value in enumerate((4294967290.0, 3.0, 3.0, 0.0, 0.0)):  # wraps, then is reset
        other.says(at * 10, point(growth.metric, value, **labels))
    for at, value in enumerate(
        (2.0**64 - 1, 0.0, -1.0, float("nan"), float("inf"), 1e15)
    ):  # what a lost device reads as
        other.says(100 + at * 10, point(growth.metric, value, **labels))
    assert other.found == []


def test_a_slow_counter_never_adds_up() -> None:
    world = World()
    for hour in range(200):
        world.says(
            hour * 3600.0, point("penstock_gpu_ecc_errors_total", hour * 50.0, uuid="G", kind="corrected", since="boot")
        )
    assert world.found == []


def nvml(*uuids: str, lost: tuple[str, ...] = ()) -> list[Point]:
    return [point("penstock_gpu_up", float(uuid not in lost), uuid=uuid, gpu=str(n)) for n, uuid in enumerate(uuids)]


def test_a_gpu_that_vanishes_between_two_reads() -> None:
    world = World()
    world.says(0, *nvml("A", "B"), source="nvml")
    (found,) = world.says(10, *nvml("A"), source="nvml")
    assert (found.rule, found.device, found.severity) == ("GpuMissing", "B", Severity.CRITICAL)
    world.says(20, *nvml("A", "B"), source="nvml")
    assert not world.rule("GpuMissing")[-1].active


def test_what_a_reading_with_a_problem_lacks_proves_nothing() -> None:
    world = World(gpus=2)
    world.says(0, *nvml("A", "B"), source="dcgm")
    for at in range(10, 200, 10):
        world.says(at, *nvml("A"), source="dcgm", problem="the page is cut off in the middle of a line")
        world.says(at, source="dcgm", problem="connection refused")
        world.says(at, source="dcgm")
    assert {finding.rule for finding in world.found} <= {"SourceSilent"}


@pytest.mark.parametrize("expected", [3, 0])
def test_fewer_gpus_than_there_should_be(expected: int) -> None:
    world = World(gpus=expected)
    world.says(0, point("penstock_node_pci_gpus", 3, vendor="nvidia"), source="pci")
    for at in range(0, 100, 10):
        world.says(at, *nvml("A", "B"), source="nvml")
    (found,) = {finding.key: finding for finding in world.found}.values()
    assert (found.rule, found.code, found.message) == ("GpuMissing", "count", "2 of 3 GPUs are there")


def test_a_gpu_that_is_lost_and_tells_no_uuid() -> None:
    world = World()
    world.says(0, *nvml("A"), point("penstock_gpu_up", 0), source="nvml")
    assert [(finding.rule, finding.device) for finding in world.found] == [("GpuMissing", "")]


def test_nvml_that_hangs() -> None:
    world = World()
    assert world.says(0, source="nvml", problem="NVML does not answer in 10 s")[0].rule == "GpuHung"


@pytest.mark.parametrize(
    ("problem", "rule", "severity"),
    [
        ("NVML finds no driver: Driver Not Loaded", "GpuMissing", Severity.CRITICAL),
        ("NVML cannot be had: the Python module pynvml is not installed", "NvmlMissing", Severity.INFO),
    ],
)
def test_nvml_that_is_missing(problem: str, rule: str, severity: Severity) -> None:
    world = World()
    for at in range(0, 300, 10):
        world.says(at, source="nvml", problem=problem)
    assert world.found == []  # a node without GPUs
    world.says(300, point("penstock_node_pci_gpus", 8, vendor="nvidia"), source="pci")
    for at in range(310, 600, 10):
        world.says(at, source="nvml", problem=problem)
    assert {(finding.rule, finding.severity) for finding in world.found} == {(rule, severity)}


def test_a_source_that_is_silent() -> None:
    world = World()
    for at in range(0, 110, 10):
        world.says(at, source="dcgm", problem="connection refused")
    assert world.found == []
    world.says(120, source="dcgm", problem="connection refused")
    (found,) = world.found
    assert (found.rule, found.code, found.severity) == ("SourceSilent", "dcgm", Severity.INFO)
    for at in range(130, 180, 10):
        world.says(at, point("x", 1), source="dcgm")
    assert not world.found[-1].active


def clock(wall: float, monotonic: float) -> list[Point]:
    return [point("penstock_node_time_seconds", T0 + wall), point("penstock_node_monotonic_seconds", monotonic)]


@pytest.mark.parametrize("jump", [-86400.0, -30.0, 30.0, 3.0e7])
def test_a_clock_that_jumps_gives_that_finding_and_no_other(jump: float) -> None:
    world = World()
    wrong, well = LEVEL_CASES["GpuThermalThrottle"]
    for at in range(0, 200, 10):
        wall = at + (jump if at >= 100 else 0.0)
        throttled = wrong if at in {90, 100} else well
        world.says(at, *clock(wall, at), source="clock", wall=wall)
        world.says(
            at,
            *throttled,
            point("penstock_gpu_ecc_errors_total", at / 10, uuid="G", kind="corrected", since="boot"),
            wall=wall,
        )
    assert [finding.rule for finding in world.found] == ["ClockJump"]
    assert world.rule("ClockJump")[0].facts["seconds"] == jump
    assert all(finding.at >= finding.first_at for finding in world.found)


def test_links_that_flap_in_the_log() -> None:
    world = World()
    world.says(
        0, source="kmsg", lines=["mlx5_core 0000:17:00.0 eth2: Link down", "mlx5_core 0000:17:00.0 eth2: Link up"]
    )
    assert [(f.rule, f.active) for f in world.found] == [("LinkDown", False)] or len(world.found) == 1
    world.says(60, source="kmsg", lines=["mlx5_core 0000:17:00.0 eth2: Link down"])
    assert {(finding.rule, finding.device) for finding in world.found} == {("LinkDown", "eth2"), ("LinkFlap", "eth2")}


def test_links_that_went_down_an_hour_apart_do_not_flap_where_the_clock_was_set_back() -> None:
    world = World()
    world.says(0, source="kmsg", lines=["eth0: NIC Link is Down"])
    world.says(3600, source="kmsg", lines=["eth0: NIC Link is Up"], wall=0)
    world.says(3610, source="kmsg", lines=["eth0: NIC Link is Down"], wall=10)
    assert world.rule("LinkFlap") == []
    both = World()  # an hour apart, read at once by an agent that was started late
    lines = (Line(T0, "eth0: NIC Link is Down"), Line(T0 + 3600, "eth0: NIC Link is Down"))
    both.found += both.rules.take(Reading("kmsg", T0 + 7200, lines=lines), 7200)
    assert both.rule("LinkFlap") == []


def test_the_last_xid_of_a_page_where_no_log_can_be_read() -> None:
    world = World()
    page = recorded("dcgm.txt")
    xid = 'DCGM_FI_DEV_XID_ERRORS{gpu="1"'
    after = "\n".join(line[: line.rindex(" ")] + " 48" if line.startswith(xid) else line for line in page.split("\n"))
    world.says(0, *parse(page)[0], source="dcgm")
    (found,) = world.says(15, *parse(after)[0], source="dcgm")
    assert (found.rule, found.code, found.device) == ("Xid", "48", "0000:43:00.0")
    logged = World()
    logged.says(0, *parse(page)[0], source="dcgm")
    logged.says(1, source="kmsg", lines=["NVRM: Xid (PCI:0000:43:00): 48, pid=1, DBE"])
    assert logged.says(15, *parse(after)[0], source="dcgm") == []


def test_exporters_names_become_ours() -> None:
    points = [
        one for page in ("dcgm.txt", "node_exporter.txt") for raw in parse(recorded(page))[0] for one in canonical(raw)
    ]
    names = {one.name for one in points}
    assert all(name.startswith("penstock_") for name in names)
    assert len(names) > 30
    reasons = {
        dict(one.labels)["reason"]: one.value
        for one in points
        if one.name == "penstock_gpu_clock_reason" and ("gpu", "0") in one.labels
    }
    assert reasons["sw_power_cap"] == 1 and sum(reasons.values()) == 1
    (temperature,) = [
        p
        for p in points
        if p.name == "penstock_gpu_temperature_celsius" and ("gpu", "0") in p.labels and ("sensor", "gpu") in p.labels
    ]
    assert temperature.value == 46


# One line at least for each of the log's rules; what they say is pinned here.
LINES = """\
Xid 13 0000:1b:00.0|NVRM: Xid (PCI:0000:1b:00): 13, pid=4194, name=python3, Graphics SM Warp Exception on (GPC 1, TPC 0, SM 0): Out Of Range Address
Xid 14 0000:03:00.0|NVRM: Xid (0000:03:00): 14, Channel 00000001
Xid 43 0000:01:00.0|NVRM: Xid (PCI:0000:01:00): 43
Xid 154 0018:01:00.0|[  12.5] NVRM: Xid (PCI:0018:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)
SXid 28006 0000:c1:00.0|nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)
GpuMissing lost 0000:1b:00.0|NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.
DriverMismatch  |NVRM: API mismatch: the client has the version 550.54.15, but this kernel module has the version 535.161.07.
FabricManagerDown  |nvidia-nvswitch0: Failed to initialize NVLink fabric
AmdGpu  0000:c1:00.0|amdgpu 0000:c1:00.0: amdgpu: GPU reset begin!
OutOfMemory limit |Memory cgroup out of memory: Killed process 12538 (python3) total-vm:935752kB, anon-rss:203648kB
OutOfMemory node |Out of memory: Killed process 123 (python) total-vm:1kB
KernelHang soft-lockup 3|watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:123]
KernelHang hard-lockup 5|watchdog: Watchdog detected hard LOCKUP on cpu 5
HungTask  |INFO: task kworker/3:1:123 blocked for more than 120 seconds.
KernelHang rcu-stall |rcu: INFO: rcu_sched self-detected stall on CPU
KernelOops panic |Kernel panic - not syncing: Fatal exception
KernelOops bug |BUG: unable to handle page fault for address: ffff
MachineCheck  |mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 9
MachineCheck  |{1}[Hardware Error]: event severity: fatal
MachineCheck memory MC0|EDAC MC0: 1 UE memory read error on CPU_SrcID#0
CpuThrottle  3|mce: CPU3: Core temperature above threshold, cpu clock throttled (total events = 1)
PcieErrors Corrected 0000:1b:00.0|pcieport 0000:00:01.0: AER: Corrected error message received from 0000:1b:00.0
PcieErrors Uncorrected (Fatal) 0000:1b:00.0|nvidia 0000:1b:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer
LinkDown kernel eth2|mlx5_core 0000:17:00.0 eth2: Link down
LinkDown kernel eth0|igb 0000:01:00.0 eth0: igb: eth0 NIC Link is Down
NicError  0000:5e:00.0|mlx5_core 0000:5e:00.0: Port module event[error]: module 0, Cable error
NicError  eth0|NETDEV WATCHDOG: eth0 (mlx5_core): transmit queue 4 timed out
FileSystemReadOnly kernel sda1|EXT4-fs (sda1): Remounting filesystem read-only
FileSystemReadOnly kernel dm-0|XFS (dm-0): Corruption of in-memory data detected. Shutting down filesystem
DiskError  nvme1n1|I/O error, dev nvme1n1, sector 5 op 0x0:(READ)
DiskError  sda1|Buffer I/O error on dev sda1, logical block 0, lost async page write
DiskError  sda1|EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0
DiskError timeout nvme0|nvme nvme0: I/O 5 QID 3 timeout, aborting
NvmeFailed  nvme0|nvme nvme0: controller is down; will reset: CSTS=0xffffffff
NfsHang  10.0.0.1|nfs: server 10.0.0.1 not responding, still trying
FileLimit  |VFS: file-max limit 3261780 reached
ConntrackFull  |nf_conntrack: nf_conntrack: table full, dropping packet
"""


@pytest.mark.parametrize("case", LINES.splitlines(), ids=lambda case: case.split("|")[0])
def test_lines_of_the_log(case: str) -> None:
    expected, _, text = case.partition("|")
    found = told(text)
    assert found is not None
    assert f"{found.rule.rule} {found.code} {found.device}" == expected
    assert "{" not in found.message and found.message.strip()


def test_every_rule_of_the_log_has_a_line() -> None:
    assert {rule.rule for rule in LINE_RULES} == {line.split()[0] for line in LINES.splitlines()}


@pytest.mark.parametrize(
    "text",
    [
        "python[123]: segfault at 0 NVRM: Xid (PCI:0000:1b:00): 79",
        "audit: comm='NVRM: Xid (PCI:0000:1b:00): 79, pid=1'",
        "usb 1-1: new device found link",
        "IPv6: ADDRCONF(NETDEV_UP): eth0: link is not ready",
        "EDAC MC0: 1 CE memory read error on CPU_SrcID#0",
        "NVRM: Xid (PCI:nonsense): 79",
        "EXT4-fs (sda1): mounted filesystem with ordered data mode",
        "x" * 2048,
        "nfs: " + "server " * 300,
        "mlx5_core " + "0000:17:00.0 " * 150,
    ],
)
def test_lines_that_tell_nothing(text: str) -> None:
    assert told(text) is None


def test_a_line_that_ends_what_another_began() -> None:
    world = World()
    world.says(0, source="kmsg", lines=["nfs: server 10.0.0.1 not responding, still trying"])
    (found,) = world.says(10, source="kmsg", lines=["nfs: server 10.0.0.1 OK"])
    assert (found.rule, found.active) == ("NfsHang", False)


names = st.sampled_from(
    sorted(
        {level.metric for level in LEVELS}
        | {growth.metric for growth in GROWTHS}
        | {"DCGM_FI_DEV_CLOCKS_EVENT_REASONS"}
    )
)
labels = st.dictionaries(
    st.sampled_from(["uuid", "gpu", "device", "mountpoint", "reason", "kind", "since", "state"]), st.text(max_size=5)
)
points = st.builds(lambda name, value, labels: point(name, value, **labels), names, st.floats(), labels)
readings = st.builds(
    lambda source, at, points, lines, problem: Reading(
        source, at, tuple(points), tuple(Line(at, text) for text in lines), problem
    ),
    st.sampled_from(["nvml", "kmsg", "host"]),
    st.floats(0, 4e9),
    st.lists(points, max_size=8),
    st.lists(st.sampled_from([line.partition("|")[2] for line in LINES.splitlines()]) | st.text(), max_size=4),
    st.sampled_from(["", "NVML does not answer", "x"]),
)


@given(st.lists(st.tuples(st.floats(0, 1000), readings), max_size=12))
def test_any_readings_are_taken_and_any_finding_can_be_sent(taken: list[tuple[float, Reading]]) -> None:
    rules, tick = Rules("n0"), 0.0
    for step, reading in taken:
        tick += step
        found = tuple(rules.take(reading, tick))
        assert decode(encode(Push("n0", "b", "r", 1, 0.0, findings=found))).findings == tuple(
            replace(one, at=round(one.at, 3), first_at=round(one.first_at, 3)) for one in found
        )


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_FINDINGS", "MAX_TRACKS", "MAX_GPUS"):
        monkeypatch.setattr(rules_module, name, 50)
    world = World()
    for number in range(200):
        uuid, device = f"GPU-{number}", f"eth{number}"
        world.says(
            number,
            *nvml(uuid),
            point("penstock_gpu_row_remap_failed", 1, uuid=uuid),
            point("penstock_gpu_ecc_errors_total", number, uuid=uuid, kind="uncorrected", since="boot"),
            point("penstock_node_network_speed_bytes_per_second", 1, device=device),
            point("penstock_gpu_info", 1, uuid=uuid, pci=f"0000:{number:x}:00.0"),
            lines=[f"{device}: NIC Link is Down", f"NVRM: Xid (PCI:0000:1b:00): {number % 50}"],
            source="nvml",
        )
    kept = {name: len(value) for name, value in vars(world.rules).items() if isinstance(value, dict)}
    assert {name: count for name, count in kept.items() if count > 50} == {}
