"""A rank's configuration as the lint sees it, and what the lint answers. Pure.

The keys of ``Rank.config`` are those of ``worker/configured.py``; what is not there is not known, and no rule judges it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.diagnosis.state import Evidence, Rank

_MOST = 1e15  # of any number: what is more, or is none, is not told in earnest


@dataclass(frozen=True, slots=True)
class Advice:
    """A setting that costs time or breaks things. ``ranks``: whose; () is every rank's, or the job's.

    ``cause`` is an id of the catalogue; "" where the setting is none of its causes. ``strength``: how much it is likely to matter.
    """

    cause: str
    setting: str
    strength: float  # 0 to 1
    evidence: str
    action: str
    against: str = ""
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """One rank, its environment, and what is around it."""

    rank: int
    config: Mapping[str, Any]
    env: Mapping[str, str]
    neighbours: int  # ranks on its node, itself among them; 0: not known
    nodes: int  # of the job; 0: not known
    interfaces: frozenset[str]  # of its node; empty: not known
    cards: frozenset[str]  # RDMA cards; empty: none, or not known
    seen: bool  # whether the node's telemetry tells of networks at all

    def text(self, name: str) -> str:
        value = self.config.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        value = self.config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
            return None
        return float(value)

    @property
    def cuda(self) -> bool:
        return self.text("device").startswith("cuda")


def setups(evidence: Evidence) -> Iterator[Setup]:
    """One for each rank; of a job that has not run yet, one for its specification."""
    ranks = evidence.ranks or (Rank(0, ""),)
    known = {rank.node for rank in evidence.ranks if rank.node}
    for rank in ranks:
        node = next((node for node in evidence.nodes if node.name == rank.node), None)
        series = node.series if node is not None else ()
        nets = frozenset(s.device for s in series if "network" in s.name and s.device)
        cards = frozenset(s.device.split("/")[0] for s in series if "infiniband" in s.name and s.device)
        yield Setup(
            rank.rank,
            rank.config,
            {**evidence.env, **_environment(rank.config)},
            sum(other.node == rank.node for other in evidence.ranks) if rank.node else 0,
            len(known),
            nets,
            cards,
            bool(nets or cards),
        )


def _environment(config: Mapping[str, Any]) -> dict[str, str]:
    """``["NAME=value", ...]`` as a mapping."""
    told = config.get("env")
    if not isinstance(told, list | tuple):
        return {}
    pairs = (str(each).partition("=") for each in told)
    return {name: value for name, equals, value in pairs if equals}
