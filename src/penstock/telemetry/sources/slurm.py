"""What Slurm thinks of this node: its state with flags, and why it is out."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.base.text import one_line
from penstock.engines.slurm import parsing
from penstock.telemetry.sources.command import Command
from penstock.telemetry.sources.tree import gauge
from penstock.telemetry.spec import Point, Reading

# Of scontrol's STATE+FLAG words those that take a node's work away, or tell why.
_FLAGS = ("DOWN", "DRAIN", "FAIL", "MAINT", "NOT_RESPONDING", "REBOOT_ISSUED", "POWERED_DOWN", "INVALID_REG", "UNKNOWN")


class Slurm:
    name = "slurm"

    def __init__(self, words: Sequence[str], every_s: float = 60.0) -> None:
        self.every_s = every_s
        self._command = Command(words)

    @classmethod
    def of(cls, node: str, every_s: float = 60.0) -> Slurm:
        return cls(("scontrol", "-o", "-d", "show", "node", node), every_s)

    def read(self, now: float) -> Reading:
        text, problem = self._command.run()
        points = tuple(point for line in text.splitlines()[:16] for point in node_points(line))
        return Reading(self.name, now, points, problem=problem or ("" if points else "scontrol named no node"))

    def close(self) -> None:
        self._command.close()


def node_points(line: str) -> list[Point]:
    """Of one line of ``scontrol -o -d show node``."""
    points: list[Point] = []
    for node in parsing.nodes(line):
        if not node.name:
            continue
        label = ("slurm_node", node.name)
        words = {word.strip("*~#!%$@^-") for word in node.state.upper().split("+")}
        if "*" in node.state:
            words.add("NOT_RESPONDING")
        for flag in _FLAGS:
            points += gauge("penstock_slurm_node_state", float(flag in words), label, ("state", flag))
        reason = one_line(node.reason, 200)
        points += gauge("penstock_slurm_node_info", 1.0, label, ("state", node.state[:64]), ("reason", reason))
        points += gauge("penstock_slurm_node_cpus", float(node.cpus), label)
    return points
