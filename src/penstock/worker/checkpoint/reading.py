"""Read tensors' bytes: each chunk is hashed before anything of it reaches a tensor.

A chunk is read whole, also where only a few of its bytes are wanted; and chunks of which nothing is wanted are hashed
too, so that a load has seen every byte of the files it was told to answer for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

import numpy as np
from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint.errors import Damaged
from penstock.worker.checkpoint.layout import PAGE
from penstock.worker.checkpoint.manifest import NAME, File, Manifest, read_manifest
from penstock.worker.checkpoint.memory import Bytes, aligned

LANES: Final = 2  # threads of a load: one reads, one verifies
_AHEAD: Final = 4  # chunks that are read and not yet verified, at most
_DIRECT: Final = getattr(os, "O_DIRECT", 0)


class Elsewhere(Protocol):
    """Memory that is not this process's own, a device's: verified bytes are brought there."""

    def __len__(self) -> int: ...

    def put(self, at: int, data: Bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes ``start .. start + len(into)`` of a file, and where they go."""

    start: int
    into: Bytes | Elsewhere


def manifest_of(folder: str) -> Manifest:
    """Raises Damaged or NewerFormat."""
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            data = file.read()
    except OSError as error:
        raise Damaged(f"{os.path.join(folder, NAME)}: {error.strerror}") from error
    return read_manifest(data, os.path.join(folder, NAME))


def read_files(
    folder: str, files: Sequence[File], wants: Mapping[str, Sequence[Want]], every: frozenset[str], lanes: int = LANES
) -> None:
    """Fill what is wanted. ``every`` names the files whose other chunks are to be verified too. Raises Damaged."""
    for file in files:
        _check_size(folder, file)
    for file in files:
        _read_file(folder, file, sorted(wants.get(file.name, ()), key=lambda w: w.start), file.name in every, lanes)


def verify(folder: str, lanes: int = LANES) -> Manifest:
    """Read a checkpoint to the last byte. Raises Damaged or NewerFormat."""
    manifest = manifest_of(folder)
    read_files(folder, manifest.files, {}, frozenset(file.name for file in manifest.files), lanes)
    return manifest


def _check_size(folder: str, file: File) -> None:
    path = os.path.join(folder, file.name)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error
    if size != file.size:
        raise Damaged(f"{path} has {size} bytes, and was written with {file.size}")
    if len(file.hashes) != 32 * file.chunks:
        raise Damaged(f"{path}: its hashes do not cover it")


def _read_file(folder: str, file: File, wants: Sequence[Want], all_of_it: bool, lanes: int) -> None:
    job = _Reading(os.path.join(folder, file.name), file, wants, all_of_it)
    try:
        if lanes == 1 or len(job.chunks) == 1:
            job.alone()
        else:
            job.beside()
    finally:
        job.close()


class _Reading:
    def __init__(self, path: str, file: File, wants: Sequence[Want], all_of_it: bool) -> None:
        self.path = path
        self.file = file
        self.plan = _plan(file, wants)
        self.chunks = range(file.chunks) if all_of_it else sorted(self.plan)
        self.failed = False
        self.fd = _open(path)

    def close(self) -> None:
        os.close(self.fd)

    def alone(self) -> None:
        scratch = aligned(self.file.chunk)
        for index in self.chunks:
            self._fill(scratch, index)
            self._use(scratch, index)

    def beside(self) -> None:
        """A thread reads, so that the disk always has something to do; this one verifies and copies what has come."""
        free: SimpleQueue[Bytes] = SimpleQueue()
        full: SimpleQueue[tuple[Bytes, int] | None] = SimpleQueue()
        for _ in range(_AHEAD):
            free.put(aligned(self.file.chunk))
        with ThreadPoolExecutor(1, thread_name_prefix="penstock-checkpoint-read") as pool:
            reader = pool.submit(self._read_all, free, full)
            try:
                while (read := full.get()) is not None:
                    self._use(*read)
                    free.put(read[0])
            except BaseException:
                self.failed = True
                free.put(np.empty(0, np.uint8))  # the reader may be waiting for room
                raise
            reader.result()

    def _read_all(self, free: SimpleQueue[Bytes], full: SimpleQueue[tuple[Bytes, int] | None]) -> None:
        try:
            for index in self.chunks:
                scratch = free.get()
                if self.failed:
                    return
                self._fill(scratch, index)
                full.put((scratch, index))
        finally:
            full.put(None)

    def _use(self, scratch: Bytes, index: int) -> None:
        start = index * self.file.chunk
        size = min(self.file.chunk, self.file.size - start)
        data = scratch[:size]
        if xxh3_128_hexdigest(data.data) != self.file.digest(index):
            raise Damaged(f"{self.path}: bytes {start} to {start + size} are not what was written")
        for want in self.plan.get(index, ()):
            begin, end = max(want.start, start), min(want.start + len(want.into), start + size)
            piece, at = data[begin - start : end - start], begin - want.start
            if isinstance(want.into, np.ndarray):
                np.copyto(want.into[at : at + len(piece)], piece)
            else:
                want.into.put(at, piece)

    def _fill(self, scratch: Bytes, index: int) -> None:
        start = index * self.file.chunk
        size = min(self.file.chunk, self.file.size - start)
        view, at = scratch.data[: -(-size // PAGE) * PAGE], 0
        while at < size:
            try:
                count = os.preadv(self.fd, [view[at:]], start + at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise Damaged(f"{self.path}: {error.strerror} at byte {start + at}") from error
                other = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                os.dup2(other, self.fd)
                os.close(other)
                continue
            if not count:
                raise Damaged(f"{self.path} ends at byte {start + at}")
            at += count


def _plan(file: File, wants: Sequence[Want]) -> dict[int, list[Want]]:
    """Which wants touch each chunk."""
    plan: dict[int, list[Want]] = {}
    for want in wants:
        if len(want.into):
            last = (want.start + len(want.into) - 1) // file.chunk
            for index in range(want.start // file.chunk, last + 1):
                plan.setdefault(index, []).append(want)
    return plan


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise Damaged(f"{path}: {error.strerror}") from error
    return os.open(path, flags)
