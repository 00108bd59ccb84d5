"""Nodes that take no new work: whether that was the site's word or Penstock's. Pure.

Slurm keeps one reason a node. What Penstock drains it marks in that reason, so that it can tell its own word from the
site's, also after a restart, and never opens what others have closed.
"""

from __future__ import annotations

from penstock.base.quantities import format_time
from penstock.engines.slurm.spec import SlurmNode

MARK = "penstock: "
_CLOSED = frozenset({"DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "MAINT"})


def flags(state: str) -> frozenset[str]:
    """``IDLE+DRAIN*`` as its words."""
    return frozenset(word.strip("*~#!%$@^-") for word in state.upper().split("+"))


def ours(node: SlurmNode) -> bool:
    return node.reason.startswith(MARK)


def cordoned(node: SlurmNode) -> bool:
    """Whether it is Penstock that keeps it closed."""
    return bool(flags(node.state) & _CLOSED) and ours(node)


def reason(why: str) -> str:
    """What is written beside a node that Penstock drains: one line that Slurm's formats cannot take apart."""
    return MARK + (" ".join(why.split())[:400] or "no reason given")


def closed(node: SlurmNode) -> str:
    """``drained in Slurm by root at 2026-11-25T19:01:56Z: bad DIMM``; empty of an open node, and of one that Penstock closed."""
    found = flags(node.state) & _CLOSED
    if not found or ours(node):
        return ""
    verb = "in maintenance" if found == {"MAINT"} else "failing" if found & {"FAIL", "FAILING"} else "drained"
    by = f" by {node.reason_by}" if node.reason_by else ""
    at = f" at {format_time(node.reason_at)}" if node.reason_at else ""
    return f"{verb} in Slurm{by}{at}" + (f": {node.reason}" if node.reason else "")
