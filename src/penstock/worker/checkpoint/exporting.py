"""A checkpoint's tensors as one safetensors file, whoever saved which part of them. Needs no torch."""

from __future__ import annotations

import math
import os

import numpy as np

from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.layout import SIZES, Box, make_layout
from penstock.worker.checkpoint.manifest import Manifest, Piece, Tensor
from penstock.worker.checkpoint.memory import Bytes
from penstock.worker.checkpoint.reading import Want, read_files
from penstock.worker.checkpoint.writing import gathered, sync_folder, write_shard


def export(folder: str, manifest: Manifest, out: str, part: str) -> tuple[int, int]:
    """Write the tensors of ``part``, verified and under their own names; answers their number and the file's bytes.

    Raises CheckpointError where there are none, Damaged where a byte is not as it was written.
    """
    chosen = [tensor for tensor in manifest.tensors if tensor.name.startswith(f"{part}.")]
    if not chosen:
        parts = sorted({tensor.name.split(".")[0] for tensor in manifest.tensors})
        raise CheckpointError(f"no tensors of {part!r} in {folder}", hint=f"It has tensors of: {', '.join(parts)}.")
    whole = {tensor.name: np.empty(math.prod(tensor.shape) * SIZES[tensor.dtype], np.uint8) for tensor in chosen}
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
    names = {tensor.name.removeprefix(f"{part}."): tensor for tensor in chosen}
    zeros = {name: (0,) * len(tensor.shape) for name, tensor in names.items()}
    layout = make_layout(
        os.path.basename(out),
        [Box(name, tensor.dtype, tensor.shape, zeros[name], tensor.shape) for name, tensor in names.items()],
    )
    header = np.frombuffer(layout.header({"format": "pt", "step": str(manifest.step)}), np.uint8)
    temporary = f"{out}.tmp-{os.getpid()}"
    try:
        file = write_shard(temporary, gathered([header, *(whole[f"{part}.{box.name}"] for box in layout.boxes)]))
        os.rename(temporary, out)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    sync_folder(os.path.dirname(os.path.abspath(out)))
    return len(chosen), file.size
