"""What rank 0 does after a commit: know which checkpoints are whole, and remove what retention lets go."""

from __future__ import annotations

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.reading import verify
from penstock.worker.checkpoint.retention import to_remove, undecided


class Shelf:
    """The checkpoints of a folder as this process knows them. Each is read back once before another is removed for it."""

    def __init__(self, directory: str, keep: int, every: int | None, read_back: bool = True) -> None:
        self.directory = directory
        self.keep = keep
        self.every = every
        self.read_back = read_back
        self.verified: set[str] = set()
        self.damaged: dict[str, str] = {}

    def committed(self, save_id: str) -> None:
        if not self.read_back:
            self.verified.add(save_id)

    def read(self, entry: folder.Entry) -> bool:
        """Whether a checkpoint is whole, by reading it."""
        try:
            folder.checked_manifest(entry)
            verify(entry.path, lanes=1)
        except CheckpointError as error:
            self.damaged[entry.id] = error.message
            self.verified.discard(entry.id)
            return False
        self.verified.add(entry.id)
        self.damaged.pop(entry.id, None)
        return True

    def prune(self) -> list[folder.Entry]:
        """Remove what may go; answers it. Raises OSError."""
        there = folder.entries(self.directory)
        if len(there) <= self.keep:
            return []
        while (entry := undecided(there, self.verified, self.damaged, self.keep)) is not None:
            self.read(entry)
        gone = to_remove(there, self.verified, self.keep, self.every)
        for entry in gone:
            folder.remove(entry.path)
        return gone


def latest(directory: str) -> folder.Entry | None:
    """The newest checkpoint that is whole to the last byte."""
    shelf = Shelf(directory, 1, None)
    return next((entry for entry in reversed(folder.entries(directory)) if shelf.read(entry)), None)
