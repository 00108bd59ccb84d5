"""Topology domains as masks of nodes: block above rack above host (Kueue's Topology Aware Scheduling).

A domain's identity is its path of labels, so rack-1 of two blocks are two racks. ``required`` means all groups in one
domain of that level; ``preferred`` tries that level first and then climbs to wider ones, at last the whole fleet.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.scheduling.state import Topology

LEVELS = ("block", "rack")  # widest first; the last label of a node's path is its rack


class Domains:
    """Which nodes lie in which domain."""

    def __init__(self) -> None:
        self._masks: dict[str, dict[tuple[str, ...], int]] = {level: {} for level in LEVELS}

    def add(self, path: tuple[str, ...], bit: int) -> None:
        for level, domain in self.of(path):
            masks = self._masks[level]
            masks[domain] = masks.get(domain, 0) | bit

    def remove(self, path: tuple[str, ...], bit: int) -> None:
        for level, domain in self.of(path):
            self._masks[level][domain] &= ~bit

    @staticmethod
    def of(path: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        """(level, path) of every domain that a node with this path of labels is in; "" is a label that it lacks."""
        path = path[-len(LEVELS) :]
        first = len(LEVELS) - len(path)
        return [(LEVELS[first + at], path[: at + 1]) for at, label in enumerate(path) if label]

    def masks(self, level: str) -> dict[tuple[str, ...], int]:
        return self._masks.get(level, {})

    def climb(self, wanted: Topology, mask: int) -> Iterator[list[int]]:
        """Domains to try together, the narrowest level first, cut to ``mask``."""
        levels = list(reversed(LEVELS))  # rack, block
        if wanted.level == "host":
            yield [1 << i for i in range(mask.bit_length()) if mask >> i & 1]
        else:
            levels = levels[levels.index(wanted.level) :] if wanted.level in levels else []
            if levels:
                yield self._cut(levels[0], mask)
                levels = levels[1:]
        if wanted.required:
            return
        for level in levels:
            yield self._cut(level, mask)
        yield [mask]

    def _cut(self, level: str, mask: int) -> list[int]:
        """By their first node: in which order domains became known depends on nodes that may be gone."""
        found = [domain & mask for domain in self._masks[level].values() if domain & mask]
        return sorted(found, key=lambda domain: domain & -domain)
