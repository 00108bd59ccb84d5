"""What lines of the kernel's log tell of a node, as data: patterns, and what is said of a line that has one. Pure.

A pattern names its parts: ``device``, ``code``, and facts by any other name. What a Xid means is not said here (``health/``).
Patterns begin where the kernel's own words begin: a process's name, which a user chooses, cannot be taken for a driver's line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from penstock.telemetry.names import pci_address
from penstock.telemetry.spec import Severity

_PCI = r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
INFO, WARNING, CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL


class LineRule(NamedTuple):
    rule: str
    severity: Severity
    message: str  # a template of the pattern's parts
    pattern: re.Pattern[str]
    code: str = ""  # where the pattern has none
    ends: bool = False  # the line tells that it is over


def _rule(rule: str, severity: Severity, message: str, pattern: str, code: str = "", *, ends: bool = False) -> LineRule:
    return LineRule(rule, severity, message, re.compile(pattern), code, ends)


# The first that fits a line is taken.
LINE_RULES: tuple[LineRule, ...] = (
    _rule(
        "Xid",
        WARNING,
        "Xid {code} on GPU {device}: {text}",
        rf"NVRM: Xid \((?:PCI:)?(?P<device>{_PCI})\): (?P<code>\d{{1,4}})(?:, (?:pid='?(?P<pid>[^,']*)'?, )?"
        r"(?:name=(?P<process>[^,]*), )?(?P<text>.*))?$",
    ),
    _rule(
        "SXid",
        WARNING,
        "SXid {code} on NVSwitch {device}: {text}",
        rf"nvidia-nvswitch\d*: SXid \((?:PCI:)?(?P<device>{_PCI})\): (?P<code>\d{{4,6}})(?:, (?P<fatal>Fatal|Non-fatal))?"
        r"(?:, (?:Link (?P<link>\d+) ?)?(?P<text>.*))?$",
    ),
    _rule(
        "GpuMissing",
        CRITICAL,
        "GPU {device} has fallen off the bus",
        rf"NVRM: .*?(?P<device>{_PCI}).*fallen off the bus",
        "lost",
    ),
    _rule("DriverMismatch", CRITICAL, "the NVIDIA driver and its library differ", r"NVRM: API mismatch: (?P<text>.*)"),
    _rule(
        "FabricManagerDown",
        CRITICAL,
        "the NVLink fabric cannot be initialized",
        r"(?:NVRM|nvidia-nvswitch\d*): .*[Ff]ailed to initialize (?:the )?NVLink fabric",
    ),
    _rule(
        "AmdGpu",
        WARNING,
        "GPU {device}: {text}",
        rf"amdgpu (?P<device>{_PCI}): (?:amdgpu: |\[drm\] )*(?P<text>.*(?:GPU reset (?:begin|\(\d+\) failed)|"
        r"ring \S+ timeout|uncorrectable hardware errors? detected|poison).*)",
    ),
    _rule(
        "OutOfMemory",
        WARNING,
        "the kernel ended {process} (pid {pid}): its memory limit was reached",
        r"Memory cgroup out of memory: Killed process (?P<pid>\d+) \((?P<process>.*?)\)",
        "limit",
    ),
    _rule(
        "OutOfMemory",
        CRITICAL,
        "the kernel ended {process} (pid {pid}): the node had no memory left",
        r"Out of memory(?: \([^)]*\))?: Killed process (?P<pid>\d+) \((?P<process>.*?)\)",
        "node",
    ),
    _rule(
        "KernelHang",
        CRITICAL,
        "CPU {device} was stuck in the kernel for {seconds} s",
        r"(?:watchdog: )?BUG: soft lockup - CPU#(?P<device>\d+) stuck for (?P<seconds>\d+)s",
        "soft-lockup",
    ),
    _rule(
        "KernelHang",
        CRITICAL,
        "CPU {device} was stuck with its interrupts off",
        r"(?:NMI )?[Ww]atchdog: ?Watchdog detected hard LOCKUP on cpu (?P<device>\d+)",
        "hard-lockup",
    ),
    _rule(
        "HungTask",
        WARNING,
        "{process} (pid {pid}) was blocked in the kernel for more than {seconds} s",
        r"INFO: task (?P<process>.{1,15}):(?P<pid>\d+) blocked for more than (?P<seconds>\d+) seconds",
    ),
    _rule(
        "KernelHang",
        WARNING,
        "the kernel's RCU stalled",
        r"rcu: INFO: rcu_\w+ (?:self-)?detected (?:expedited )?stall",
        "rcu-stall",
    ),
    _rule("KernelOops", CRITICAL, "kernel panic: {text}", r"Kernel panic - not syncing: (?P<text>.*)", "panic"),
    _rule(
        "KernelOops",
        CRITICAL,
        "the kernel failed: {text}",
        r"(?P<text>(?:BUG: (?:unable to handle|kernel NULL)|general protection fault|Oops:|kernel BUG at).*)",
        "bug",
    ),
    _rule(
        "MachineCheck",
        CRITICAL,
        "the hardware reported an error: {text}",
        r"(?:mce: )?\{?\d*\}?\[Hardware Error\]: +(?P<text>(?:event severity: (?:fatal|recoverable)|"
        r"Machine [Cc]heck(?: Exception)?:|CPU \d+: Machine Check(?: Exception)?:).*)",
    ),
    _rule(
        "MachineCheck",
        CRITICAL,
        "memory controller {device}: {text}",
        r"EDAC (?P<device>MC\d+): (?P<text>\d+ UE .*)",
        "memory",
    ),
    _rule(
        "CpuThrottle",
        WARNING,
        "CPU {device} is hot and was slowed down",
        r"(?:mce: )?CPU(?P<device>\d+): (?:Core|Package) temperature(?: is)? above threshold",
    ),
    _rule(
        "PcieErrors",
        WARNING,
        "PCIe error at {device}: {code}, {text}",
        rf"\S+ (?P<device>{_PCI}): (?:AER: )?PCIe Bus Error: severity=(?P<code>Uncorrect(?:ed|able) \([\w-]+\)|Corrected)"
        r"(?:, (?P<text>.*))?",
    ),
    _rule(
        "PcieErrors",
        WARNING,
        "PCIe error at {device}: {code}",
        rf"pcieport {_PCI}: AER: (?:Multiple )?(?P<code>Uncorrect(?:ed|able) \([\w-]+\)|Corrected) "
        rf"error (?:message )?received(?:: | from )(?P<device>{_PCI})",
    ),
    _rule(
        "LinkDown",
        WARNING,
        "the link of {device} went down",
        rf"(?:\S+ (?:{_PCI})(?::)? )?(?P<device>[\w.-]+?)(?: \(.*?\))?: (?:\w+: \S+ )?(?:NIC )?[Ll]ink (?:is )?[Dd](?:own|OWN)",
        "kernel",
    ),
    _rule(
        "LinkDown",
        INFO,
        "the link of {device} is up again",
        rf"(?:\S+ (?:{_PCI})(?::)? )?(?P<device>[\w.-]+?)(?: \(.*?\))?: (?:\w+: \S+ )?(?:NIC )?[Ll]ink (?:is )?[Uu](?:p|P)\b",
        "kernel",
        ends=True,
    ),
    _rule(
        "NicError",
        WARNING,
        "{device}: {text}",
        rf"mlx[45]_core (?P<device>{_PCI}): (?P<text>.*(?:Cable (?:unplugged|error)|health compromised|"
        r"[Dd]evice's health|assert_var|timeout\. Will cause a leak|High temperature|internal error).*)",
    ),
    _rule(
        "NicError",
        WARNING,
        "{device}: a transmit queue timed out",
        r"NETDEV WATCHDOG: (?:CPU: \d+: )?(?P<device>[\w.-]+)(?: \([^)]*\))?: transmit queue \d+ timed out",
    ),
    _rule(
        "FileSystemReadOnly",
        CRITICAL,
        "the file system on {device} can only be read any more",
        r"(?:EXT4-fs|BTRFS[^(]*) ?\((?:device )?(?P<device>[\w/.-]+)(?:[^)]*)\)[^:]*: .*[Rr]emounting filesystem read-only",
        "kernel",
    ),
    _rule(
        "FileSystemReadOnly",
        CRITICAL,
        "the file system on {device} has shut itself down",
        r"XFS \((?P<device>[\w/.-]+)\): .*(?:[Ss]hutting down filesystem|Filesystem has been shut down|force_shutdown)",
        "kernel",
    ),
    _rule(
        "DiskError",
        WARNING,
        "I/O error on {device}",
        r"(?:blk_update_request: |print_req_error: )?(?:critical (?:medium|target) error|I/O error), dev (?P<device>[\w/.-]+)",
    ),
    _rule("DiskError", WARNING, "I/O error on {device}", r"Buffer I/O error on dev(?:ice)? (?P<device>[\w/.-]+)"),
    _rule(
        "DiskError",
        WARNING,
        "the file system on {device} is damaged: {text}",
        r"(?:EXT4-fs error \(device |XFS \((?=[^)]*\): .*(?:[Cc]orruption|error|checksum)))(?P<device>[\w/.-]+)\): (?P<text>.*)",
    ),
    _rule(
        "NvmeFailed",
        CRITICAL,
        "{device} does not answer: {text}",
        r"nvme (?P<device>nvme\d+): (?P<text>(?:controller is down|Removing after probe failure|Device not ready|"
        r"Disabling device after reset failure).*)",
    ),
    _rule(
        "DiskError",
        WARNING,
        "{device}: {text}",
        r"nvme (?P<device>nvme\d+): (?P<text>I/O .*(?:timeout|QID).*)",
        "timeout",
    ),
    _rule("NfsHang", WARNING, "the NFS server {device} does not answer", r"nfs: server (?P<device>\S+) not responding"),
    _rule("NfsHang", INFO, "the NFS server {device} answers again", r"nfs: server (?P<device>\S+) OK", ends=True),
    _rule("FileLimit", CRITICAL, "the kernel's limit of open files is reached", r"VFS: file-max limit \d+ reached"),
    _rule("ConntrackFull", WARNING, "connections are dropped: their table is full", r"nf_conntrack: .*table full"),
)
# A few words that any of the lines above has: most lines have none, and are done with.
_HINT = re.compile(
    r"Xid|SXid|NVRM|nvswitch|amdgpu|[Oo]ut of memory|lockup|LOCKUP|blocked for|rcu|panic|BUG|fault|Oops|Hardware Error|EDAC"
    r"|temperature|PCIe|AER|[Ll]ink|mlx|WATCHDOG|-fs|BTRFS|XFS|I/O error|error, dev|nvme|nfs:|file-max|conntrack"
)
_STAMP = re.compile(r"\[ *\d+\.\d+\] ")  # of dmesg, before a recorded line


class Told(NamedTuple):
    rule: LineRule
    device: str
    code: str
    message: str
    facts: dict[str, float | str]


def told(text: str) -> Told | None:
    """What a line tells; None for nearly all."""
    if not _HINT.search(text):
        return None
    stamp = _STAMP.match(text)
    if stamp:
        text = text[stamp.end() :]
    for rule in LINE_RULES:
        match = rule.pattern.match(text)
        if match:
            return _told(rule, match)
    return None


def _told(rule: LineRule, match: re.Match[str]) -> Told:
    parts = {name: (value or "").strip() for name, value in match.groupdict().items()}
    device, code = parts.pop("device", ""), parts.pop("code", "") or rule.code
    if re.fullmatch(_PCI, device):
        device = pci_address(device)
    text = parts.get("text", "")
    message = rule.message.format(device=device, code=code, **parts)
    facts: dict[str, float | str] = {
        name: float(value) if value.isdecimal() else value[:200] for name, value in parts.items() if value
    }
    return Told(rule, device, code, message if text or "{text}" not in rule.message else message.rstrip(" :,"), facts)
