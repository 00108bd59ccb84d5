"""What a checkpoint says of itself: its tensors, its files, a hash of each chunk, and the plain state.

The manifest is one JSON file whose every byte is covered: a fixed beginning, a seal, and the body that the seal is of.
A rank's part has the same form and is merged by rank 0; a part never makes a checkpoint, only the manifest does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint.errors import CheckpointError, Damaged, NewerFormat

FORMAT: Final = 1
NAME: Final = "manifest.json"
_HEAD, _MIDDLE, _TAIL = b'{"seal":"', b'","body":', b"}\n"
_DIGITS: Final = 32  # of a hash in hexadecimal


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and where its bytes stand: ``start`` counts from the file's first byte."""

    file: str
    start: int
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str  # as safetensors has it: F32, BF16, I64
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def fault(self) -> str:
        """Why the pieces do not make the whole tensor; empty where they do."""
        boxes = {(piece.offsets, piece.shape) for piece in self.pieces if piece.numel}
        if sum(math.prod(shape) for _, shape in boxes) != math.prod(self.shape):
            return f"{self.name}: the pieces of all ranks do not add up to {list(self.shape)}"
        if len({offsets for offsets, _ in boxes}) != len(boxes):
            return f"{self.name}: two ranks wrote different pieces at one place"
        for offsets, shape in boxes:
            if any(o < 0 or o + s > whole for o, s, whole in zip(offsets, shape, self.shape, strict=True)):
                return f"{self.name}: a piece lies outside {list(self.shape)}"
        return ""


@dataclass(frozen=True, slots=True)
class File:
    name: str
    size: int
    chunk: int  # bytes that one hash covers
    hashes: str  # of every chunk, one behind the other

    def digest(self, index: int) -> str:
        return self.hashes[index * _DIGITS : (index + 1) * _DIGITS]

    @property
    def chunks(self) -> int:
        return -(-self.size // self.chunk)


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank wrote. ``state`` is the rank's own; ``shared`` is said by rank 0 for all."""

    rank: int
    files: tuple[File, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    id: str
    step: int
    world_size: int
    at: float
    files: tuple[File, ...]
    tensors: tuple[Tensor, ...]
    state: Mapping[str, Any]
    ranks: tuple[Mapping[str, Any], ...]
    origin: Mapping[str, Any] = field(default_factory=dict)  # job, attempt, host
    format: int = FORMAT

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}


def merged(save_id: str, step: int, at: float, parts: Sequence[Part], origin: Mapping[str, Any]) -> Manifest:
    """One manifest from every rank's part. Raises CheckpointError where they do not make whole tensors."""
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for tensor in part.tensors:
            known = tensors.get(tensor.name)
            if known is None:
                tensors[tensor.name] = tensor
            elif (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
                raise CheckpointError(
                    f"{tensor.name} is {known.dtype} {list(known.shape)} on one rank and "
                    f"{tensor.dtype} {list(tensor.shape)} on rank {part.rank}"
                )
            else:
                pieces = known.pieces + tensor.pieces
                tensors[tensor.name] = Tensor(tensor.name, tensor.dtype, tensor.shape, pieces)
    for tensor in tensors.values():
        if fault := tensor.fault():
            raise CheckpointError(fault)
    return Manifest(
        id=save_id,
        step=step,
        world_size=len(parts),
        at=at,
        files=tuple(file for part in parts for file in part.files),
        tensors=tuple(tensors[name] for name in sorted(tensors)),
        state=parts[0].shared,
        ranks=tuple(part.state for part in parts),
        origin=origin,
    )


# ------------------------------------------------------------------------------------------------------ as bytes


def seal(body: Any) -> bytes:
    raw = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((_HEAD, xxh3_128_hexdigest(raw).encode(), _MIDDLE, raw, _TAIL))


def unseal(data: bytes, what: str) -> Any:
    """Raises Damaged where a byte is not as it was sealed."""
    begin = len(_HEAD) + _DIGITS + len(_MIDDLE)
    raw = data[begin : -len(_TAIL)]
    if data[:1] == b"\x80" or data[:2] == b"PK":
        raise Damaged(f"{what} is a pickle or an archive of one: it is not read, since reading can run code")
    if (
        data[: len(_HEAD)] != _HEAD
        or data[len(_HEAD) + _DIGITS : begin] != _MIDDLE
        or data[-len(_TAIL) :] != _TAIL
        or data[len(_HEAD) : len(_HEAD) + _DIGITS] != xxh3_128_hexdigest(raw).encode()
    ):
        raise Damaged(f"{what} is not as it was written")
    return json.loads(raw)


def part_bytes(part: Part) -> bytes:
    return seal(
        {
            "rank": part.rank,
            "files": _files(part.files),
            "tensors": _tensors(part.tensors),
            "state": part.state,
            "shared": part.shared,
        }
    )


def read_part(data: bytes, what: str) -> Part:
    body = unseal(data, what)
    return Part(body["rank"], _read_files(body["files"]), _read_tensors(body["tensors"]), body["state"], body["shared"])


def manifest_bytes(manifest: Manifest) -> bytes:
    return seal(
        {
            "format": manifest.format,
            "id": manifest.id,
            "step": manifest.step,
            "world_size": manifest.world_size,
            "at": manifest.at,
            "origin": manifest.origin,
            "files": _files(manifest.files),
            "tensors": _tensors(manifest.tensors),
            "state": manifest.state,
            "ranks": list(manifest.ranks),
        }
    )


def read_manifest(data: bytes, what: str) -> Manifest:
    """Raises Damaged, or NewerFormat before anything else of the body is believed."""
    body = unseal(data, what)
    if body["format"] > FORMAT:
        raise NewerFormat(f"{what} has format {body['format']}; this Penstock reads up to {FORMAT}")
    return Manifest(
        id=body["id"],
        step=body["step"],
        world_size=body["world_size"],
        at=body["at"],
        files=_read_files(body["files"]),
        tensors=_read_tensors(body["tensors"]),
        state=body["state"],
        ranks=tuple(body["ranks"]),
        origin=body["origin"],
        format=body["format"],
    )


def _files(files: Iterable[File]) -> list[Any]:
    return [{"name": f.name, "size": f.size, "chunk": f.chunk, "hashes": f.hashes} for f in files]


def _read_files(rows: Iterable[Mapping[str, Any]]) -> tuple[File, ...]:
    return tuple(File(row["name"], row["size"], row["chunk"], row["hashes"]) for row in rows)


def _tensors(tensors: Iterable[Tensor]) -> dict[str, Any]:
    return {
        t.name: {
            "dtype": t.dtype,
            "shape": t.shape,
            "pieces": [[p.file, p.start, p.offsets, p.shape] for p in t.pieces],
        }
        for t in tensors
    }


def _read_tensors(rows: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name,
            row["dtype"],
            tuple(row["shape"]),
            tuple(Piece(file, start, tuple(offsets), tuple(shape)) for file, start, offsets, shape in row["pieces"]),
        )
        for name, row in rows.items()
    )
