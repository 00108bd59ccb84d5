"""Tokens from files that people have, as the folder that litdata reads. Needs NumPy alone.

Chunks are whole multiples of the block size, so that no token is left over but at the very end. A folder appears under
its name when it is whole and on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash

from penstock.base.errors import OutOfSpace
from penstock.worker.data.errors import DataDamaged, DataError
from penstock.worker.data.index import HASHES, INDEX

# As litdata numbers NumPy's types; a test asks its own writer.
CODES: Final = {"int8": 0, "int16": 1, "int32": 2, "int64": 3, "uint8": 4, "uint16": 5, "uint32": 6}
_MEGATRON: Final = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_MAGIC: Final = b"MMIDIDX\x00\x00"
_PIECE: Final = 1 << 20  # tokens
_HEADER: Final = 12  # the count of items, and two offsets
_LARGEST: Final = 2**32 - 1  # offsets have 32 bits
_NO_SPACE: Final = (28, 122)  # ENOSPC, EDQUOT


@dataclass(frozen=True, slots=True)
class Options:
    dtype: str = ""  # as stored; the input's own where none is given
    block_size: int = 1
    chunk_bytes: int = 64 << 20
    as_bytes: bool = False  # any file's bytes are its tokens


@dataclass(frozen=True, slots=True)
class Prepared:
    tokens: int
    chunks: int
    dtype: str


def prepare(inputs: Sequence[str], out: str, options: Options = Options()) -> Prepared:
    """Raises DataError for what is no file of tokens, and leaves nothing behind then."""
    if "://" in out:
        raise DataError(f"{out} is no folder of this machine", hint="Prepare into a folder, and copy it there.")
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise DataError(f"{out} is there already", hint="Name a folder that is not there yet.")
    sources = [tokens_of(path, options) for path in inputs]
    dtype = options.dtype or _common(sources, inputs)
    if dtype not in CODES:
        raise DataError(f"tokens cannot be stored as {dtype}", hint=f"--dtype takes {', '.join(CODES)}.")
    room = min(options.chunk_bytes, _LARGEST - _HEADER)
    size = room // np.dtype(dtype).itemsize // options.block_size * options.block_size
    if size < 1:
        raise DataError(
            f"a chunk of {options.chunk_bytes} bytes does not hold one block of {options.block_size} tokens"
        )
    temporary = f"{os.path.abspath(out)}.tmp-{uuid.uuid4().hex[:8]}"
    os.makedirs(temporary)
    try:
        writer = _Writer(temporary, dtype)
        for piece in _chunks(_pieces(sources, inputs, dtype), size):
            writer.add(piece)
        done = writer.close()
        if os.path.isdir(out):
            os.rmdir(out)
        os.rename(temporary, out)
        _sync(os.path.dirname(os.path.abspath(out)))
        return done
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutOfSpace(f"{out}: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tokens_of(path: str, options: Options) -> np.ndarray[Any, Any]:
    """A file's tokens in a row, as they lie on the disk."""
    stem, suffix = os.path.splitext(path)
    try:
        if options.as_bytes:
            return _mapped(path, "uint8")
        if suffix == ".npy":
            loaded: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded.reshape(-1)
        if suffix == ".idx" or (suffix == ".bin" and os.path.exists(stem + ".idx")):
            return _megatron(stem)
        if suffix == ".bin" and options.dtype:
            return _mapped(path, options.dtype)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataDamaged(f"{path}: {error}", hint="The file is cut short, or not of its kind.") from error
    if suffix == ".bin":
        raise DataError(f"{path} does not say what its tokens are", hint="Say it: --dtype uint16, for example.")
    raise DataError(
        f"{path} is no file of tokens: .npy, .bin with .idx (Megatron), or .bin with --dtype",
        hint="For text: --bytes takes its bytes as tokens; docs/data.md shows litdata's optimize with a tokenizer.",
    )


def _mapped(path: str, dtype: str) -> np.ndarray[Any, Any]:
    size, item = os.path.getsize(path), np.dtype(dtype).itemsize
    if size % item:
        raise ValueError(f"{size} bytes are no whole number of {dtype}")
    return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)


def _megatron(stem: str) -> np.ndarray[Any, Any]:
    """An indexed dataset: every sequence, one after the other."""
    with open(stem + ".idx", "rb") as file:
        head = file.read(34)
        if len(head) < 34 or head[:9] != _MAGIC:
            raise ValueError("the .idx file is not one of Megatron's")
        version, code, count, _documents = struct.unpack("<QBQQ", head[9:])
        if version != 1 or code not in _MEGATRON:
            raise ValueError(f"version {version} of the index, with tokens of kind {code}, is not known")
        lengths = np.fromfile(file, dtype="<i4", count=count)
    tokens = _mapped(stem + ".bin", _MEGATRON[code])
    if len(lengths) != count or len(tokens) != int(lengths.sum(dtype=np.int64)):
        raise ValueError(f"the index speaks of {int(lengths.sum(dtype=np.int64))} tokens, {stem}.bin has {len(tokens)}")
    return tokens


def _common(sources: Sequence[np.ndarray[Any, Any]], inputs: Sequence[str]) -> str:
    for path, source in zip(inputs, sources, strict=True):
        if source.dtype != sources[0].dtype:
            raise DataError(
                f"{path} has tokens of {source.dtype}, {inputs[0]} of {sources[0].dtype}", hint="Choose with --dtype."
            )
    return str(sources[0].dtype)


def _pieces(
    sources: Sequence[np.ndarray[Any, Any]], inputs: Sequence[str], dtype: str
) -> Iterator[np.ndarray[Any, Any]]:
    limits = np.iinfo(dtype)
    for path, source in zip(inputs, sources, strict=True):
        if source.dtype.kind not in "iu":
            raise DataError(f"{path} has {source.dtype}, no whole numbers")
        for start in range(0, len(source), _PIECE):
            piece = source[start : start + _PIECE]
            if source.dtype != dtype and (piece.min() < limits.min or piece.max() > limits.max):
                odd = int(start + np.argmax((piece < limits.min) | (piece > limits.max)))
                raise DataError(f"{path}: token {odd} is {int(source[odd])}, which {dtype} does not hold")
            yield piece.astype(dtype)


def _chunks(pieces: Iterable[np.ndarray[Any, Any]], size: int) -> Iterator[np.ndarray[Any, Any]]:
    held: list[np.ndarray[Any, Any]] = []
    count = 0
    for piece in pieces:
        rest = piece
        while count + len(rest) >= size:
            need = size - count
            yield np.concatenate([*held, rest[:need]])
            held, count, rest = [], 0, rest[need:]
        if len(rest):
            held.append(rest)
            count += len(rest)
    if count:
        yield np.concatenate(held)


class _Writer:
    """litdata's chunk: how many items, where each begins and where the last ends, their bytes. One item a chunk."""

    def __init__(self, folder: str, dtype: str) -> None:
        self.folder = folder
        self.dtype = dtype
        self.rows: list[dict[str, Any]] = []
        self.hashes: dict[str, str] = {}

    def add(self, tokens: np.ndarray[Any, Any]) -> None:
        name = f"chunk-0-{len(self.rows)}.bin"
        body = tokens.tobytes()
        head = struct.pack("<III", 1, _HEADER, _HEADER + len(body))
        with open(os.path.join(self.folder, name), "wb") as file:
            file.write(head)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        state = xxhash.xxh3_128(head)
        state.update(body)
        self.hashes[name] = state.hexdigest()
        self.rows.append({"chunk_bytes": _HEADER + len(body), "chunk_size": 1, "dim": len(tokens), "filename": name})

    def close(self) -> Prepared:
        if not self.rows:
            raise DataError("there is not one token in what was named")
        config = {
            "chunk_bytes": None,
            "chunk_size": 1,
            "compression": None,
            "data_format": [f"no_header_numpy:{CODES[self.dtype]}"],
            "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        self._json(INDEX, {"chunks": self.rows, "config": config, "updated_at": str(time.time()), HASHES: self.hashes})
        _sync(self.folder)
        return Prepared(sum(row["dim"] for row in self.rows), len(self.rows), self.dtype)

    def _json(self, name: str, body: Any) -> None:
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            json.dump(body, file)
            file.flush()
            os.fsync(file.fileno())


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
