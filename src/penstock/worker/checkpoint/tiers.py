"""A second place for checkpoints: a folder that outlives the first one's disk, filled in the background.

A copy is promoted chunk by chunk, each verified as it is read, and committed by rename as a save is. One that was cut
short goes on where it ended: chunks that are there and hash right are not sent again. A tier keeps its own last
checkpoints, and has an owner as the first folder has.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import CheckpointError, Damaged
from penstock.worker.checkpoint.manifest import NAME, File
from penstock.worker.checkpoint.reading import Want, read_files, verify
from penstock.worker.checkpoint.upkeep import Shelf
from penstock.worker.checkpoint.writing import write_small

if TYPE_CHECKING:
    from penstock.worker.checkpoint.bucket import Bucket


class Tier:
    """``keep`` verified checkpoints in ``directory``, written at no more than ``bytes_per_s``."""

    def __init__(self, directory: str, keep: int, bytes_per_s: float | None, owner: Mapping[str, Any]) -> None:
        self.directory = os.path.abspath(directory)
        self._bytes_per_s = bytes_per_s
        self._shelf = Shelf(self.directory, keep, None)
        self._lock = folder.Lock(self.directory, owner)

    def entries(self) -> list[folder.Entry]:
        """What is there; nothing where the tier cannot be reached."""
        try:
            return folder.entries(self.directory)
        except OSError:
            return []

    def take(self) -> None:
        """Have the folder for this job alone. Raises OSError or FolderInUse."""
        if not self._lock.held:
            os.makedirs(self.directory, exist_ok=True)
            self._lock.take()

    def promote(self, entry: folder.Entry) -> bool:
        """Copy one checkpoint here; False where it is already. Raises OSError, Damaged or FolderInUse."""
        if not self.begin(entry):
            return False
        self.carry(entry, folder.checked_manifest(entry).files)
        self.conclude(entry)
        return True

    def begin(self, entry: folder.Entry) -> bool:
        """Make room for one; False where it is here already. Raises OSError or FolderInUse."""
        self.take()
        if any(there.id == entry.id for there in folder.entries(self.directory)):
            return False
        temporary = folder.temporary(self.directory, entry.id)
        self._clear(temporary)
        os.makedirs(temporary, exist_ok=True)
        return True

    def carry(self, entry: folder.Entry, files: Sequence[File]) -> None:
        """Copy some of its files: each node those that it has. Raises OSError or Damaged."""
        for file in files:
            self._copy(entry.path, folder.temporary(self.directory, entry.id), file)

    def conclude(self, entry: folder.Entry) -> None:
        """Read all of it back, and commit. Raises OSError or Damaged."""
        temporary = folder.temporary(self.directory, entry.id)
        with open(os.path.join(entry.path, NAME), "rb") as source:
            write_small(os.path.join(temporary, NAME), source.read())
        try:
            verify(temporary, lanes=1)
        except Damaged:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        folder.commit(self.directory, temporary, entry.step, entry.id)
        self._shelf.verified.add(entry.id)
        self._shelf.prune()

    def fetch(self, entry: folder.Entry, directory: str) -> folder.Entry:
        """A folder's are read where they are."""
        return entry

    def close(self) -> None:
        self._lock.release()

    def _clear(self, own: str) -> None:
        for name in os.listdir(self.directory):
            path = os.path.join(self.directory, name)
            if name.startswith((".tmp-", ".del-")) and path != own:
                shutil.rmtree(path, ignore_errors=True)

    def _copy(self, source: str, target: str, file: File) -> None:
        path = os.path.join(target, file.name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        began, sent = time.monotonic(), 0
        try:
            for index in range(file.chunks):
                start = index * file.chunk
                size = min(file.chunk, file.size - start)
                if xxh3_128_hexdigest(os.pread(fd, size, start)) == file.digest(index):
                    continue  # it came before the last copy was cut short
                data = np.empty(size, np.uint8)
                read_files(source, [file], {file.name: [Want(start, data)]}, frozenset(), lanes=1)
                view = data.data
                while view:
                    view = view[os.pwrite(fd, view, start + size - len(view)) :]
                sent += size
                if self._bytes_per_s:
                    time.sleep(max(0.0, sent / self._bytes_per_s - (time.monotonic() - began)))
            os.ftruncate(fd, file.size)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # verified from the disk, not from the page cache
        finally:
            os.close(fd)


class Place(Protocol):
    """Where checkpoints are copied to: a folder, or an object store (bucket.py)."""

    directory: str

    def take(self) -> None: ...

    def entries(self) -> list[folder.Entry]: ...

    def promote(self, entry: folder.Entry) -> bool: ...

    def begin(self, entry: folder.Entry) -> bool: ...

    def carry(self, entry: folder.Entry, files: Sequence[File]) -> None: ...

    def conclude(self, entry: folder.Entry) -> None: ...

    def fetch(self, entry: folder.Entry, directory: str) -> folder.Entry: ...

    def close(self) -> None: ...


def place(path: str, keep: int, bytes_per_s: float | None, owner: Mapping[str, Any]) -> Place:
    """Raises CheckpointError where ``path`` is neither a folder nor a store that is known."""
    if "://" not in path:
        return Tier(path, keep, bytes_per_s, owner)
    return in_store(path, keep, bytes_per_s, owner)


def in_store(path: str, keep: int, bytes_per_s: float | None, owner: Mapping[str, Any]) -> Bucket:
    """Raises CheckpointError where the store is not known, or its client not installed."""
    if not path.startswith("s3://"):
        raise CheckpointError(f"{path}: a tier is a folder or s3://BUCKET/PREFIX", hint="Mount other stores.")
    try:
        from penstock.worker.checkpoint.bucket import Bucket
    except ImportError as missing:
        raise CheckpointError(
            f"{path} needs the package {missing.name}", hint="pip install 'penstock[s3]'"
        ) from missing
    return Bucket(path, keep, bytes_per_s, owner=owner)


def candidates(directory: str, tiers: Iterable[Place]) -> tuple[list[folder.Entry], list[str]]:
    """Every committed checkpoint, the newest first; of several copies the one in the first place.

    And which places did not answer, in words: where they are all there is, nobody knows whether a training begins afresh.
    """
    places, silent = [folder.entries(directory)], []
    for tier in tiers:
        try:
            places.append(tier.entries())
        except OSError as error:
            silent.append(str(error))
    return newest_first([entry for there in places for entry in there], directory), silent


def newest_first(found: Sequence[folder.Entry], directory: str) -> list[folder.Entry]:
    """Of several copies those in ``directory`` first, then in the order of the places."""
    unique = list({entry.path: entry for entry in found}.values())
    ranked = [(entry.id, os.path.dirname(entry.path) == directory, -index) for index, entry in enumerate(unique)]
    order = sorted(range(len(unique)), key=ranked.__getitem__, reverse=True)
    return [unique[index] for index in order]


def fetch(entry: folder.Entry, tiers: Iterable[Place], directory: str) -> folder.Entry:
    """Bring a checkpoint of a tier to where it can be read. Raises OSError or Damaged."""
    return next(tier for tier in tiers if entry.path.startswith(f"{tier.directory}/")).fetch(entry, directory)
