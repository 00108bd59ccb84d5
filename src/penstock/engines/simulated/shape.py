"""How large a simulated fleet is, what its nodes have, and how they lie in racks and blocks. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.engines.spec import Gpu, MigInstance, NodeOffer

MOST_NODES, MOST_GPUS = 20_000, 16
MODEL = "NVIDIA H100 80GB HBM3"
GPU_BYTES = 80 << 30
MIG = "MIG-"  # how NVIDIA's ids of instances begin
PER_RACK, RACKS_PER_BLOCK = 8, 4  # a block is a scalable unit of 32 nodes
BLOCK, RACK = "topology/block", "topology/rack"
_SHAPE = re.compile(r"(\d{1,6})x(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Fleet:
    """``speed``: how many times as fast as the clock on the wall pass the times that jobs state, and those between
    failures. ``mtbf_s``: of one node; None: nothing ever fails.
    """

    nodes: int = 4
    gpus: int = 0
    model: str = MODEL
    speed: float = 1.0
    mtbf_s: float | None = None
    repair_s: float = 1800.0
    cpus: float | None = None  # of a node; None: as its GPUs need
    memory: int | None = None
    cut_nodes: int = 0  # the last so many nodes: each of their GPUs is cut into these MIG instances
    cut: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.nodes} nodes x {self.gpus} GPUs"


def parse_shape(text: str) -> tuple[int, int]:
    """``"64x8"`` -> (64, 8): nodes and GPUs on each. Raises ValueError."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a fleet: write NODESxGPUS, such as 64x8")
    nodes, gpus = int(match[1]), int(match[2])
    if not 1 <= nodes <= MOST_NODES or gpus > MOST_GPUS:
        raise ValueError(f"{text}: 1 to {MOST_NODES} nodes with 0 to {MOST_GPUS} GPUs each")
    return nodes, gpus


def offers(fleet: Fleet) -> tuple[NodeOffer, ...]:
    """Its nodes, all of them well."""
    cpus = fleet.cpus if fleet.cpus is not None else float(max(16 * fleet.gpus, 16))
    memory = fleet.memory if fleet.memory is not None else max(256 * fleet.gpus, 64) << 30
    whole = fleet.nodes - fleet.cut_nodes
    return tuple(
        NodeOffer(
            f"node-{n}",
            cpus,
            memory,
            tuple(
                Gpu(f"SIM-{n}-{g}", fleet.model, GPU_BYTES, _instances(n, g, fleet.cut if n >= whole else ()))
                for g in range(fleet.gpus)
            ),
            labels=labels(n),
        )
        for n in range(fleet.nodes)
    )


def _instances(n: int, g: int, profiles: tuple[str, ...]) -> tuple[MigInstance, ...]:
    return tuple(MigInstance(f"{MIG}SIM-{n}-{g}-{at}", profile) for at, profile in enumerate(profiles))


def parse_cut(text: str) -> tuple[int, tuple[str, ...]]:
    """``"4:3g.40gb,3g.40gb"``: four nodes' GPUs, each cut into these. Raises ValueError."""
    count, colon, profiles = text.partition(":")
    if not (colon and count.isdigit() and int(count) and profiles):
        raise ValueError(
            f"{text!r} does not say how GPUs are cut: write NODES:PROFILE,PROFILE, such as 4:3g.40gb,3g.40gb"
        )
    return int(count), tuple(profiles.split(","))


def labels(n: int) -> Mapping[str, str]:
    """Where the n-th node stands."""
    rack = n // PER_RACK
    return {BLOCK: f"block-{rack // RACKS_PER_BLOCK + 1}", RACK: f"rack-{rack + 1}"}
