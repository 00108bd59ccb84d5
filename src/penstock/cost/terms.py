"""How capacity is paid for: commitments, spot, whole nodes. Values only; prices.py reads them from the price file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase

from penstock.cost.spec import Prices

RULES = ("usage", "quota", "own")


@dataclass(frozen=True, slots=True)
class Commitment:
    """``gpus`` of ``model`` (exactly as nodes report it), or whole ``nodes``, at ``rate`` an hour each between two times."""

    name: str
    rate: Decimal
    start: float
    end: float
    gpus: int = 0
    model: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """``idle`` names the rule by which idle and unused capacity is shared. ``spot_hour`` is by model, as in Prices."""

    commitments: tuple[Commitment, ...] = ()
    node_hour: Mapping[str, Decimal] = field(default_factory=dict)
    spot_nodes: tuple[str, ...] = ()  # patterns: spot-*
    spot_hour: Mapping[str, Decimal] = field(default_factory=dict)
    idle: str = "own"

    @property
    def whole_nodes(self) -> bool:
        """Whether any node is paid for as a whole."""
        return bool(self.node_hour) or any(commitment.nodes for commitment in self.commitments)

    def of_node(self, node: str) -> list[Commitment]:
        """Commitments for this very node, the earliest first."""
        return sorted((c for c in self.commitments if node in c.nodes), key=lambda c: c.start)

    def is_spot(self, node: str) -> bool:
        return any(fnmatchcase(node, pattern) for pattern in self.spot_nodes)

    def spot_gpu(self, model: str, prices: Prices) -> Decimal:
        """The spot price of a model; where none is named, that on demand."""
        named = Prices(prices.currency, Decimal(0), Decimal(0), prices.gpu(model), self.spot_hour)
        return named.gpu(model)
