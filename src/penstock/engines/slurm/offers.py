"""A site's nodes as offers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from penstock.engines.slurm import drained
from penstock.engines.slurm.spec import SlurmNode
from penstock.engines.spec import Gpu, NodeOffer

_GPU = re.compile(r"gpu(?::(?P<model>[^:(,]+))?:(?P<count>\d+)(?:\([^)]*\))?")
_DOWN = frozenset({"DOWN", "FAIL", "UNKNOWN", "ERROR", "FUTURE", "INVAL", "INVALID_REG"})
LOST = "lost (fault drill)"
_LEVELS = ("topology/rack", "topology/block", "topology/zone")  # of switches, from the node upwards


def offer(node: SlurmNode, prefix: str = "") -> NodeOffer:
    """``ready`` says whether what runs there runs: a node that is slow to answer is not down yet. What is drained gets no
    new work, and that is ``closed``.
    """
    down = drained.flags(node.state) & _DOWN
    message = ""
    if lost(node):
        message = LOST
    elif down:
        message = f"{node.state} in Slurm" + (f": {node.reason}" if node.reason else "")
    return NodeOffer(
        prefix + node.name,
        float(node.cpus),
        node.memory,
        gpus(node.gres),
        ready=not message,
        message=message,
        labels=labels(node),
        closed=drained.closed(node),
        address=node.address,
        cordoned=drained.cordoned(node),
    )


def lost(node: SlurmNode) -> bool:
    """Whether Penstock was told to take it for gone: kept in Slurm, where it outlives any server."""
    return node.reason == drained.reason(LOST) and bool(
        drained.flags(node.state) & {"DOWN", "DRAIN", "DRAINED", "DRAINING"}
    )


def gpus(gres: str) -> tuple[Gpu, ...]:
    """``gpu:h100:4(S:0-1)``: numbered through, as Slurm's indices are."""
    found: list[Gpu] = []
    for one in _GPU.finditer(gres):
        model = one["model"] or "gpu"
        found += [Gpu(str(len(found) + number), model) for number in range(min(int(one["count"]), 1024))]
    return tuple(found)


def labels(node: SlurmNode) -> Mapping[str, str]:
    """Switches above it, the nearest first, and its features."""
    switches = node.topology.split(".")[:-1][::-1]
    known = dict(zip(_LEVELS, switches, strict=False))
    return known | {f"slurm/{feature}": "true" for feature in node.features}
