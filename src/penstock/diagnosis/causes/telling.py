"""What agents and the kernel found on the job's nodes, and which cause each finding is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from penstock.diagnosis.causes.readings import device
from penstock.diagnosis.causes.rule import Found, Proof, nodes, ranks, said
from penstock.diagnosis.features import Features
from penstock.diagnosis.state import Culprit
from penstock.telemetry.spec import Finding, Severity

# By the finding's rule, or by its rule and code where a rule has many: the cause, and how sure it makes it.
CAUSES: Final[Mapping[str, tuple[str, float]]] = {
    **dict.fromkeys(("Xid 13", "Xid 31", "Xid 43", "Xid 45"), ("gpu_app_fault", 0.3)),
    **dict.fromkeys(("Xid 48", "Xid 94", "Xid 95", "Xid 140"), ("gpu_ecc_dbe", 0.8)),
    "Xid 63": ("gpu_row_remap_pending", 0.5),
    "Xid 64": ("gpu_row_remap_failed", 0.8),
    **dict.fromkeys(("Xid 74", "Xid 145", "Xid 146", "Xid 147", "Xid 148", "Xid 149"), ("nvlink_down", 0.7)),
    "Xid 79": ("gpu_off_bus", 1.0),
    "Xid 92": ("gpu_sbe_rate", 0.3),
    **dict.fromkeys(("Xid 119", "Xid 120"), ("gpu_hang_gsp", 0.9)),
    **dict.fromkeys(("SXid 20001", "SXid 20009"), ("nvlink_errors", 0.5)),
    "SXid": ("nvlink_down", 0.6),
    "GpuMissing lost": ("gpu_off_bus", 0.8),
    "GpuMissing count": ("gpu_count_short", 0.8),
    "GpuMissing driver": ("driver_mismatch", 0.4),
    "GpuHung": ("gpu_hang_gsp", 0.8),
    "GpuThermalThrottle": ("gpu_thermal_throttle", 0.7),
    "GpuPowerBrake": ("gpu_power_brake", 0.7),
    "GpuPowerThrottle": ("gpu_power_brake", 0.3),
    "EccUncorrectable": ("gpu_ecc_dbe", 0.7),
    "EccCorrectable": ("gpu_sbe_rate", 0.3),
    "RowRemapPending": ("gpu_row_remap_pending", 0.4),
    "RowRemapFailed": ("gpu_row_remap_failed", 0.8),
    "PageRetirementPending": ("gpu_page_retirement", 0.5),
    "PcieWidth": ("pcie_downgrade", 0.6),
    "PcieErrors": ("pcie_aer", 0.5),
    "PcieReplay": ("pcie_aer", 0.4),
    "NvlinkDown": ("nvlink_down", 0.8),
    "NvlinkErrors": ("nvlink_errors", 0.5),
    "FabricManagerDown": ("fabric_manager_down", 0.9),
    "DriverMismatch": ("driver_mismatch", 0.9),
    "LinkDown": ("ib_link_down", 0.7),
    "LinkFlap": ("link_flap", 0.7),
    "LinkErrors": ("bad_cable", 0.6),
    "LinkErrors buffer_overruns": ("congestion_pfc", 0.4),
    "LinkRateDegraded": ("ib_rate_degraded", 0.7),
    "OutOfMemory": ("host_oom", 0.9),
    "KernelHang soft-lockup": ("kernel_soft_lockup", 0.9),
    "KernelHang hard-lockup": ("kernel_soft_lockup", 0.9),
    "KernelHang rcu-stall": ("kernel_soft_lockup", 0.5),
    "KernelOops panic": ("node_down", 0.9),
    "KernelOops": ("node_down", 0.3),
    "HungTask": ("nfs_hang", 0.1),
    "NfsHang": ("nfs_hang", 0.9),
    "DiskFull": ("disk_full", 0.6),
    "FileSystemReadOnly": ("disk_readonly", 0.8),
    "NvmeFailed": ("nvme_degraded", 0.8),
    "DiskError timeout": ("nvme_degraded", 0.6),
    "DiskError": ("disk_readonly", 0.1),
    "FileLimit": ("pid_fd_limit", 0.8),
    "CpuThrottle": ("cpu_freq_low", 0.5),
    "ClockSkew": ("clock_skew", 0.5),
}
_GPU_RULES: Final = ("Xid", "Gpu", "Ecc", "RowRemap", "PageRetirement", "Nvlink", "Pcie")
_LINK_RULES: Final = ("Link", "Nic")
_WELL: Final = ("Running", "Succeeded")
_MANY = 3  # devices on which the same application error points at the application


def findings(features: Features) -> Iterator[Found]:
    for node in features.evidence.nodes:
        for finding in node.findings:
            named = _cause(finding)
            if named is not None:
                yield _found(features, finding, *named)


def _cause(finding: Finding) -> tuple[str, float] | None:
    return CAUSES.get(f"{finding.rule} {finding.code}") or CAUSES.get(finding.rule)


def _found(features: Features, finding: Finding, cause: str, sure: float) -> Found:
    worst = finding.severity is Severity.CRITICAL or sure >= 0.8
    old = _over(features, finding)
    proof = (
        Proof.HINT
        if old or (finding.severity is Severity.INFO and sure < 0.5)
        else Proof.FACT
        if worst
        else Proof.COUNTER
    )
    times = f"{finding.count} times" if finding.count > 1 else ""
    return Found(
        cause,
        proof,
        sure,
        _at(features, finding),
        said(f"{finding.node}: {finding.message}", *finding.evidence[:2], times),
        said(
            old,
            _on_many(features, finding) if cause == "gpu_app_fault" else "",
        ),
    )


def _over(features: Features, finding: Finding) -> str:
    """Why it can be no more than a hint: it had ended before anything was wrong with the job; "" where it can."""
    if finding.active:
        return ""
    if features.change is not None:
        return "it was over before the steps became longer" if finding.at < features.change.at else ""
    well = features.evidence.phase in _WELL and features.timed()
    return "it is over, and the steps are as long as before" if well else ""


def _at(features: Features, finding: Finding) -> tuple[Culprit, ...]:
    if finding.device and finding.rule.startswith(_GPU_RULES):
        return (*device(features, finding.node, finding.device), Culprit("node", finding.node))
    if finding.device and finding.rule.startswith(_LINK_RULES):
        return (Culprit("link", f"{finding.node}/{finding.device}"), Culprit("node", finding.node))
    rank = finding.facts.get("rank")
    return (*ranks([int(rank)] if isinstance(rank, int | float) else []), *nodes([finding.node]))


def _on_many(features: Features, finding: Finding) -> str:
    """The same on one GPU again and again is the GPU; on many it is the program."""
    where = {
        (f.node, f.device)
        for node in features.evidence.nodes
        for f in node.findings
        if (f.rule, f.code) == (finding.rule, finding.code)
    }
    if len(where) >= _MANY or finding.count < _MANY:
        return ""
    return f"it came {finding.count} times on the one GPU: rather the hardware than the program"


RULES = (findings,)
