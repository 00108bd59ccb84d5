"""Quotas in a tree of cohorts, as Kueue keeps them (kueue/pkg/cache/scheduler/resource_node: cohorts, hierarchical).

Every node of the tree (a queue, a cohort) has, for each flavor and resource, a *subtree quota*: its own nominal plus
what its children may lend. Its *local* part (above its lending limit) is its own alone; use beyond it is booked at the
parent. So a queue may use its local part, and of the parent's what is there, but no more than its borrowing limit allows.
All operations cost the depth of the tree.

What a queue's own quotas or those of a cohort above it name is limited for it (a cohort's: its nominal is then 0, it
borrows). What nobody on its path names is not limited, and is not booked at cohorts, where it would eat what others own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from penstock.scheduling.spec import Quota, Setup
from penstock.scheduling.state import Part

Cell = tuple[str, str]  # flavor, resource
SLACK = 1e-6


@dataclass(slots=True)
class TreeNode:
    """A queue or a cohort. Maps are by (flavor, resource)."""

    name: str
    parent: TreeNode | None
    quotas: dict[Cell, Quota]
    weight: float
    limited: bool
    subtree: dict[Cell, float] = field(default_factory=dict)
    usage: dict[Cell, float] = field(default_factory=dict)
    children: list[TreeNode] = field(default_factory=list)

    def local(self, cell: Cell) -> float:
        """What nobody else may take."""
        limit = self.quotas[cell].lending_limit if cell in self.quotas else None
        return 0.0 if limit is None or self.parent is None else max(0.0, self.subtree.get(cell, 0.0) - limit)

    def available(self, cell: Cell) -> float:
        """How much more it may use now."""
        quota, used = self.subtree.get(cell, 0.0), self.usage.get(cell, 0.0)
        if self.parent is None:
            return quota - used
        local = self.local(cell)
        above = self.parent.available(cell)
        limit = self.quotas[cell].borrowing_limit if cell in self.quotas else None
        if limit is not None:
            above = min(above, (quota - local) - max(0.0, used - local) + limit)
        return max(0.0, local - used) + above

    def potential(self, cell: Cell) -> float:
        """How much it could use if nobody used anything."""
        quota = self.subtree.get(cell, 0.0)
        if self.parent is None:
            return quota
        limit = self.quotas[cell].borrowing_limit if cell in self.quotas else None
        most = self.local(cell) + self.parent.potential(cell)
        return most if limit is None else min(most, quota + limit)

    def borrows(self, cell: Cell) -> bool:
        """Whether it uses more than what is its own and its children's."""
        return self.usage.get(cell, 0.0) > self.subtree.get(cell, 0.0) + SLACK

    def path(self) -> list[TreeNode]:
        """Itself, its parent, and so on to the root."""
        found: list[TreeNode] = [self]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found

    def add(self, cell: Cell, amount: float) -> None:
        before = self.usage.get(cell, 0.0)
        room = max(0.0, self.local(cell) - before)
        self.usage[cell] = before + amount
        if self.parent is not None and amount > room:
            self.parent.add(cell, amount - room)

    def remove(self, cell: Cell, amount: float) -> None:
        before = self.usage.get(cell, 0.0)
        above = before - self.local(cell)
        self.usage[cell] = before - amount
        if self.parent is not None and above > 0:
            self.parent.remove(cell, min(amount, above))


class Short(Enum):
    """What is short, where a sentence about it is not wanted: of several flavors, each."""

    QUOTA = "quota"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which quota is short: of ``asked``, ``available`` may be used; the queue uses ``used`` of its nominal."""

    queue: str
    flavor: str
    resource: str
    asked: float
    available: float
    used: float
    nominal: float
    never: bool  # it could not have it even if nobody used anything


def totals(parts: Iterable[Part]) -> dict[str, float]:
    """What a gang asks for in all. A share of a GPU counts as that share; a MIG instance as one GPU of its flavor."""
    found = {"gpus": 0.0, "cpus": 0.0, "memory": 0.0}
    for part in parts:
        ask = part.ask
        found["gpus"] += part.count * (ask.gpus + ask.gpu_milli / 1000)
        found["cpus"] += part.count * ask.cpus
        found["memory"] += part.count * ask.memory
    return {name: amount for name, amount in found.items() if amount}


class Quotas:
    """The tree with what is used of it."""

    def __init__(self, setup: Setup) -> None:
        self.queues: dict[str, TreeNode] = {}
        self.cohorts: dict[str, TreeNode] = {}
        self._specs = setup.queues
        self._flavors: dict[str, tuple[str, ...]] = {}
        self._apart: dict[tuple[str, str], list[TreeNode] | None] = {}
        for name in setup.cohorts:
            self._cohort(setup, name)
        for queue in setup.queues.values():
            parent = self._cohort(setup, queue.cohort) if queue.cohort else None
            self.queues[queue.name] = self._node(queue.name, parent, queue.quotas, queue.weight)
        for node in self.queues.values():
            for cell in [cell for above in node.path()[1:] for cell in above.quotas]:
                node.quotas.setdefault(cell, Quota(0.0))
            node.limited = bool(node.quotas)
        for root in self.roots():
            _sum_up(root)

    def _cohort(self, setup: Setup, name: str) -> TreeNode:
        found = self.cohorts.get(name)
        if found is None:
            spec = setup.cohorts.get(name)
            parent = self._cohort(setup, spec.parent) if spec and spec.parent else None
            quotas = spec.quotas if spec else {}
            found = self.cohorts[name] = self._node(name, parent, quotas, spec.weight if spec else 1.0)
        return found

    @staticmethod
    def _node(name: str, parent: TreeNode | None, quotas: Mapping[str, Mapping[str, Quota]], weight: float) -> TreeNode:
        cells = {(flavor, resource): quota for flavor, by in quotas.items() for resource, quota in by.items()}
        node = TreeNode(name, parent, cells, weight, bool(cells))
        if parent is not None:
            parent.children.append(node)
        return node

    def roots(self) -> list[TreeNode]:
        return [node for node in (*self.cohorts.values(), *self.queues.values()) if node.parent is None]

    def limited(self, queue: str) -> bool:
        """Whether any quota is the queue's, or a cohort's above it."""
        node = self.queues.get(queue)
        return node is not None and node.limited

    def flavors(self, queue: str) -> tuple[str, ...]:
        """In the order in which they are tried; empty where the queue has no quota: any."""
        found = self._flavors.get(queue)
        if found is None:
            found = self._flavors[queue] = tuple(dict.fromkeys(cell[0] for cell in self.queues[queue].quotas))
        return found

    def fits(self, queue: str, flavor: str, asked: Mapping[str, float]) -> bool:
        """Whether nothing is short: then ``take`` keeps every sum."""
        return self._short(self.queues[queue], flavor, asked) is None

    def check(self, queue: str, flavor: str, asked: Mapping[str, float]) -> Refusal | None:
        """The first resource that is short, or None: then ``take`` keeps every sum."""
        node = self.queues[queue]
        short = self._short(node, flavor, asked)
        return None if short is None else self._refusal(node, *short)

    @staticmethod
    def _short(node: TreeNode, flavor: str, asked: Mapping[str, float]) -> tuple[Cell, float, float] | None:
        if not node.limited:
            return None
        for resource, amount in asked.items():
            cell = (flavor, resource)
            if cell not in node.quotas:
                continue  # this resource of it is not limited
            available = node.available(cell)
            if amount > available + SLACK:
                return cell, amount, available
        return None

    @staticmethod
    def _refusal(node: TreeNode, cell: Cell, amount: float, available: float) -> Refusal:
        used, nominal = node.usage.get(cell, 0.0), node.quotas[cell].nominal
        return Refusal(
            node.name, *cell, amount, max(available, 0.0), used, nominal, amount > node.potential(cell) + SLACK
        )

    def take(self, queue: str, flavor: str, asked: Mapping[str, float]) -> float:
        """Book it; the GPUs by which the queue is now above its nominal quota through this."""
        node = self.queues[queue]
        for resource, amount in asked.items():
            cell = (flavor, resource)
            if cell in node.quotas:
                node.add(cell, amount)
        cell = (flavor, "gpus")
        over = node.usage.get(cell, 0.0) - node.quotas[cell].nominal if cell in node.quotas else 0.0
        return min(asked.get("gpus", 0.0), max(0.0, over))

    def give(self, queue: str, flavor: str, asked: Mapping[str, float]) -> None:
        node = self.queues[queue]
        for resource, amount in asked.items():
            cell = (flavor, resource)
            if cell in node.quotas:
                node.remove(cell, amount)

    def above_nominal(self, queue: str, flavor: str, resources: Iterable[str]) -> bool:
        """Whether the queue uses more than its nominal quota of one of these."""
        node = self.queues[queue]
        cells = [(flavor, name) for name in resources]
        return any(
            node.usage.get(cell, 0.0) > node.quotas[cell].nominal + SLACK for cell in cells if cell in node.quotas
        )

    def reclaimable(self, queue: str, by: str, flavor: str, resources: Iterable[str]) -> bool:
        """Whether ``queue`` has borrowed from where ``by`` may take it back: it is above its nominal quota of one of
        these, and so is, of the same, every cohort between it and the first that both are in. (A queue that borrows
        inside a cohort that keeps within its own takes nothing from outsiders.)
        """
        node, between = self.queues[queue], self._between(queue, by)
        if between is None:
            return False
        for name in resources:
            cell = (flavor, name)
            if cell not in node.quotas or node.usage.get(cell, 0.0) <= node.quotas[cell].nominal + SLACK:
                continue
            if all(one.borrows(cell) for one in between):
                return True
        return False

    def borrowed_gpus(self, queue: str, flavor: str, asked: Mapping[str, float]) -> float:
        """By how much the queue is above its nominal quota of GPUs; no end where another of the asked is limited too."""
        node = self.queues.get(queue)
        cells = [] if node is None else [cell for name in asked if (cell := (flavor, name)) in node.quotas]
        if node is None or cells != [(flavor, "gpus")]:
            return math.inf
        return node.usage.get(cells[0], 0.0) - node.quotas[cells[0]].nominal

    def _between(self, queue: str, by: str) -> list[TreeNode] | None:
        """Cohorts above ``queue`` and below the first that both are in; None where there is no such."""
        known = self._apart.get((queue, by), ...)
        if known is ...:
            own = {id(node) for node in self.queues[by].path()}
            above = self.queues[queue].path()[1:]
            found = [node for node in above if id(node) not in own]
            known = self._apart[queue, by] = None if len(found) == len(above) else found
        return known

    def borrowers(self, queue: str, flavor: str, resource: str) -> list[tuple[str, float]]:
        """Queues of the same tree that use more than their nominal quota, and by how much; the most first. For words."""
        root, cell = self.queues[queue].path()[-1], (flavor, resource)
        found = [
            (name, node.usage.get(cell, 0.0) - node.quotas[cell].nominal)
            for name, node in self.queues.items()
            if name != queue and cell in node.quotas and node.path()[-1] is root
        ]
        return sorted((one for one in found if one[1] > SLACK), key=lambda one: (-one[1], one[0]))

    def within_nominal(self, queue: str, flavor: str, asked: Mapping[str, float]) -> bool:
        """Whether it would still be within its nominal quota with this on top."""
        node = self.queues[queue]
        return all(
            node.usage.get((flavor, name), 0.0) + amount <= node.quotas[flavor, name].nominal + SLACK
            for name, amount in asked.items()
            if (flavor, name) in node.quotas
        )

    def borrowed_share(self, queue: str, flavor: str) -> float:
        """Kueue's dominant share of this flavor: the largest fraction of what its tree has that the queue uses above
        its nominal quota, by its weight (its cohorts' weights multiplied in).
        """
        node = self.queues[queue]
        path = node.path()
        weight = math.prod(one.weight for one in path)
        most = 0.0
        for cell, quota in node.quotas.items():
            total = path[-1].subtree.get(cell, 0.0)
            if cell[0] == flavor and total > 0:
                most = max(most, (node.usage.get(cell, 0.0) - quota.nominal) / total)
        return most / weight

    def same_tree(self, one: str, other: str) -> bool:
        """Whether two queues share a cohort at all."""
        return self.queues[one].path()[-1] is self.queues[other].path()[-1]


def _sum_up(node: TreeNode) -> None:
    for child in node.children:
        _sum_up(child)
    cells = {*node.quotas, *(cell for child in node.children for cell in child.subtree)}
    for cell in cells:
        own = node.quotas[cell].nominal if cell in node.quotas else 0.0
        node.subtree[cell] = own + sum(child.subtree.get(cell, 0.0) - child.local(cell) for child in node.children)
