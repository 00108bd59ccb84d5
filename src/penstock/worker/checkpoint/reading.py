"""Read tensors' bytes: each chunk is hashed before anything of it reaches a tensor.

A chunk is read whole, also where only a few of its bytes are wanted; and chunks of which nothing is wanted are hashed
too, so that a load has seen every byte of the files it was told to answer for.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint.errors import Damaged
from penstock.worker.checkpoint.layout import PAGE
from penstock.worker.checkpoint.manifest import NAME, File, Manifest, read_manifest
from penstock.worker.checkpoint.memory import Bytes, aligned

LANES: Final = 2
_DIRECT: Final = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes ``start .. start + len(into)`` of a file, and where they go."""

    start: int
    into: Bytes


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
        lanes = max(1, min(lanes, len(job.chunks)))
        if lanes == 1:
            job.lane()
            return
        with ThreadPoolExecutor(lanes - 1, thread_name_prefix="penstock-checkpoint-read") as pool:
            others = [pool.submit(job.lane) for _ in range(lanes - 1)]
            job.lane()
            for other in others:
                other.result()
    finally:
        job.close()


class _Reading:
    def __init__(self, path: str, file: File, wants: Sequence[Want], all_of_it: bool) -> None:
        self.path = path
        self.file = file
        self.plan = _plan(file, wants)
        self.chunks = range(file.chunks) if all_of_it else sorted(self.plan)
        self.next = 0
        self.turn = threading.Lock()
        self.failed = False
        self.fd = _open(path)

    def close(self) -> None:
        os.close(self.fd)

    def lane(self) -> None:
        scratch = aligned(self.file.chunk)
        try:
            while (index := self._take()) is not None:
                start = index * self.file.chunk
                size = min(self.file.chunk, self.file.size - start)
                data = scratch[:size]
                self._fill(scratch, start, size)
                if xxh3_128_hexdigest(data.data) != self.file.digest(index):
                    raise Damaged(f"{self.path}: bytes {start} to {start + size} are not what was written")
                for want in self.plan.get(index, ()):
                    begin, end = max(want.start, start), min(want.start + len(want.into), start + size)
                    np.copyto(want.into[begin - want.start : end - want.start], data[begin - start : end - start])
        except BaseException:
            self.failed = True
            raise

    def _take(self) -> int | None:
        with self.turn:
            if self.failed or self.next == len(self.chunks):
                return None
            index = self.chunks[self.next]
            self.next += 1
            return index

    def _fill(self, scratch: Bytes, start: int, size: int) -> None:
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
