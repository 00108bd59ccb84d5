"""What follows a commit where each node has a folder of its own (nodes.py): reading back, removing, copying to tiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.nodes import Nodes, own_files
from penstock.worker.checkpoint.retention import to_remove
from penstock.worker.checkpoint.tiers import Place
from penstock.worker.checkpoint.upkeep import Shelf

Say = Callable[[str], None]
_COPIES = 1  # the group of nodes.py that copies meet in


def prune_apart(nodes: Nodes, shelf: Shelf, entry: folder.Entry, say: Say) -> None:
    """On every rank: a checkpoint counts when all nodes have read their share of it; each removes what may go."""
    try:
        if not shelf.read_back or nodes.verify(entry):
            shelf.verified.add(entry.id)
        elif nodes.rank == 0:
            say(f"step {entry.step} is not whole on every node, and counts for nothing")
        if nodes.leads:
            for old in to_remove(folder.entries(nodes.directory), shelf.verified, shelf.keep, shelf.every):
                folder.remove(old.path)
    except (OSError, CheckpointError) as error:
        say(f"old checkpoints could not be removed: {error}")


def promote_apart(
    nodes: Nodes, tiers: Sequence[Place], entry: folder.Entry, newest: Callable[[], str], say: Say
) -> None:
    """On every rank: each node carries its own files to every tier, and rank 0 puts them together there."""
    for tier in tiers:
        try:
            _copied(nodes, tier, entry, newest)
        except CheckpointError as error:
            if nodes.rank == 0:
                say(f"step {entry.step} was not copied to {tier.directory}: {error}")


def _copied(nodes: Nodes, tier: Place, entry: folder.Entry, newest: Callable[[], str]) -> None:
    if nodes.agree(lambda: _begins(nodes, tier, entry, newest()), _COPIES)[0]:
        nodes.agree(lambda: _carries(nodes, tier, entry), _COPIES)
        nodes.agree(lambda: tier.conclude(entry) if nodes.rank == 0 else None, _COPIES)


def _begins(nodes: Nodes, tier: Place, entry: folder.Entry, newest: str) -> bool:
    """Rank 0 decides: what a newer one has overtaken is left out."""
    return nodes.rank == 0 and newest == entry.id and tier.begin(entry)


def _carries(nodes: Nodes, tier: Place, entry: folder.Entry) -> None:
    if nodes.leads:
        tier.carry(entry, own_files(folder.checked_manifest(entry), nodes.index))
