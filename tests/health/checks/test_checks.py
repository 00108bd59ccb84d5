"""Every check: an answer means passed, failed, or that nothing was shown; and fio for real."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.health.checks import known
from penstock.health.checks.run import run
from penstock.health.checks.spec import Check, Outcome, Result, Subject

H100 = Subject(gpus=8, model="NVIDIA H100 80GB HBM3")


def dcgm3(*results: tuple[str, str]) -> str:
    rows = [{"gpu_id": str(gpu), "status": status, "warnings": words} for gpu, (status, words) in enumerate(results)]
    tests = [{"name": "PCIe", "results": rows}]
    return json.dumps({"DCGM GPU Diagnostic": {"test_categories": [{"category": "Integration", "tests": tests}]}})


def dcgm4(*results: tuple[str, str]) -> str:
    rows = [
        {
            "entity_group": "GPU",
            "entity_group_id": 1,
            "entity_id": gpu,
            "status": status,
            "warnings": [{"error_id": 1, "warning": words}] if words else [],
        }
        for gpu, (status, words) in enumerate(results)
    ]
    tests = [{"name": "memory", "results": rows, "test_summary": {"status": "Pass"}}]
    return json.dumps({"DCGM Diagnostic": {"test_categories": [{"category": "Hardware", "tests": tests}]}})


def nvbandwidth(down: Sequence[str], up: Sequence[str]) -> str:
    cases = [
        {"name": "host_to_device_memcpy_ce", "status": "Passed", "bandwidth_matrix": [list(down)], "sum": 1.0},
        {"name": "device_to_host_memcpy_ce", "status": "Passed", "bandwidth_matrix": [list(up)], "sum": 1.0},
    ]
    return "nvbandwidth Version: v0.8\n" + json.dumps(
        {"nvbandwidth": {"CUDA Runtime Version": 12080, "testcases": cases}}
    )


def all_reduce(busbw: str, wrong: str = "0", beyond: str = "0 OK") -> str:
    return f"""# nThread 1 nGpus 8 minBytes 1073741824 maxBytes 8589934592 step: 2(factor) warmup iters: 5 iters: 20
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
  1073741824     268435456     float     sum      -1   4151.2  258.66  452.65      0   4146.9  258.93  453.12      0
  8589934592    2147483648     float     sum      -1    31550  272.26  {busbw}      {wrong}    31498  272.71  {busbw}    N/A
# Out of bounds values : {beyond}
# Avg bus bandwidth    : 465.1
"""


def tracking(offset: str, leap: str = "Normal") -> str:
    return (
        f"A9FEA97B,169.254.169.123,4,1795676336.8,{offset},0.000001,0.00001,-11.1,0.0,0.02,0.0003,0.0001,16.2,{leap}\n"
    )


def fio(read: float, write: float, error: int = 0) -> str:
    def job(name: str, way: str, rate: float) -> dict[str, Any]:
        return {"jobname": name, "error": error, "read": {"bw_bytes": 0}, "write": {"bw_bytes": 0}} | {
            way: {"bw_bytes": rate}
        }

    return json.dumps({"fio version": "fio-3.33", "jobs": [job("write", "write", write), job("read", "read", read)]})


CASES = [
    ("dcgmi", dcgm3(("PASS", ""), ("SKIP", "")), Result.PASSED, ()),
    ("dcgmi", dcgm3(("PASS", ""), ("FAIL", "bandwidth of GPU 1 is 5.1")), Result.FAILED, ("gpu 1",)),
    ("dcgmi", dcgm3(("SKIP", ""), ("SKIP", "")), Result.NOT_RUN, ()),
    ("dcgmi", dcgm3(("PASS", ""), ("BANANA", "")), Result.NOT_RUN, ()),
    ("dcgmi", "noise before\n" + dcgm4(("Pass", ""), ("Warn", "ECC is off")), Result.PASSED, ()),
    ("dcgmi", dcgm4(("Fail", "a byte differs"), ("Pass", "")), Result.FAILED, ("gpu 0",)),
    ("dcgmi", json.dumps({"DCGM Diagnostic": {"runtime_error": "no GPU"}}), Result.NOT_RUN, ()),
    ("dcgmi", "Error: unable to connect to the host engine", Result.NOT_RUN, ()),
    ("nvbandwidth", nvbandwidth(["55.1"] * 8, ["55.3"] * 8), Result.PASSED, ()),
    ("nvbandwidth", nvbandwidth(["55.1"] * 7 + ["26.4"], ["55.3"] * 8), Result.FAILED, ()),
    ("nvbandwidth", nvbandwidth(["N/A"], ["N/A"]), Result.NOT_RUN, ()),
    ("nvbandwidth", "CUDA error 999", Result.NOT_RUN, ()),
    ("nccl-tests", all_reduce("476.46"), Result.PASSED, ()),
    ("nccl-tests", all_reduce("301.20").replace("452.65", "290.10").replace("453.12", "290.20"), Result.FAILED, ()),
    ("nccl-tests", all_reduce("476.46", wrong="3"), Result.FAILED, ()),
    ("nccl-tests", all_reduce("476.46", beyond="12 FAILED"), Result.FAILED, ()),
    ("nccl-tests", "Test NCCL failure common.cu:1008 'unhandled cuda error'", Result.NOT_RUN, ()),
    ("fio", fio(2.1e9, 1.4e9), Result.PASSED, ()),
    ("fio", fio(2.1e9, 0.05e9), Result.FAILED, ()),
    ("fio", fio(2.1e9, 1.4e9, error=5), Result.FAILED, ()),
    ("fio", "fio: unable to open", Result.NOT_RUN, ()),
    ("clock", tracking("-0.000012"), Result.PASSED, ()),
    ("clock", tracking("0.250"), Result.FAILED, ()),
    ("clock", tracking("0.000001", "Not synchronised"), Result.FAILED, ()),
    ("clock", "506 Cannot talk to daemon", Result.NOT_RUN, ()),
]


@pytest.mark.parametrize(("name", "output", "result", "devices"), CASES)
def test_what_an_answer_means(name: str, output: str, result: Result, devices: tuple[str, ...]) -> None:
    found = known.BY_NAME[name].judge(0, output, H100)
    assert (found.result, found.devices) == (result, devices), found
    assert found.message


def test_each_check_has_each_result_here() -> None:
    assert {(name, result) for name, _, result, _ in CASES} == {
        (check.name, each) for check in known.ALL for each in Result
    }


@pytest.mark.parametrize("check", known.ALL, ids=lambda check: check.name)
@given(text=st.text(), code=st.integers(-20, 255))
def test_total(check: Check, text: str, code: int) -> None:
    found = check.judge(code, text, H100)
    assert found.result is not Result.PASSED


@pytest.mark.parametrize("check", known.ALL, ids=lambda check: check.name)
@pytest.mark.parametrize("name", [case[0] for case in CASES][:1])
def test_an_answer_that_was_cut_off_passes_nothing(check: Check, name: str) -> None:
    whole = next(output for name, output, result, _ in CASES if name == check.name and result is Result.PASSED)
    cut = whole[: whole.rindex("\n  8589934592")] if check.name == "nccl-tests" else whole[: len(whole) // 2]
    assert check.judge(0 if check.name != "nccl-tests" else 1, cut, H100).result is not Result.PASSED


def test_a_site_says_other_limits() -> None:
    slow = nvbandwidth(["26.1"], ["26.2"])
    check = known.BY_NAME["nvbandwidth"]
    assert check.judge(0, slow, H100).result is Result.FAILED
    mine = {"host_to_device_memcpy_ce": 20e9, "device_to_host_memcpy_ce": 20e9}
    assert check.judge(0, slow, Subject(8, H100.model, limits=mine)).result is Result.PASSED


class Script:
    """A check whose program is a shell's line."""

    name, what, busy, program = "script", "", False, "sh"

    def __init__(self, line: str, seconds: float = 30.0) -> None:
        self.line, self.seconds = line, seconds

    def command(self, _subject: Subject) -> Sequence[str]:
        return ("sh", "-c", self.line)

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        return Outcome(self.name, Result.PASSED if exit_code == 0 else Result.FAILED, output)


def test_a_program_that_is_not_there_or_hangs_shows_nothing() -> None:
    absent = Script("true")
    absent.program = "no-such-program"
    assert run(absent, Subject()).result is Result.NOT_RUN
    began = time.monotonic()
    hung = run(Script("sleep 60 & sleep 60", 0.2), Subject())
    assert hung.result is Result.NOT_RUN
    assert "given up" in hung.message
    assert time.monotonic() - began < 30


def test_output_without_end_is_bounded() -> None:
    found = run(Script("head -c 20000000 /dev/zero | tr '\\0' x"), Subject())
    assert found.result is Result.PASSED
    assert len(found.message) == 4 << 20


@pytest.mark.needs("fio")
def test_a_real_fio_answers(tmp_path: Path) -> None:
    assert shutil.which("fio")
    found = run(known.BY_NAME["fio"], Subject(folder=str(tmp_path), limits={"read": 1.0, "write": 1.0}))
    assert found.result is Result.PASSED, found
    assert found.figures["read"] > 1e6
    assert list(tmp_path.iterdir()) == []
