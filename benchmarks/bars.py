"""`make bars PART=A [JSON=1] [ONLY=startup,submit]`: every bar of a part, one a line."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.harness import Bar, say, show

# Part -> the modules that measure it, and the bars each must yield, so that one which breaks is seen to fall short.
PARTS: dict[str, tuple[str, ...]] = {
    "A": ("startup", "submit", "throughput", "listing", "logs", "soak"),
    "B": (
        "replay",
        "synth",
        "pack",
        "cost_sum",
        "scheduling_cycle",
        "live_cycle",
        "fuzz",
    ),
    "C": ("slurm_contract", "slurm_engine", "slurm_render", "slurm_soak"),
    "D": ("checkpoint", "training", "training_restart", "training_data"),
    "E": (
        "serving_cold",
        "serving_runtime",
        "serving_gateway",
        "serving_replay",
        "serving_rollout",
        "serving_rollout_live",
        "serving_soak",
    ),
    "F": (
        "diagnosis",
        "watch",
        "health",
        "telemetry_agent",
        "telemetry_ingest",
    ),
}


def measure(module: str) -> list[Bar]:
    """One module's bars. A benchmark that fails to run is a bar that falls short, and does not stop the others."""
    measured: Callable[[], list[Bar]] = importlib.import_module(f"benchmarks.{module}").measure
    began = time.monotonic()
    say(f"== {module}")
    try:
        bars = measured()
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, subprocess.SubprocessError) as failure:
        say(f"   {module} could not be measured: {type(failure).__name__}: {failure}")
        return [Bar(module, None, 0, "", note=f"{type(failure).__name__}: {failure}"[:200])]
    say(f"   {module} took {time.monotonic() - began:.0f} s")
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="A", type=str.upper, choices=sorted(PARTS))
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--only", default="", help="comma-separated modules")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else PARTS[arguments.part]
    bars = [bar for module in chosen for bar in measure(module)]
    return show(bars, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
