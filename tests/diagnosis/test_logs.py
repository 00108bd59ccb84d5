"""Which line began it: roots before cascades, whoever is louder; hostile lines."""

from __future__ import annotations

import string
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.diagnosis import logs
from penstock.diagnosis.knowledge.catalogue import CAUSES
from penstock.diagnosis.logs import Role, account, exception, of_line
from penstock.diagnosis.state import Evidence, LogLine, NodeEvidence, Rank

parser = import_module("re._parser")  # the parsed form of an expression is nowhere public
codes = import_module("re._constants")

HUNG = (
    "[rank{}]:[E1126 06:12:44.123456789 ProcessGroupNCCL.cpp:632] [Rank {}] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1203, OpType=ALLREDUCE, NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000) ran for 600021 milliseconds before timing out."
)
LOST = "[rank{}]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error"


def evidence(*ranks: list[tuple[float, str]], kernel: list[tuple[float, str]] | None = None) -> Evidence:
    told = tuple(
        Rank(number, f"node-{number // 2}", lines=tuple(LogLine(at, text, number) for at, text in lines))
        for number, lines in enumerate(ranks)
    )
    nodes = (NodeEvidence("node-0", kernel=tuple(LogLine(at, text) for at, text in kernel or ())),)
    return Evidence("job", "p", "Failed", 1000.0, told, nodes)


@pytest.mark.parametrize(
    ("text", "cause", "role"),
    [
        ("[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB", "cuda_oom", "root"),
        ("RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed. ", "data_worker_dead", "root"),
        ("RuntimeError: DataLoader worker (pid(s) 81, 82) exited unexpectedly", "data_worker_dead", "root"),
        ("ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).", "data_worker_dead", "root"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu_ecc_dbe", "root"),
        ("Failed to initialize NVML: Driver/library version mismatch", "driver_mismatch", "root"),
        ("RuntimeError: CUDA error: system not yet initialized", "fabric_manager_down", "root"),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", "gpu_app_fault", "root"),
        ("/pytorch/aten/src/ATen/native/cuda/Loss.cu:250: nll_loss: block: [0,0,0], thread: [3,0,0] Assertion `t >= 0 && t < n_classes` failed.", "gpu_app_fault", "root"),
        ("OSError: [Errno 28] No space left on device: '/ckpt/step_100.pt'", "disk_full", "root"),
        ("OSError: [Errno 122] Disk quota exceeded", "disk_full", "root"),
        ("OSError: [Errno 30] Read-only file system: '/data/x'", "disk_readonly", "root"),
        ("OSError: [Errno 24] Too many open files", "pid_fd_limit", "root"),
        ("RuntimeError: can't start new thread", "pid_fd_limit", "root"),
        ("RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory", "ckpt_corrupt", "root"),
        ("[W1126 socket.cpp:436] [c10d] The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use).", "master_unreachable", "root"),
        ("torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to (node-0, 29500).", "master_unreachable", "root"),
        ("socket.gaierror: [Errno -2] Name or service not known", "master_unreachable", "root"),
        ("RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: BROADCAST", "collective_mismatch", "root"),
        ("[enforce fail at gloo/transport/tcp/pair.cc:454] op.preamble.length <= op.nbytes. 4096 vs 2048", "collective_mismatch", "root"),
        ("W1126 torch/_dynamo/convert_frame.py:1016] [0/8] torch._dynamo hit config.recompile_limit (8)", "recompile", "root"),
        ("RuntimeError: Function 'MseLossBackward0' returned nan values in its 0th output.", "nan_loss", "root"),
        (HUNG.format(0, 0), "collective_hang", "cascade"),
        ("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete", "collective_hang", "cascade"),
        ("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234", "nccl_internal_error", "cascade"),
        (LOST.format(2), "nccl_internal_error", "cascade"),
        ("node-1:7:9 [0] NCCL WARN socketProgress: Connection closed by remote peer node-0<41234>", "nccl_internal_error", "cascade"),
        ("W1126 elastic/multiprocessing/api.py:900] Sending process 4711 closing signal SIGTERM", "", "teardown"),
        ("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ", "", "teardown"),
        ("slurmstepd: error: *** JOB 77 ON node-0 CANCELLED AT 2026-11-26T06:00:00 DUE TO PREEMPTION ***", "", "teardown"),
        ("[rank0]: ValueError: expected 4 channels", "", "root"),
        ("mylib.errors.DataError: bad sample", "", "root"),
    ],
)  # fmt: skip
def test_a_line_of_a_rank(text: str, cause: str, role: str) -> None:
    failure = of_line(LogLine(1.0, text), node="node-0", rank=0)
    assert failure is not None
    assert (failure.cause, failure.role) == (cause, role)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", "gpu_off_bus"),
        ("NVRM: Xid (PCI:0000:3b:00): 48, pid=1234, name=python, DBE (double bit error) ECC Error", "gpu_ecc_dbe"),
        ("NVRM: Xid (PCI:0000:3b:00): 119, pid=77, name=python, Timeout after 6s of waiting for RPC response from GPU0 GSP!", "gpu_hang_gsp"),
        ("NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python, Ch 00000008, intr 10000000. MMU Fault", "gpu_app_fault"),
        ("Memory cgroup out of memory: Killed process 8123 (python) total-vm:98304000kB, anon-rss:33554432kB", "host_oom"),
        ("nfs: server filer1 not responding, still trying", "nfs_hang"),
        ("watchdog: BUG: soft lockup - CPU#12 stuck for 26s! [python:8123]", "kernel_soft_lockup"),
        ("EXT4-fs (sdb1): Remounting filesystem read-only", "disk_readonly"),
        ("nvme nvme0: I/O 123 QID 4 timeout, reset controller", "nvme_degraded"),
        ("NVRM: API mismatch: the client has the version 550.54.15, but this kernel module has the version 535.129.03.", "driver_mismatch"),
    ],
)  # fmt: skip
def test_a_line_of_the_kernel(text: str, cause: str) -> None:
    failure = of_line(LogLine(1.0, text), node="node-0")
    assert failure is not None
    assert failure.cause == cause


@pytest.mark.parametrize(
    "text",
    [
        "step 100 loss 2.31 lr 3e-4",
        "INFO: 0 errors so far",
        "NCCL version 2.27.3+cuda12.9",
        "Traceback (most recent call last):",
        '  File "train.py", line 12, in <module>',
        "UserWarning: the lr_scheduler was called before the optimizer",
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.",
        "",
    ],
)
def test_a_line_that_tells_of_no_failure(text: str) -> None:
    assert of_line(LogLine(1.0, text), node="node-0", rank=0) is None


def test_one_root_among_many_that_complain() -> None:
    told = account(
        evidence(
            [(110.0, LOST.format(0))] * 50,
            [(112.0, "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")],
            [(111.0, HUNG.format(2, 2)), (111.5, LOST.format(2))],
            [(113.0, "Sending process 1 closing signal SIGTERM")],
        )
    )
    assert told.first is not None
    assert (told.first.cause, told.first.rank) == ("cuda_oom", 1)
    assert {failure.rank for failure in told.cascades} == {0, 2}
    assert told.silent == (3,)


def test_a_root_long_after_the_first_cascade_did_not_begin_it() -> None:
    told = account(evidence([(100.0, LOST.format(0))], [(300.0, "OSError: [Errno 28] No space left on device")]))
    assert told.first is not None
    assert told.first.cause == "nccl_internal_error"


def test_the_kernel_before_the_exception_it_led_to() -> None:
    told = account(
        evidence(
            [(100.2, "RuntimeError: CUDA error: unknown error")],
            [(101.0, LOST.format(1))],
            kernel=[(100.0, "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.")],
        )
    )
    assert told.first is not None
    assert (told.first.cause, told.first.node, told.first.rank) == ("gpu_off_bus", "node-0", None)


def test_an_exception_after_a_lost_peer_is_a_cascade() -> None:
    told = account(
        evidence(
            [(100.0, LOST.format(0)), (100.1, "RuntimeError: training failed")], [(100.4, "ValueError: bad label")]
        )
    )
    assert told.first is not None
    assert told.first.text == "ValueError: bad label"
    assert [failure.role for failure in told.failures if failure.rank == 0] == [Role.CASCADE, Role.CASCADE]


def test_a_hang_has_cascades_alone_and_the_silent_one() -> None:
    told = account(
        evidence([(100.0, HUNG.format(0, 0))], [], [(100.5, HUNG.format(2, 2))], [(101.0, HUNG.format(3, 3))])
    )
    assert told.first is not None
    assert (told.first.cause, told.first.role) == ("collective_hang", Role.CASCADE)
    assert told.silent == (1,)


def test_no_failure_is_none() -> None:
    told = account(evidence([(1.0, "step 1"), (2.0, "step 2")], []))
    assert told == logs.Account()


# -- the data, and hostile lines -----------------------------------------------------------------------------------------


def test_every_pattern_names_a_cause_and_a_source() -> None:
    for pattern in logs.patterns():
        assert pattern.cause in {"", *CAUSES}
        assert pattern.any
        assert pattern.source


def repeats(parsed: Any) -> list[tuple[int, bool]]:
    """Of each repetition its most, and whether another one of more than one text lies within it."""
    found: list[tuple[int, bool]] = []
    for code, value in parsed:
        if code in {codes.MAX_REPEAT, codes.MIN_REPEAT}:
            inner = repeats(value[2])
            found += [(int(value[1]), any(most > 1 for most, _ in inner)), *inner]
        elif code is codes.SUBPATTERN:
            found += repeats(value[3])
        elif code is codes.BRANCH:
            for branch in value[1]:
                found += repeats(branch)
    return found


@pytest.mark.parametrize("expression", [logs._PREFIX, logs._EXCEPTION])
def test_no_repetition_is_unbounded_or_nested_many_times(expression: Any) -> None:
    for most, nested in repeats(parser.parse(expression.pattern)):
        assert most <= 300
        assert not nested or most <= 8


HOSTILE = [
    "[" * 200_000,
    "A." * 100_000,
    "Error" * 50_000,
    "a" * 60 + ("." + "a" * 60) * 2000,
    "1" * 200_000,
    "/" * 200_000,
    "0x" * 100_000,
    "[rank0]: " * 30_000,
    "E1126 00:00:00.000 1 " * 20_000,
    "NVRM: Xid (PCI:" + "0" * 200_000,
    "\x1b[31m" * 50_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_line_is_cut_and_read(text: str) -> None:
    for rank in (0, None):
        for _ in range(50):
            found = of_line(LogLine(0.0, text), node="node-0", rank=rank)
            assert found is None or len(found.text) <= 300


def test_the_number_of_lines_is_bounded() -> None:
    many = [(float(at), "ValueError: x") for at in range(logs.MOST_LINES + 1000)]
    told = account(evidence(many, many))
    assert len(told.failures) == logs.MOST_FAILURES


@given(st.lists(st.lists(st.tuples(st.floats(0, 1e6), st.text(max_size=80)), max_size=8), max_size=4))
def test_whatever_is_written_the_account_is_sound(ranks: list[list[tuple[float, str]]]) -> None:
    told = account(evidence(*ranks))
    assert list(told.failures) == sorted(told.failures, key=lambda failure: failure.at)
    assert told.first is None or told.first in told.failures
    assert not told.roots or told.first is not None
    for failure in told.failures:
        assert failure.cause in {"", *CAUSES}


@given(st.text(alphabet=string.printable, max_size=200))
def test_an_exception_has_a_name(text: str) -> None:
    name = exception(text)
    assert name == "" or name.isidentifier()
