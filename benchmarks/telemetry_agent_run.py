"""The agent that ``telemetry_agent.py`` measures, in a process that holds nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from penstock.client.transport import Transport
from penstock.telemetry.agent import Agent
from penstock.telemetry.choosing import Wanted, choose
from penstock.telemetry.rules import Rules
from penstock.telemetry.sources.kmsg import Kmsg
from penstock.telemetry.sources.nvml import Nvml
from penstock.telemetry.spec import Source


def sources(task: dict[str, Any]) -> list[Source]:
    folder = Path(task["folder"])
    wanted = Wanted(task["node"], "", "b0", task["root"], task["node_exporter"], task["dcgm"])
    found: list[Source] = [Kmsg(str(folder / "kmsg.json"), str(folder / "kmsg"), "b0", every_s=60.0)]
    for source in choose(wanted):
        if source.name == "nvml":
            found.append(Nvml(words=tuple(task["nvml"])))
        elif source.name != "kmsg":
            found.append(source)
    return found


def run() -> int:
    """The agent, in a process of its own, until its input ends."""
    task = json.loads(sys.stdin.readline())
    agent = Agent(task["node"], "b0", sources(task), Rules(task["node"]), lambda: Transport(task["url"], task["token"]))
    agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(run())
