"""A checkpoint's tensors as safetensors, whoever saved which part of them: one file, or a folder as Hugging Face keeps it.

Needs no torch. What is written has its name only when all of it is on the disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.importing import INDEX
from penstock.worker.checkpoint.layout import SIZES, Box, make_layout
from penstock.worker.checkpoint.manifest import File, Manifest, Piece, Tensor
from penstock.worker.checkpoint.memory import Bytes
from penstock.worker.checkpoint.reading import Want, read_files
from penstock.worker.checkpoint.writing import gathered, sync_folder, write_shard, write_small


def export(folder: str, manifest: Manifest, out: str, part: str) -> tuple[int, int]:
    """Write the tensors of ``part``, verified and under their own names; answers their number and the file's bytes.

    Raises CheckpointError where there are none, Damaged where a byte is not as it was written.
    """
    chosen = _chosen(folder, manifest, part)
    with finished(out) as temporary:
        file = _write(folder, manifest, temporary, part, chosen)
    return len(chosen), file.size


def export_folder(folder: str, manifest: Manifest, out: str, part: str, limit: int) -> tuple[int, int]:
    """As ``export``, into files of about ``limit`` bytes and an index. No more than one file is held in memory."""
    shards: list[list[Tensor]] = [[]]
    room = limit
    for tensor in _chosen(folder, manifest, part):
        if shards[-1] and _nbytes(tensor) > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= _nbytes(tensor)
    placed: dict[str, str] = {}
    with finished(out) as temporary:
        os.mkdir(temporary)
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write(folder, manifest, os.path.join(temporary, name), part, shard)
            placed |= {tensor.name.removeprefix(f"{part}."): name for tensor in shard}
        total = sum(_nbytes(tensor) for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        write_small(os.path.join(temporary, INDEX), json.dumps(index, indent=2).encode())
        sync_folder(temporary)
    return len(placed), total


@contextmanager
def finished(out: str) -> Iterator[str]:
    """A name beside ``out``, which becomes ``out`` when all is well. A folder that is there must be empty."""
    if os.path.isdir(out) and os.listdir(out):
        raise CheckpointError(f"{out} is a folder with something in it", hint="Name one that is not there yet.")
    out = os.path.abspath(out)
    temporary = f"{out}.tmp-{os.getpid()}"
    try:
        yield temporary
        if os.path.isdir(out):
            os.rmdir(out)
        os.rename(temporary, out)
    except BaseException:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        elif os.path.exists(temporary):
            os.unlink(temporary)
        raise
    sync_folder(os.path.dirname(out))


def _chosen(folder: str, manifest: Manifest, part: str) -> list[Tensor]:
    chosen = [tensor for tensor in manifest.tensors if tensor.name.startswith(f"{part}.")]
    if not chosen:
        parts = sorted({tensor.name.split(".")[0] for tensor in manifest.tensors})
        raise CheckpointError(f"no tensors of {part!r} in {folder}", hint=f"It has tensors of: {', '.join(parts)}.")
    return chosen


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * SIZES[tensor.dtype]


def _write(folder: str, manifest: Manifest, path: str, part: str, chosen: Sequence[Tensor]) -> File:
    whole = _gather(folder, manifest, chosen)
    names = {tensor.name.removeprefix(f"{part}."): tensor for tensor in chosen}
    zeros = {name: (0,) * len(tensor.shape) for name, tensor in names.items()}
    layout = make_layout(
        os.path.basename(path),
        [Box(name, tensor.dtype, tensor.shape, zeros[name], tensor.shape) for name, tensor in names.items()],
    )
    header = np.frombuffer(layout.header({"format": "pt", "step": str(manifest.step)}), np.uint8)
    return write_shard(path, gathered([header, *(whole[f"{part}.{box.name}"] for box in layout.boxes)]))


def _gather(folder: str, manifest: Manifest, chosen: Sequence[Tensor]) -> dict[str, Bytes]:
    """Each tensor whole, verified; the chunks that hold nothing of them are verified as well."""
    whole = {tensor.name: np.empty(_nbytes(tensor), np.uint8) for tensor in chosen}
    wants: dict[str, list[Want]] = {}
    beside: list[tuple[Tensor, Piece, Bytes]] = []
    for tensor in chosen:
        width = SIZES[tensor.dtype]
        for piece in tensor.pieces:
            size = piece.numel * width
            if piece.shape[1:] == tensor.shape[1:]:  # rows: one run of the whole
                first = piece.offsets[0] * math.prod(tensor.shape[1:]) * width if tensor.shape else 0
                into = whole[tensor.name][first : first + size]
            else:
                into = np.empty(size, np.uint8)
                beside.append((tensor, piece, into))
            wants.setdefault(piece.file, []).append(Want(piece.start, into))
    read_files(folder, manifest.files, wants, frozenset(file.name for file in manifest.files))
    for tensor, piece, data in beside:
        item = f"V{SIZES[tensor.dtype]}"
        where = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.shape, strict=True))
        whole[tensor.name].view(item).reshape(tensor.shape)[where] = data.view(item).reshape(piece.shape)
    return whole
