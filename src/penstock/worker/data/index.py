"""What a litdata folder says of itself: its chunks and how many tokens each has. Needs NumPy alone.

`penstock data prepare` also writes a hash of each chunk there. Folders that litdata wrote have none; of those, sizes and
headers are all that can be checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash

from penstock.worker.data.errors import DataDamaged, DataError

INDEX: Final = "index.json"
HASHES: Final = "xxh3_128"  # the index's own key for them, which litdata takes no notice of
_RANGES: Final = 16
_READ: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Chunk:
    name: str
    size: int  # bytes of the file, as long as it is not compressed
    items: int  # pieces that were put in: documents, say
    tokens: int
    hash: str  # empty where nobody took one


@dataclass(frozen=True, slots=True)
class Index:
    folder: str
    chunks: tuple[Chunk, ...]
    compression: str
    format: str

    @property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def samples(self, block_size: int) -> list[int]:
        """How many blocks each chunk has; what is left of a chunk after its last whole block is not read."""
        return [chunk.tokens // block_size for chunk in self.chunks]

    def digests(self) -> list[str]:
        """Of up to 16 ranges of chunks: two folders with the same ones hold the same data, as far as is known."""
        found = []
        for start, stop in self.ranges():
            rows = [[c.name, c.size, c.items, c.tokens, c.hash] for c in self.chunks[start:stop]]
            found.append(hashlib.sha256(json.dumps([self.format, rows]).encode()).hexdigest()[:16])
        return found

    def ranges(self) -> list[tuple[int, int]]:
        count = len(self.chunks)
        parts = min(count, _RANGES)
        return [(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def read_index(folder: str) -> Index:
    """Raises DataError for what is no data set of tokens."""
    path = os.path.join(folder, INDEX)
    body = _read_json(path)
    try:
        config, rows = body["config"], body["chunks"]
        hashes = dict(body.get(HASHES, {}))
        chunks = tuple(_chunk(row, hashes) for row in rows)
        found = Index(
            os.path.abspath(folder), chunks, str(config.get("compression") or ""), ",".join(config["data_format"] or ())
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not an index that litdata wrote: {error!r}") from error
    if not chunks or not found.tokens:
        raise DataError(f"{folder} is an empty data set: it has no tokens")
    return found


def _chunk(row: dict[str, Any], hashes: dict[str, str]) -> Chunk:
    if row["dim"] is None:
        raise ValueError(f"{row['filename']} holds no tokens: it was not written with TokensLoader")
    name = str(row["filename"])
    return Chunk(name, int(row["chunk_bytes"]), int(row["chunk_size"]), int(row["dim"]), str(hashes.get(name, "")))


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise DataError(
            f"{os.path.dirname(path)} is no data set: it has no {os.path.basename(path)}",
            hint="`penstock data prepare` makes one from tokens; so does litdata's optimize with TokensLoader.",
        ) from error
    except (OSError, ValueError) as error:
        raise DataDamaged(f"{path}: {error}") from error


def chunk_fault(index: Index, chunk: Chunk, *, read: bool = False) -> str:
    """What is wrong with a chunk, empty where nothing is. ``read`` reads it to the last byte, where it has a hash."""
    path = os.path.join(index.folder, chunk.name)
    try:
        size = os.stat(path).st_size
        if index.compression:
            return _hash_fault(path, chunk) if read else ""
        if size != chunk.size:
            return f"it has {size} bytes, and was written with {chunk.size}"
        if not read:
            return ""
        return _header_fault(path, chunk) or _hash_fault(path, chunk)
    except OSError as error:
        return str(error.strerror)


def _header_fault(path: str, chunk: Chunk) -> str:
    with open(path, "rb") as file:
        words = np.frombuffer(file.read(4 * (chunk.items + 2)), dtype="<u4")
    if len(words) != chunk.items + 2 or words[0] != chunk.items:
        return f"its header does not speak of {chunk.items} items"
    if np.any(np.diff(words[1:].astype(np.int64)) < 0) or words[-1] != chunk.size:
        return "its header's offsets are not in order"
    return ""


def _hash_fault(path: str, chunk: Chunk) -> str:
    if not chunk.hash:
        return ""
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ):
            state.update(block)
    return "" if state.hexdigest() == chunk.hash else "its bytes are not those that were written"
