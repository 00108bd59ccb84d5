"""NVIDIA's own diagnostics of a GPU: `dcgmi diag -r LEVEL -j`. Pure.

The JSON of DCGM 3 has one result per GPU with ``gpu_id`` and a status of "PASS", "FAIL", "WARN" or "SKIP" (also spelt out), that of
DCGM 4 names ``entity_group`` and ``entity_id`` and adds a summary per test (NVIDIA, DCGM user guide, "DCGM Diagnostics").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.base.text import one_line
from penstock.health.checks.spec import Outcome, Result, Subject, not_run

_ROOTS = ("DCGM Diagnostic", "DCGM GPU Diagnostic")
_BAD = ("fail",)
_FINE = ("pass", "skip", "not", "warn")


class Dcgmi:
    name = "dcgmi"
    program = "dcgmi"
    busy = True
    seconds = 1800.0

    def __init__(self, level: int = 2) -> None:
        self.level = level

    def command(self, subject: Subject) -> Sequence[str]:
        return (self.program, "diag", "-r", str(self.level), "-j")

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        try:
            body = json.loads(output[output.index("{") :])
            root = next(body[name] for name in _ROOTS if name in body)
            if root.get("runtime_error"):
                return not_run(self.name, one_line(str(root["runtime_error"]), 200))
            rows = list(_rows(root))
        except (ValueError, StopIteration, TypeError, AttributeError, RecursionError):
            return not_run(self.name, one_line(output, 200) or f"dcgmi ended with {exit_code} and said nothing")
        wrong = [(test, device, words) for test, device, status, words in rows if status.startswith(_BAD)]
        odd = sorted({status for _, _, status, _ in rows if not status.startswith((*_BAD, *_FINE))})
        if wrong:
            devices = tuple(sorted({device for _, device, _ in wrong if device}))
            said = "; ".join(dict.fromkeys(f"{test}: {words}" if words else test for test, _, words in wrong))
            return Outcome(self.name, Result.FAILED, one_line(said, 500), devices)
        if odd or not rows:
            return not_run(self.name, f"unknown status {', '.join(odd)}" if odd else "no test was run")
        warned = len([status for _, _, status, _ in rows if status.startswith("warn")])
        ran = len([status for _, _, status, _ in rows if status.startswith(("pass", "warn"))])
        if not ran:
            return not_run(self.name, "every test was skipped")
        words = f"{ran} results of level {self.level}" + (f", {warned} with a warning" if warned else "")
        return Outcome(self.name, Result.PASSED, words)


def _rows(root: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Test, GPU, status in lower case, words."""
    for category in root["test_categories"]:
        for test in category["tests"]:
            for found in test["results"]:
                status = str(found["status"]).lower()
                yield str(test["name"]), _device(found), status, one_line(_words(found.get("warnings")), 200)


def _device(found: Mapping[str, Any]) -> str:
    for name in ("gpu_id", "gpu_ids"):
        if name in found:
            return f"gpu {found[name]}"
    return f"gpu {found['entity_id']}" if str(found.get("entity_group", "")).upper() == "GPU" else ""


def _words(warnings: Any) -> str:
    if isinstance(warnings, str):
        return warnings
    if isinstance(warnings, list):
        return " ".join(str(one.get("warning", "")) if isinstance(one, dict) else str(one) for one in warnings)
    return ""
