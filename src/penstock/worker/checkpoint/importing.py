"""Make a checkpoint of tensors that others wrote: what imports of every kind share, and safetensors (no torch needed).

The tensors are not held in memory: each is fetched when its turn in the file comes. What is imported has hashes from
then on; what it was before nobody can verify, so that only its form is checked.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from penstock.worker.checkpoint import folder, saving
from penstock.worker.checkpoint.errors import CheckpointError, Damaged
from penstock.worker.checkpoint.layout import SIZES, Box, make_layout, read_header
from penstock.worker.checkpoint.memory import Bytes
from penstock.worker.checkpoint.writing import Segment, Source

INDEX: Final = "model.safetensors.index.json"
_HEADER: Final = 100 << 20  # bytes: the longest header that the safetensors library reads


@dataclass(slots=True)
class Found:
    """What stands at the source: boxes with a way to fetch each, and the plain state."""

    source: str
    boxes: list[tuple[Box, Callable[[], Bytes]]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def write_imported(found: Found, directory: str, step: int) -> tuple[folder.Entry, int]:
    """Commit what was found as a checkpoint that a training goes on from at ``step``; answers it and its bytes.

    Raises FolderInUse, CheckpointError where the boxes make no whole tensors, or OSError.
    """
    if not found.boxes:
        raise CheckpointError(f"{found.source} has no tensors")
    os.makedirs(directory, exist_ok=True)
    lock = folder.Lock(directory, {"job": ""}, patience=0.0)
    lock.take()
    try:
        series = folder.new_series(folder.entries(directory))
        folder.clear(directory, series)
        ticket = saving.Ticket(
            directory=os.path.abspath(directory),
            id=folder.save_id(series, 1),
            step=max(step - 1, 0),
            origin={"imported": found.source, "next": step},
        )
        layout = make_layout(saving.shard_name(0), [box for box, _ in found.boxes])
        fetch = {(box.name, box.offsets): get for box, get in found.boxes}
        header = np.frombuffer(layout.header(saving.notes_of(ticket)), np.uint8)
        turn = _Turn()
        parts = [
            Segment(box.nbytes, partial(turn.of, fetch[box.name, box.offsets])) for box in layout.boxes if box.nbytes
        ]
        try:
            saving.begin(ticket)
            source = Source((Segment(len(header), lambda: header), *parts), twice=False)
            part = saving.write_part(ticket, source, layout, {}, found.state)
            path, manifest = saving.conclude(ticket, part)
        except BaseException as error:
            saving.give_up(ticket, error)
            raise
    finally:
        lock.release()
    return folder.Entry(path, ticket.step, ticket.id), manifest.size


class _Turn:
    """The one tensor whose turn it is: fetched once while the writer goes through it, and let go for the next."""

    def __init__(self) -> None:
        self._whose: Callable[[], Bytes] | None = None
        self._data: Bytes = np.empty(0, np.uint8)

    def of(self, get: Callable[[], Bytes]) -> Bytes:
        if self._whose is not get:
            self._whose, self._data = get, np.empty(0, np.uint8)
            self._data = get()
        return self._data


# -------------------------------------------------------------------------------------------------------- safetensors


def is_safetensors(source: str) -> bool:
    return source.endswith(".safetensors") or os.path.exists(os.path.join(source, INDEX)) or bool(_alone(source))


def kind_of(source: str) -> str:
    """What else a source is, for a process with torch: a folder of DCP's, or a file of torch.save."""
    if not os.path.isdir(source):
        return "torch"
    if not os.path.exists(os.path.join(source, ".metadata")):
        hint = f"A folder of Hugging Face has {INDEX} or one .safetensors file, one of DCP has .metadata."
        raise CheckpointError(f"{source} is no checkpoint of a kind that is known", hint=hint)
    return "dcp"


def find_safetensors(source: str, part: str) -> Found:
    """The tensors of one file, or of a folder as Hugging Face keeps it, as those of ``part``. Raises Damaged."""
    found = Found(source)
    for path, names in _files(source).items():
        there = dict(_boxes(path, part))
        for name in sorted(names if names is not None else there):
            if name not in there:
                raise Damaged(f"{path} has no tensor {name}, which {INDEX} places there")
            found.boxes.append(there[name])
    found.state[part] = {"kind": "module", "rest": {}}
    return found


def _files(source: str) -> dict[str, set[str] | None]:
    """The files, and the tensors that the index places in each (None: all that it has)."""
    if not os.path.isdir(source):
        return {source: None}
    index = os.path.join(source, INDEX)
    if not os.path.exists(index):
        return {os.path.join(source, _alone(source)): None}
    try:
        with open(index, "rb") as file:
            placed = json.load(file)["weight_map"]
        named: dict[str, set[str]] = {}
        for name, file_name in placed.items():
            if os.path.basename(file_name) != file_name:
                raise Damaged(f"{index} names {file_name}, which lies outside the folder")
            named.setdefault(os.path.join(source, file_name), set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{index} is no index of safetensors files") from error
    return dict(named)


def _alone(source: str) -> str:
    """The one safetensors file of a folder; empty where there is none, or more than one."""
    try:
        names = [name for name in os.listdir(source) if name.endswith(".safetensors")]
    except OSError:
        return ""
    return "model.safetensors" if "model.safetensors" in names else names[0] if len(names) == 1 else ""


def _boxes(path: str, part: str) -> Sequence[tuple[str, tuple[Box, Callable[[], Bytes]]]]:
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            first = file.read(8)
            data = first + file.read(min(int.from_bytes(first, "little"), _HEADER, size))
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error
    header, data_start = _header(data, path, size)
    notes = header.pop("__metadata__", {})
    if isinstance(notes, dict) and "DCP_SHARDING_INFO" in notes:
        raise CheckpointError(f"{path} is a shard of DCP's Hugging Face writer", hint="Consolidate it with DCP first.")
    rows = []
    for name, row in header.items():
        dtype, shape, begin, end = _row(row, f"{path}: {name}")
        if data_start + end > size:
            raise Damaged(f"{path} ends before {name} does")
        zeros = (0,) * len(shape)
        box = Box(f"{part}.{name}", dtype, shape, zeros, shape)
        if end - begin != box.nbytes:
            raise Damaged(f"{path}: {name} is {dtype} {list(shape)} and has {end - begin} bytes")
        rows.append((name, (box, _mapped(path, data_start + begin, box.nbytes))))
    return rows


def _header(data: bytes, path: str, size: int) -> tuple[dict[str, Any], int]:
    try:
        header, start = read_header(data, path, size)
    except ValueError as error:
        raise Damaged(f"{path}: its header is no JSON") from error
    return header, start


def _row(row: Any, what: str) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = row["dtype"], tuple(map(int, row["shape"])), row["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{what} is described in a way that is not safetensors'") from error
    if dtype not in SIZES:
        raise CheckpointError(f"{what} has the type {dtype}, which is not known here")
    if min(shape, default=0) < 0 or not 0 <= begin <= end or end - begin != math.prod(shape) * SIZES[dtype]:
        raise Damaged(f"{what} is {dtype} {list(shape)}, and stands at bytes {begin} to {end}")
    return dtype, shape, begin, end


def _mapped(path: str, start: int, size: int) -> Callable[[], Bytes]:
    return lambda: np.memmap(path, np.uint8, "r", start, (size,)) if size else np.empty(0, np.uint8)
