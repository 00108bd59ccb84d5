"""What is told rather than timed: findings, telemetry, events, stacks. Each made up as its source writes it."""

from __future__ import annotations

import dataclasses

import pytest

from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Counters, Diagnosis, Evidence, Happened, NodeEvidence, Rank, Series
from penstock.telemetry.spec import Finding, Severity
from tests.diagnosis.scenes import Scene, adds, everywhere, from_step, on

GPUS = ("GPU-a", "GPU-b")
WELL = Scene(nodes={0: "node-1", 1: "node-2"}).evidence()


def placed(evidence: Evidence, **nodes: NodeEvidence) -> Evidence:
    """The ranks on one GPU each, with what is known of the nodes."""
    ranks = tuple(dataclasses.replace(rank, gpu=GPUS[rank.rank]) for rank in evidence.ranks)
    return dataclasses.replace(evidence, ranks=ranks, nodes=tuple(nodes.values()))


def finding(rule: str, code: str = "", device: str = "", severity: Severity = Severity.WARNING) -> Finding:
    return Finding(rule, "node-2", 1010.0, 1010.0, f"{rule} {code} {device}".strip(), severity, device, code)


FINDINGS = [
    (finding("Xid", "79", "GPU-b", Severity.CRITICAL), "gpu_off_bus"),
    (finding("Xid", "95", "GPU-b", Severity.CRITICAL), "gpu_ecc_dbe"),
    (finding("Xid", "13", "GPU-b"), "gpu_app_fault"),
    (finding("Xid", "119", "GPU-b", Severity.CRITICAL), "gpu_hang_gsp"),
    (finding("Xid", "74", "GPU-b"), "nvlink_down"),
    (finding("RowRemapPending", device="GPU-b"), "gpu_row_remap_pending"),
    (finding("RowRemapFailed", device="GPU-b", severity=Severity.CRITICAL), "gpu_row_remap_failed"),
    (finding("PageRetirementPending", device="GPU-b"), "gpu_page_retirement"),
    (finding("NvlinkErrors", "recovery", "GPU-b"), "nvlink_errors"),
    (finding("FabricManagerDown", severity=Severity.CRITICAL), "fabric_manager_down"),
    (finding("DriverMismatch", severity=Severity.CRITICAL), "driver_mismatch"),
    (finding("LinkDown", "", "mlx5_0/1", Severity.CRITICAL), "ib_link_down"),
    (finding("LinkFlap", "", "mlx5_0/1"), "link_flap"),
    (finding("LinkErrors", "symbol_errors", "mlx5_0/1"), "bad_cable"),
    (finding("LinkRateDegraded", "", "mlx5_0/1"), "ib_rate_degraded"),
    (finding("OutOfMemory", "limit"), "host_oom"),
    (finding("KernelHang", "soft-lockup", "3", severity=Severity.CRITICAL), "kernel_soft_lockup"),
    (finding("NfsHang", device="filer"), "nfs_hang"),
    (finding("DiskFull", "bytes", "/"), "disk_full"),
    (finding("FileSystemReadOnly", "kernel", "sda1", Severity.CRITICAL), "disk_readonly"),
    (finding("NvmeFailed", device="nvme0", severity=Severity.CRITICAL), "nvme_degraded"),
    (finding("CpuThrottle"), "cpu_freq_low"),
    (finding("PcieWidth", device="GPU-b"), "pcie_downgrade"),
    (finding("PcieErrors", "corrected", "GPU-b"), "pcie_aer"),
    (finding("GpuMissing", "count", severity=Severity.CRITICAL), "gpu_count_short"),
]


@pytest.mark.parametrize(("found", "cause"), FINDINGS, ids=[cause for _, cause in FINDINGS])
def test_a_finding_names_its_cause_and_the_node(found: Finding, cause: str) -> None:
    said = diagnose(placed(WELL, two=NodeEvidence("node-2", findings=(found,))))
    assert said.verdict == cause
    assert any(culprit.name.startswith("node-2") for culprit in said.culprits)
    if found.device == "GPU-b":
        assert said.culprits[0].name == "1"  # the rank that computes there, first


def test_what_was_over_before_it_became_slow_is_a_hint() -> None:
    old = dataclasses.replace(finding("GpuThermalThrottle", device="GPU-b"), at=1000.5, first_at=1000.0, active=False)
    slow = Scene(nodes={0: "node-1", 1: "node-2"}).evidence(from_step(60, on(0, adds(data=0.04))))
    said = diagnose(placed(slow, two=NodeEvidence("node-2", findings=(old,))))
    assert said.verdict == "data_loader_one_rank"
    hint = next(cause for cause in said.causes if cause.cause == "gpu_thermal_throttle")
    assert hint.score < 0.3
    assert hint.against == ("it was over before the steps became longer",)


def series(name: str, device: str, *values: float) -> Series:
    return Series(name, device, tuple((1000.0 + 10 * n, value) for n, value in enumerate(values)))


def gpu(number: int, clock: float, **more: float) -> tuple[Series, ...]:
    names = {"temperature": "DCGM_FI_DEV_GPU_TEMP", "reasons": "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "power": "penstock_gpu_power_watts",
             "limit": "penstock_gpu_power_limit_watts", "utilization": "DCGM_FI_DEV_GPU_UTIL"}  # fmt: skip
    every = {"utilization": 99.0, **more}
    return (
        series("DCGM_FI_DEV_SM_CLOCK", GPUS[number], *[clock] * 6),
        *(series(names[name], GPUS[number], *[value] * 6) for name, value in every.items()),
    )


LOW_CLOCKS = [
    ({"temperature": 91.0, "reasons": 0x40}, "gpu_thermal_throttle"),
    ({"temperature": 91.0}, "gpu_thermal_throttle"),
    ({"temperature": 60.0, "reasons": 0x80}, "gpu_power_brake"),
    ({"temperature": 60.0, "power": 699.0, "limit": 700.0}, "gpu_power_brake"),
    ({"temperature": 60.0, "reasons": 0x2}, "gpu_clocks_locked"),
    ({"temperature": 60.0}, "gpu_clocks_locked"),
]


@pytest.mark.parametrize(("more", "cause"), LOW_CLOCKS)
def test_why_a_clock_is_low(more: dict[str, float], cause: str) -> None:
    slow = Scene(nodes={0: "node-1", 1: "node-2"}).evidence(on(1, adds(compute=0.03)))
    nodes = {
        "one": NodeEvidence("node-1", gpu(0, 1980.0, temperature=60.0)),
        "two": NodeEvidence("node-2", gpu(1, 1200.0, **more)),
    }
    said = diagnose(placed(slow, **nodes))
    assert (said.verdict, said.culprits[0].name) == (cause, "1")
    effect = next(each for each in said.causes if each.cause == "slow_compute_rank")
    assert f"{cause} brings the same about, and is better founded" in effect.against


def test_clocks_that_rest_are_no_finding() -> None:
    nodes = {
        "one": NodeEvidence("node-1", gpu(0, 1980.0)),
        "two": NodeEvidence("node-2", gpu(1, 345.0, utilization=0.0, reasons=0x1)),
    }
    assert diagnose(placed(WELL, **nodes)).verdict == "healthy"


def test_a_rack_is_told_from_its_nodes() -> None:
    hot = {"temperature": 92.0, "reasons": 0x20}
    nodes = {
        f"n{n}": NodeEvidence(
            f"n{n}",
            gpu(0, 1200.0 if n < 3 else 1980.0, **(hot if n < 3 else {})),
            labels={"topology/rack": f"r{n // 3}"},
        )
        for n in range(6)
    }
    said = diagnose(placed(WELL, **nodes))
    assert said.verdict == "rack_power_cooling"
    assert [culprit.name for culprit in said.culprits] == ["n0", "n1", "n2"]


LINKS = [
    ([series("penstock_infiniband_state", "mlx5_0/1", 4, 4, 1, 1)], "ib_link_down"),
    ([series("penstock_infiniband_state", "mlx5_0/1", 4, 1, 4, 1, 4)], "link_flap"),
    ([series("penstock_infiniband_rate_bytes_per_second", "mlx5_0/1", 50e9, 50e9, 12.5e9, 12.5e9, 12.5e9, 12.5e9, 12.5e9)], "ib_rate_degraded"),
    ([series("penstock_infiniband_symbol_errors_total", "mlx5_0/1", 5, 5, 5)], "bad_cable"),  # kept as a rate: steady errors do not rise
    ([series("penstock_infiniband_transmit_wait_ticks_total", "mlx5_0/1", 0, 4e6, 9e6)], "congestion_pfc"),
    ([series("packet_seq_err", "mlx5_0/1", 0, 400, 900), series("np_cnp_sent", "mlx5_0/1", 0, 0, 0)], "ecn_misconfig"),
    ([series("penstock_gpus", "", 8, 8, 7), series("penstock_node_pci_gpus", "", 8, 8, 8)], "gpu_count_short"),
    ([series("penstock_gpu_pcie_width", "GPU-b", *[8] * 6), series("penstock_gpu_pcie_width_max", "GPU-b", *[16] * 6)], "pcie_downgrade"),
    ([series("penstock_link_bandwidth_bytes_per_second", d, v) for d, v in {"a->b": 1e9, "b->a": 1e9, "a->c": 9e9, "b->c": 9e9, "c->a": 9e9}.items()], "slow_link_pair"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "cause"), LINKS, ids=[cause for _, cause in LINKS])
def test_counters_of_links_and_slots(found: list[Series], cause: str) -> None:
    said = diagnose(placed(WELL, two=NodeEvidence("node-2", tuple(found))))
    assert said.verdict == cause


def hang(clue: str, *ranks: int) -> tuple[Happened, ...]:
    return (Happened(1100.0, "RankHung", "no step for 40s", {"ranks": list(ranks), "clue": clue}),)


def standing(
    world: int = 2, quiet: int | None = None, state: str = "S", stack: tuple[str, ...] = ("work (train.py:9)",)
) -> tuple[Rank, ...]:
    def counters(until: int) -> tuple[Counters, ...]:
        return tuple(Counters(1000.0 + n, {"cpu_s": float(n)}) for n in range(until))

    waiting = ("all_reduce (distributed_c10d.py:1)",)
    return tuple(
        Rank(
            n,
            "node-1",
            counters=counters(5 if n == quiet else 60),
            stack=stack if n == 1 else waiting,
            state=state if n == 1 else "S",
        )
        for n in range(world)
    )


HANGS = [
    (standing(), hang("not in the collective", 1), "collective_hang"),
    (standing(quiet=1), hang("not in the collective", 1), "gil_lock"),
    (standing(state="T"), hang("stopped", 1), "process_frozen"),
    (standing(state="D"), hang("stopped", 1), "nfs_hang"),
    (standing(), hang("another collective", 1), "collective_mismatch"),
]


@pytest.mark.parametrize(("ranks", "events", "cause"), HANGS, ids=[cause for _, _, cause in HANGS])
def test_why_a_rank_does_not_come(ranks: tuple[Rank, ...], events: tuple[Happened, ...], cause: str) -> None:
    said = diagnose(Evidence("train", "default", "Running", 1200.0, ranks, happened=events))
    assert (said.verdict, [culprit.name for culprit in said.culprits]) == (cause, ["1"])


def test_a_hang_that_ended_is_none() -> None:
    events = (*hang("not in the collective", 1), Happened(1101.0, "HangEnded", "it went on"))
    assert said(dataclasses.replace(WELL, happened=events)).verdict == "healthy"


def said(evidence: Evidence) -> Diagnosis:
    return diagnose(evidence)


EVENTS = [
    ((Happened(1.0, "Preempted", "by default/urgent", {}),), "preempted"),
    ((Happened(1.0, "NodeLost", "node-2 is lost", {"node": "node-2"}),), "node_down"),
    (tuple(Happened(float(n), what, "", {"rank": 1, "exit_code": 1}) for n in range(3) for what in ("RankExited", "Restarting")), "restart_loop"),
]  # fmt: skip


@pytest.mark.parametrize(("events", "cause"), EVENTS, ids=[cause for _, cause in EVENTS])
def test_what_the_ledger_tells(events: tuple[Happened, ...], cause: str) -> None:
    assert diagnose(Evidence("train", "default", "Failed", 9.0, (Rank(0, "node-1"),), happened=events)).verdict == cause


def test_batches_of_one_row_cost_their_start() -> None:
    def cut(step: int, work: object) -> None:
        if step >= 60:
            adds(tokens=-4095, compute=-0.02)(step, work)  # type: ignore[arg-type]  # a Work

    found = diagnose(Scene().evidence(everywhere(cut)))
    assert found.verdict == "gpu_low_util_launch_bound"


def test_files_and_memory_and_clocks_by_their_counters() -> None:
    for values, cause in (
        ({"open_files": 1000.0, "max_files": 1024.0}, "pid_fd_limit"),
        ({"clock_offset_s": 0.4}, "clock_skew"),
    ):
        ranks = tuple(dataclasses.replace(r, counters=(Counters(1001.0, values),)) for r in WELL.ranks[:1])
        assert diagnose(dataclasses.replace(WELL, ranks=(*ranks, *WELL.ranks[1:]))).verdict == cause


def test_memory_kills_of_others_on_the_machine_are_not_the_jobs() -> None:
    """The kernel counts those of the whole machine."""

    def counted(rank: Rank) -> Rank:
        told = [Counters(c.at, {**c.values, "oom_kills": float(n > 3)}) for n, c in enumerate(rank.counters)]
        return dataclasses.replace(rank, counters=tuple(told))

    seen = dataclasses.replace(WELL, ranks=tuple(map(counted, WELL.ranks)))
    assert diagnose(seen).verdict == "healthy"
    one, other = seen.ranks
    killed = dataclasses.replace(seen, phase="Failed", ranks=(one, dataclasses.replace(other, signal=9)))
    assert "host_oom" in [cause.cause for cause in diagnose(killed).causes if cause.score >= 0.5]
