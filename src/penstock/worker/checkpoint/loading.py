"""From a checkpoint's files into tensors, whoever wrote which part of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch

from penstock.worker.checkpoint.errors import Damaged, OtherModel
from penstock.worker.checkpoint.layout import SIZES, Box
from penstock.worker.checkpoint.manifest import Manifest, Piece, Tensor
from penstock.worker.checkpoint.memory import Bytes
from penstock.worker.checkpoint.reading import Want, read_files
from penstock.worker.checkpoint.tensors import DTYPES, Placed, as_bytes, is_flat, is_one_run, overlap


def compare(manifest: Manifest, placed: Sequence[Placed], prefixes: Iterable[str]) -> None:
    """Raises OtherModel, naming the first tensor that differs and both its shapes."""
    theirs = manifest.by_name()
    for item in placed:
        box, found = item.box, theirs.get(item.box.name)
        if found is None:
            raise OtherModel(f"{box.name} {list(box.whole)} is not in the checkpoint of step {manifest.step}")
        if found.shape != box.whole:
            raise OtherModel(f"{box.name} is {list(box.whole)} here and {list(found.shape)} in the checkpoint")
        if found.dtype != box.dtype:
            raise OtherModel(f"{box.name} is {box.dtype} here and {found.dtype} in the checkpoint")
        if fault := found.fault():
            raise Damaged(fault)
    ours = {item.box.name for item in placed}
    for name in (name for prefix in prefixes for name in theirs if name.startswith(f"{prefix}.")):
        if name not in ours:
            raise OtherModel(f"{name} {list(theirs[name].shape)} of the checkpoint is not here")


def fill(folder: str, manifest: Manifest, placed: Sequence[Placed], rank: int, world_size: int) -> None:
    """Read, verified, what lies on this rank; of the rest this rank verifies its share. Raises Damaged."""
    plan = Filling(manifest)
    for item in placed:
        plan.add(item.box, item.local)
    every = frozenset(file.name for index, file in enumerate(manifest.files) if index % world_size == rank)
    read_files(folder, manifest.files, plan.wants, every)
    plan.finish()


class Filling:
    """Which bytes of which file go where, and the copies that follow where memory is no single run."""

    def __init__(self, manifest: Manifest) -> None:
        self.tensors = manifest.by_name()
        self.wants: dict[str, list[Want]] = {}
        self._after: list[Callable[[], object]] = []

    def add(self, box: Box, local: torch.Tensor) -> None:
        tensor = self.tensors[box.name]
        filled, seen = 0, set()
        for piece in tensor.pieces:
            shared = overlap(piece.offsets, piece.shape, box.offsets, box.shape)
            if shared is not None and piece.offsets not in seen:
                seen.add(piece.offsets)
                self._add_piece(tensor, piece, box, local, shared)
                filled += math.prod(shared[1])
        if filled != math.prod(box.shape):
            raise Damaged(f"{box.name}: the checkpoint does not hold all of it")

    def _add_piece(
        self,
        tensor: Tensor,
        piece: Piece,
        box: Box,
        local: torch.Tensor,
        shared: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        starts, shape = shared
        width = SIZES[tensor.dtype]
        source = _run(piece.offsets, piece.shape, starts, shape)
        as_it_lies = is_one_run(local) and local.dtype == DTYPES[tensor.dtype]
        target = _run(box.offsets, box.shape, starts, shape) if as_it_lies else None
        if source is not None and target is not None:
            begin, end = target * width, (target + math.prod(shape)) * width
            into = as_bytes(local)[begin:end] if is_flat(local) else OnDevice(local, begin, end)
            self.wants.setdefault(piece.file, []).append(Want(piece.start + source * width, into))
            return
        # The two lie differently: the piece is read beside, and its box copied when all is verified.
        beside = torch.empty(piece.shape, dtype=DTYPES[tensor.dtype])
        self.wants.setdefault(piece.file, []).append(Want(piece.start, as_bytes(beside)))
        there = _slices(starts, shape, piece.offsets)
        here = _slices(starts, shape, box.offsets)
        self._after.append(lambda: local[here].copy_(beside[there]))

    @torch.no_grad()
    def finish(self) -> None:
        for step in self._after:
            step()


class OnDevice:
    """Bytes of a tensor on a device. They go there chunk by chunk, so that the host holds no second copy of the whole."""

    def __init__(self, tensor: torch.Tensor, begin: int, end: int) -> None:
        self._memory = tensor.detach().view(-1).view(torch.uint8)[begin:end]

    def __len__(self) -> int:
        return len(self._memory)

    def put(self, at: int, data: Bytes) -> None:
        self._memory[at : at + len(data)].copy_(torch.from_numpy(data))


def _run(offsets: Sequence[int], shape: Sequence[int], starts: Sequence[int], part: Sequence[int]) -> int | None:
    """Where ``part`` begins, in elements, if it is one run of the box's memory; None if it is not."""
    if not shape:
        return 0
    if tuple(part[1:]) != tuple(shape[1:]):
        return None
    return (starts[0] - offsets[0]) * math.prod(shape[1:])


def _slices(starts: Sequence[int], shape: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s - o, s - o + n) for s, o, n in zip(starts, origin, shape, strict=True))
