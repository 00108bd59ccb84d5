"""What is different about a checkpoint that was imported: it may lack what the format that it came from has no place for."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.worker.checkpoint.manifest import Manifest
from penstock.worker.checkpoint.tensors import Placed


def is_imported(manifest: Manifest) -> bool:
    return "imported" in manifest.origin


def without_twins(manifest: Manifest, placed: Sequence[Placed]) -> list[Placed]:
    """Hugging Face keeps tied tensors under one of their names: the other is filled with it, being the same memory."""
    there = manifest.by_name()
    filled = {_memory(item) for item in placed if item.box.name in there}
    return [item for item in placed if item.box.name in there or _memory(item) not in filled]


def _memory(item: Placed) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return item.local.data_ptr(), tuple(item.local.shape), tuple(item.local.stride())
