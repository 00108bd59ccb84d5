"""How a rank's shard file is laid out: as safetensors, so that anyone can read it, with the data on a page boundary.

A safetensors file is a length, a JSON header, and the tensors without gaps. The header is filled up with spaces to a
whole number of pages: the data can then be written past the page cache from an aligned buffer. Tensors come in the
order of falling element size, so that each is aligned to its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.worker.checkpoint.errors import Damaged
from penstock.worker.checkpoint.manifest import Piece, Tensor

PAGE: Final = 4096
_ROOM: Final = 256  # bytes kept for what differs from save to save
SIZES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8, "C128": 16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Box:
    """What a rank has of a tensor: the global shape, and the part of it that lies here."""

    name: str
    dtype: str
    whole: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each box's bytes stand in the file, in file order."""

    file: str
    boxes: tuple[Box, ...]
    starts: tuple[int, ...]
    data_start: int
    size: int

    def tensors(self) -> tuple[Tensor, ...]:
        """What this file says to the manifest."""
        pieces: dict[str, list[Piece]] = {}
        of: dict[str, Box] = {}
        for box, start in zip(self.boxes, self.starts, strict=True):
            pieces.setdefault(box.name, []).append(Piece(self.file, start, box.offsets, box.shape))
            of[box.name] = box
        return tuple(Tensor(name, of[name].dtype, of[name].whole, tuple(found)) for name, found in pieces.items())

    def header(self, notes: Mapping[str, str]) -> bytes:
        """The file's first ``data_start`` bytes."""
        raw = _header(self.boxes, notes)
        if len(raw) > self.data_start - 8:
            raise ValueError("these notes are longer than what was kept for them")
        return (self.data_start - 8).to_bytes(8, "little") + raw.ljust(self.data_start - 8)


def make_layout(file: str, boxes: Iterable[Box]) -> Layout:
    ordered = tuple(sorted(boxes, key=lambda box: -SIZES[box.dtype]))
    data_start = -(-(8 + len(_header(ordered, {})) + _ROOM) // PAGE) * PAGE
    starts, at = [], data_start
    for box in ordered:
        starts.append(at)
        at += box.nbytes
    return Layout(file, ordered, tuple(starts), data_start, at)


def _header(boxes: Iterable[Box], notes: Mapping[str, str]) -> bytes:
    body: dict[str, Any] = {"__metadata__": dict(notes)}
    at = 0
    for box in boxes:
        name = box.name if box.name not in body else f"{box.name}@{','.join(map(str, box.offsets))}"
        dtype, shape = ("F64", (*box.shape, 2)) if box.dtype == "C128" else (box.dtype, box.shape)  # which it lacks
        body[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + box.nbytes]}
        at += box.nbytes
    return json.dumps(body, separators=(",", ":")).encode()


def read_header(data: bytes, what: str, size: int) -> tuple[dict[str, Any], int]:
    """A safetensors file's header from its first bytes, and where its data begin. Raises Damaged."""
    length = int.from_bytes(data[:8], "little")
    if data[:1] == b"\x80" or data[:2] == b"PK":
        raise Damaged(f"{what} is a pickle or an archive of one, not a tensor file: it is not read")
    if len(data) < 8 or length > size - 8 or data[8:9] != b"{":
        raise Damaged(f"{what} is no safetensors file")
    return json.loads(data[8 : 8 + length]), 8 + length
