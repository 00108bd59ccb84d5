"""When values of a node are wrong, as data: levels that last, counters that grow, links below what they could be. Pure.

Names are ours (``names.py``). ``for_s`` is persistence: a level must last so long before it is told. ``changed``: only where it was
well before, since what has always been so may be meant so (a port that nobody plugged in, a read-only image).
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.telemetry.spec import Severity

INFO, WARNING, CRITICAL = Severity.INFO, Severity.WARNING, Severity.CRITICAL
GPU = ("uuid",)
HOUR = 3600.0
FABRIC_MANAGER = "nvidia-fabricmanager"
# Services that a node of a GPU fleet stands or falls with; told of where their unit is installed.
SERVICES = (
    FABRIC_MANAGER,
    "nvidia-imex",
    "nvidia-persistenced",
    "slurmd",
    "munge",
    "kubelet",
    "containerd",
    "chrony",
    "chronyd",
    "systemd-timesyncd",
)


@dataclass(frozen=True, slots=True)
class Level:
    """Wrong while ``above`` or ``below`` holds of the value, or of its share of ``of`` (a metric with the same labels)."""

    rule: str
    metric: str
    message: str  # a template of {device}, {code}, {value}
    above: float | None = None
    below: float | None = None
    of: str = ""
    for_s: float = 0.0
    severity: Severity = WARNING
    where: tuple[tuple[str, str], ...] = ()
    device: tuple[str, ...] = ()  # labels that name it
    code: str = ""  # a label's name, or the code itself after "="
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Growth:
    """Wrong when a counter has grown by ``by`` within ``within_s``. A step back is a reset or a wrap: nothing follows from it."""

    rule: str
    metric: str
    message: str  # a template of {device}, {code}, {value}: by how much
    by: float
    within_s: float
    severity: Severity = WARNING
    where: tuple[tuple[str, str], ...] = ()
    device: tuple[str, ...] = ()
    code: str = ""


LEVELS: tuple[Level, ...] = (
    Level(
        "GpuMissing",
        "penstock_gpu_up",
        "GPU {device} is lost",
        below=0.5,
        severity=CRITICAL,
        device=GPU,
        code="=lost",
    ),
    Level(
        "RowRemapPending",
        "penstock_gpu_row_remap_pending",
        "GPU {device} has rows of memory to remap: it waits for a reset",
        above=0.0,
        device=GPU,
    ),
    Level(
        "RowRemapFailed",
        "penstock_gpu_row_remap_failed",
        "GPU {device} has no spare rows of memory left",
        above=0.0,
        severity=CRITICAL,
        device=GPU,
    ),
    Level(
        "PageRetirementPending",
        "penstock_gpu_page_retirement_pending",
        "GPU {device} has pages of memory to retire: it waits for a reset",
        above=0.0,
        device=GPU,
    ),
    *(
        Level(
            rule,
            "penstock_gpu_clock_reason",
            f"GPU {{device}} is slowed down: {words} ({{code}})",
            above=0.5,
            for_s=for_s,
            severity=severity,
            where=(("reason", reason),),
            device=GPU,
            code="reason",
        )
        for rule, reason, words, for_s, severity in (
            ("GpuThermalThrottle", "hw_thermal_slowdown", "it is too hot", 60.0, WARNING),
            ("GpuThermalThrottle", "sw_thermal_slowdown", "it is too hot", 120.0, WARNING),
            ("GpuPowerBrake", "hw_power_brake_slowdown", "the node's power supply asks for it", 30.0, WARNING),
            ("GpuHwSlowdown", "hw_slowdown", "heat, or its power", 60.0, WARNING),
            ("GpuPowerThrottle", "sw_power_cap", "it is at its power limit", 600.0, INFO),
        )
    ),
    Level(
        "GpuRecovery",
        "penstock_gpu_recovery_action",
        "the driver asks for GPU {device} to be recovered (action {value:g} of NVML)",
        above=0.0,
        severity=CRITICAL,
        device=GPU,
    ),
    Level(
        "FabricManagerDown",
        "penstock_node_service_up",
        "the fabric manager has stopped",
        below=0.5,
        for_s=30.0,
        severity=CRITICAL,
        where=(("service", FABRIC_MANAGER),),
        code="=service",
        changed=True,
    ),
    Level(
        "FabricManagerDown",
        "penstock_gpu_fabric_state",
        "GPU {device} has not been taken into the NVLink fabric (state {value:g} of NVML)",
        below=2.5,
        for_s=120.0,
        severity=CRITICAL,
        device=GPU,
        code="=fabric",
    ),
    *(
        Level(
            "ServiceDown",
            "penstock_node_service_up",
            "the service {code} has stopped",
            below=0.5,
            for_s=60.0,
            where=(("service", service),),
            code="service",
            changed=True,
        )
        for service in SERVICES
        if service != FABRIC_MANAGER
    ),
    Level(
        "PcieWidth",
        "penstock_pcie_link_width",
        "the PCIe link of {device} has {value:.0%} of its lanes",
        below=0.99,
        of="penstock_pcie_link_width_max",
        for_s=60.0,
        device=("address",),
    ),
    Level(
        "NvmeFailed",
        "penstock_node_nvme_live",
        "{device} does not live",
        below=0.5,
        for_s=10.0,
        severity=CRITICAL,
        device=("device",),
    ),
    Level(
        "DiskFull",
        "penstock_node_filesystem_available_bytes",
        "{value:.1%} of {device} is free",
        below=0.05,
        of="penstock_node_filesystem_size_bytes",
        for_s=30.0,
        device=("mountpoint",),
        code="=bytes",
    ),
    Level(
        "DiskFull",
        "penstock_node_filesystem_inodes_available",
        "{value:.1%} of the inodes of {device} are free",
        below=0.02,
        of="penstock_node_filesystem_inodes",
        for_s=30.0,
        device=("mountpoint",),
        code="=inodes",
    ),
    Level(
        "FileSystemReadOnly",
        "penstock_node_filesystem_readonly",
        "{device} can only be read any more",
        above=0.5,
        severity=CRITICAL,
        device=("mountpoint",),
        changed=True,
    ),
    Level(
        "MemoryLow",
        "penstock_node_memory_available_bytes",
        "{value:.1%} of the node's memory is available",
        below=0.02,
        of="penstock_node_memory_total_bytes",
        for_s=30.0,
    ),
    Level(
        "LinkDown",
        "penstock_infiniband_state",
        "InfiniBand port {device} is not active",
        below=3.5,
        severity=CRITICAL,
        device=("device",),
        changed=True,
    ),
    Level(
        "LinkDown",
        "penstock_node_network_up",
        "the link of {device} is down",
        below=0.5,
        device=("device",),
        changed=True,
    ),
    Level(
        "ClockUnsynchronized",
        "penstock_node_clock_synchronized",
        "nothing keeps the node's clock right",
        below=0.5,
        for_s=600.0,
        severity=INFO,
    ),
    *(
        Level(
            "SlurmNode",
            "penstock_slurm_node_state",
            "Slurm calls the node {code}",
            above=0.5,
            for_s=60.0,
            severity=severity,
            where=(("state", state),),
            code="state",
        )
        for state, severity in (("DOWN", WARNING), ("FAIL", WARNING), ("NOT_RESPONDING", WARNING), ("DRAIN", INFO))
    ),
)

GROWTHS: tuple[Growth, ...] = (
    Growth(
        "EccUncorrectable",
        "penstock_gpu_ecc_errors_total",
        "GPU {device} met {value:g} errors of its memory that it could not correct",
        1,
        HOUR,
        CRITICAL,
        (("kind", "uncorrected"), ("since", "boot")),
        GPU,
    ),
    Growth(
        "EccCorrectable",
        "penstock_gpu_ecc_errors_total",
        "GPU {device} corrected {value:g} errors of its memory within an hour",
        100,
        HOUR,
        INFO,
        (("kind", "corrected"), ("since", "boot")),
        GPU,
    ),
    Growth(
        "PcieReplay",
        "penstock_gpu_pcie_replays_total",
        "GPU {device} sent {value:g} PCIe packets again within an hour",
        100,
        HOUR,
        WARNING,
        (),
        GPU,
    ),
    *(
        Growth(
            "PcieErrors",
            "penstock_pcie_errors_total",
            f"{{device}} told of {{value:g}} PCIe errors within an hour: {code}",
            by,
            HOUR,
            severity,
            (("severity", code),),
            ("address",),
            "severity",
        )
        for code, by, severity in (("corrected", 100, INFO), ("nonfatal", 1, WARNING), ("fatal", 1, CRITICAL))
    ),
    *(
        Growth(
            "NvlinkErrors",
            "penstock_gpu_nvlink_errors_total",
            f"the NVLinks of GPU {{device}} counted {{value:g}} errors within an hour: {kind}",
            by,
            HOUR,
            WARNING,
            (("kind", kind),),
            GPU,
            "kind",
        )
        for kind, by in (("replay", 100), ("recovery", 1), ("crc", 100), ("receive", 100), ("failed_recovery", 1))
    ),
    *(
        Growth(
            "LinkErrors",
            f"penstock_infiniband_{name}_total",
            f"InfiniBand port {{device}} counted {{value:g}} within an hour: {name.replace('_', ' ')}",
            by,
            HOUR,
            WARNING,
            (),
            ("device",),
            f"={name}",
        )
        for name, by in (
            ("symbol_errors", 10),
            ("receive_errors", 10),
            ("integrity_errors", 1),
            ("link_recoveries", 2),
            ("buffer_overruns", 1),
        )
    ),
    Growth(
        "LinkFlap",
        "penstock_infiniband_link_downs_total",
        "InfiniBand port {device} went down {value:g} times in 5 minutes",
        2,
        300.0,
        WARNING,
        (),
        ("device",),
        "=counter",
    ),
    Growth(
        "LinkFlap",
        "penstock_node_network_carrier_losses_total",
        "{device} lost its carrier {value:g} times in 5 minutes",
        2,
        300.0,
        WARNING,
        (),
        ("device",),
        "=counter",
    ),
    Growth(
        "MachineCheck",
        "penstock_node_memory_errors_total",
        "memory controller {device} met {value:g} errors that it could not correct",
        1,
        HOUR,
        CRITICAL,
        (("kind", "uncorrected"),),
        ("controller",),
        "=memory",
    ),
    Growth(
        "MemoryCorrected",
        "penstock_node_memory_errors_total",
        "memory controller {device} corrected {value:g} errors within an hour",
        100,
        HOUR,
        INFO,
        (("kind", "corrected"),),
        ("controller",),
    ),
    Growth(
        "CpuThrottle",
        "penstock_node_cpu_thermal_throttles_total",
        "the CPUs were slowed down {value:g} times in 10 minutes: they are hot",
        100,
        600.0,
    ),
    Growth(
        "KernelLogLost",
        "penstock_kmsg_overruns_total",
        "the kernel's log was written over before it was read",
        1,
        HOUR,
        INFO,
    ),
)
