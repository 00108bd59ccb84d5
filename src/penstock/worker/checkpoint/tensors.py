"""Tensors as boxes of bytes: what of each lies on this rank, and which rank writes it.

A DTensor's shard is a box of the whole. A plain tensor is taken to be the same on every rank (as data-parallel
training keeps it), so that one rank writes it: each in turn the one with the least to write.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from penstock.worker.checkpoint.errors import Unencodable
from penstock.worker.checkpoint.layout import Box
from penstock.worker.checkpoint.memory import Bytes

_NAMES: Final[dict[torch.dtype, str]] = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.uint16: "U16", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.uint32: "U32", torch.int32: "I32", torch.float32: "F32", torch.uint64: "U64",
    torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.complex128: "C128",
}  # fmt: skip
DTYPES: Final[dict[str, torch.dtype]] = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor's box on this rank and the memory it lies in."""

    box: Box
    local: torch.Tensor
    owned: bool | None  # whether this rank writes it; None: whoever has the least to write


def dtype_name(name: str, dtype: torch.dtype) -> str:
    found = _NAMES.get(dtype)
    if found is None:
        raise Unencodable(f"{name} has the type {dtype}, which safetensors cannot hold")
    return found


def place(name: str, tensor: torch.Tensor) -> Placed:
    """Raises Unencodable for what is no dense tensor."""
    if isinstance(tensor, DTensor):
        return _place_dtensor(name, tensor)
    if tensor.layout is not torch.strided or tensor.is_quantized or type(tensor).__name__ == "ShardedTensor":
        raise Unencodable(
            f"{name} is a {type(tensor).__name__} of layout {tensor.layout}: only dense tensors are saved"
        )
    if tensor.is_meta:
        raise Unencodable(f"{name} is on the meta device: it has no values")
    shape = tuple(tensor.shape)
    box = Box(name, dtype_name(name, tensor.dtype), shape, (0,) * len(shape), shape)
    return Placed(box, tensor.detach(), None)


def _place_dtensor(name: str, tensor: Any) -> Placed:
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise Unencodable(f"{name} is a DTensor with pending partial sums: redistribute it first")
    shape, offsets = _where(tuple(tensor.shape), mesh, placements)
    local = tensor.detach().to_local()
    coordinate = mesh.get_coordinate()
    owned = coordinate is not None
    for dimension, placement in enumerate(placements):
        if owned and placement.is_replicate():
            owned = coordinate[dimension] == zlib.crc32(name.encode()) % mesh.size(dimension)
    box = Box(name, dtype_name(name, tensor.dtype), tuple(tensor.shape), tuple(offsets), tuple(shape))
    return Placed(box, local, owned)


@lru_cache(maxsize=65536)
def _where(shape: tuple[int, ...], mesh: Any, placements: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape and the offsets of this rank's part: the same at every save, and part of what the loop waits for."""
    found, offsets = compute_local_shape_and_global_offset(torch.Size(shape), mesh, placements)
    return tuple(found), tuple(offsets)


def written_here(placed: Iterable[Placed], rank: int, world_size: int) -> list[Placed]:
    """What ``rank`` writes. Every rank comes to the same division of what all of them have."""
    load = [0] * world_size
    mine = []
    for item in placed:
        if item.owned is None:
            owner = min(range(world_size), key=load.__getitem__)
            load[owner] += item.box.nbytes
            if owner == rank:
                mine.append(item)
        elif item.owned and item.box.nbytes:
            mine.append(item)
    return mine


def as_bytes(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous CPU tensor."""
    if not tensor.numel():
        return np.empty(0, np.uint8)
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def is_one_run(tensor: torch.Tensor) -> bool:
    """Whether its memory, wherever it is, holds its values in their order."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def is_flat(tensor: torch.Tensor) -> bool:
    """Whether its memory can be read and written from here as it lies."""
    return tensor.device.type == "cpu" and is_one_run(tensor)


_WRAPPED: Final = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.)")


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile and other wrappers put into it."""
    return _WRAPPED.sub("", name).lstrip(".")


def overlap(
    a_offsets: Sequence[int], a_shape: Sequence[int], b_offsets: Sequence[int], b_shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The box that two boxes share, as global offsets and shape."""
    starts = tuple(max(a, b) for a, b in zip(a_offsets, b_offsets, strict=True))
    ends = (min(ao + al, bo + bl) for ao, al, bo, bl in zip(a_offsets, a_shape, b_offsets, b_shape, strict=True))
    shape = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return None if any(size <= 0 for size in shape) else (starts, shape)
