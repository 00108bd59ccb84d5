"""A folder of checkpoints, or a prefix of an object store, as the command line sees it: the same questions to both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.manifest import Manifest
from penstock.worker.checkpoint.reading import verify
from penstock.worker.checkpoint.tiers import in_store
from penstock.worker.checkpoint.upkeep import Shelf

if TYPE_CHECKING:
    from penstock.worker.checkpoint.bucket import Bucket


class Shelves(Protocol):
    def entries(self) -> list[folder.Entry]:
        """Oldest first."""

    def manifest(self, entry: folder.Entry) -> Manifest:
        """Raises Damaged or NewerFormat."""

    def verify(self, entry: folder.Entry) -> None:
        """Raises Damaged or NewerFormat."""

    def prune(self, keep: int, every: int | None) -> tuple[list[folder.Entry], list[str]]:
        """What is gone, and what was found damaged. Raises FolderInUse."""

    def here(self, entry: folder.Entry, near: str) -> AbstractContextManager[str]:
        """A folder of this machine that has it, while the block lasts. Raises Damaged."""


def opened(where: str) -> Shelves | None:
    """None where there is no such folder. Raises CheckpointError for a store that is not known, or not installed."""
    if "://" in where:
        return InStore(where)
    return InFolder(where) if os.path.isdir(where) else None


class InFolder:
    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._one = folder.entry_of(os.path.abspath(directory))

    def entries(self) -> list[folder.Entry]:
        return [self._one] if self._one is not None else folder.entries(self._directory)

    def manifest(self, entry: folder.Entry) -> Manifest:
        return folder.checked_manifest(entry)

    def verify(self, entry: folder.Entry) -> None:
        verify(entry.path)

    def prune(self, keep: int, every: int | None) -> tuple[list[folder.Entry], list[str]]:
        lock = folder.Lock(self._directory, {"job": ""}, patience=0.0)
        lock.take()
        try:
            shelf = Shelf(self._directory, keep, every)
            return shelf.prune(), list(shelf.damaged.values())
        finally:
            lock.release()

    @contextmanager
    def here(self, entry: folder.Entry, near: str) -> Iterator[str]:
        yield entry.path


class InStore:
    def __init__(self, url: str) -> None:
        self._url = url
        self._bucket = self._of(1)

    def _of(self, keep: int) -> Bucket:
        return in_store(self._url, keep, None, {"job": ""})

    def entries(self) -> list[folder.Entry]:
        return self._bucket.entries()

    def manifest(self, entry: folder.Entry) -> Manifest:
        return self._bucket.manifest(entry)

    def verify(self, entry: folder.Entry) -> None:
        self._bucket.verify(entry)

    def prune(self, keep: int, every: int | None) -> tuple[list[folder.Entry], list[str]]:
        bucket = self._of(keep)
        bucket.take()
        try:
            return bucket.prune(every), list(bucket.damaged.values())
        finally:
            bucket.close()

    @contextmanager
    def here(self, entry: folder.Entry, near: str) -> Iterator[str]:
        beside = tempfile.mkdtemp(prefix=".penstock-", dir=os.path.dirname(os.path.abspath(near)))
        try:
            yield self._bucket.fetch(entry, beside).path
        finally:
            shutil.rmtree(beside, ignore_errors=True)
