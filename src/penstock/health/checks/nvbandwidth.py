"""Copies between host and GPUs: NVIDIA's nvbandwidth with ``-j``. Pure.

What is held to a least is the slowest GPU's copy to and from the host: 25 GB/s tells a PCIe 4.0 x16 link (32 GB/s, less its
overhead) from one that came up with half the lanes or at a generation less, 50 GB/s a 5.0 one. (One H200 on 5.0 x16 copied at 55.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from penstock.base.text import one_line
from penstock.health.checks.spec import Outcome, Subject, held_to, not_run

_CASES = ("host_to_device_memcpy_ce", "device_to_host_memcpy_ce")
_GB = 1e9
# of the link that each model is sold with (NVIDIA's data sheets)
_LEAST = (("H100", 45e9), ("H200", 45e9), ("B200", 45e9), ("GB200", 45e9), ("A100", 20e9), ("L40", 20e9), ("A10", 20e9))


class NvBandwidth:
    name = "nvbandwidth"
    program = "nvbandwidth"
    busy = True
    seconds = 300.0

    def command(self, subject: Subject) -> Sequence[str]:
        return (self.program, "-j", "-t", *_CASES)

    def judge(self, exit_code: int, output: str, subject: Subject) -> Outcome:
        figures = {}
        try:
            for case in json.loads(output[output.index("{") :])["nvbandwidth"]["testcases"]:
                rows = case.get("bandwidth_matrix") or []
                cells = [float(cell) for row in rows for cell in row if str(cell).upper() != "N/A"]
                if case["name"] in _CASES and cells:
                    figures[case["name"]] = min(cells) * _GB
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return not_run(self.name, one_line(output, 200) or f"nvbandwidth ended with {exit_code} and said nothing")
        if not figures:
            return not_run(self.name, "none of its copies was measured")
        usual = next((least for model, least in _LEAST if model in subject.model), None)
        least = {name: subject.limits.get(name, usual) for name in figures}
        return held_to(self.name, figures, {name: value for name, value in least.items() if value}, _GB, "GB/s")
