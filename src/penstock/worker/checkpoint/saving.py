"""One save, from its folder to its commit. Ranks meet in the temporary folder alone: no collective runs beside training's.

Every rank writes its file and then its part; rank 0 waits for all parts, writes the manifest and gives the folder its
name. A rank that fails says why in a note that it made while there was still room; one that died says nothing, and
without its part there is no commit.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.errors import SaveFailed
from penstock.worker.checkpoint.layout import Layout
from penstock.worker.checkpoint.manifest import NAME, Manifest, Part, manifest_bytes, merged, part_bytes, read_part
from penstock.worker.checkpoint.writing import CHUNK, Pace, Source, write_shard, write_small

_NOTE: Final = 1024  # bytes
_LATE: Final = 50  # what was waited for is seen late by a fiftieth of the wait at most
_LEAVING: Final = 5.0  # seconds that a process which ends waits for ranks that may be gone


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which save, of whom."""

    directory: str
    id: str
    step: int
    rank: int = 0
    world_size: int = 1
    timeout: float = 600.0
    chunk: int = CHUNK
    pace: Pace = field(default_factory=Pace)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return folder.temporary(self.directory, self.id)


def shard_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def notes_of(ticket: Ticket) -> dict[str, str]:
    """What the header of a shard file says of its save: two files of different saves or ranks never look the same."""
    return {"save": ticket.id, "step": str(ticket.step), "rank": str(ticket.rank), "of": str(ticket.world_size)}


def begin(ticket: Ticket) -> None:
    """Make the temporary folder, or wait until rank 0 has."""
    if ticket.rank == 0:
        os.makedirs(ticket.folder)
    else:
        _wait(ticket, lambda: os.path.isdir(ticket.folder), "rank 0 began no save")
    if ticket.rank != 0:
        with open(_note(ticket, ticket.rank), "wb", buffering=0) as note:
            note.write(b" " * _NOTE)


def write_part(
    ticket: Ticket, source: Source, layout: Layout, state: Mapping[str, Any], shared: Mapping[str, Any]
) -> Part:
    """The rank's file, durable, and then what it says of it."""
    file = write_shard(os.path.join(ticket.folder, layout.file), source, ticket.chunk, ticket.pace)
    part = Part(ticket.rank, (file,), layout.tensors(), state, shared)
    if ticket.rank != 0:  # rank 0 tells itself
        write_small(_part(ticket, ticket.rank), part_bytes(part))
    return part


def conclude(ticket: Ticket, own: Part, shared: Mapping[str, Any] | None = None) -> tuple[str, Manifest]:
    """Rank 0: wait for every part, and commit. Answers the checkpoint's path. Raises SaveFailed or OSError."""
    for rank in range(1, ticket.world_size):
        _wait(ticket, lambda rank=rank: _arrived(ticket, rank), f"rank {rank} did not finish")  # type: ignore[misc]  # mypy does not infer a lambda's default
    parts = [own]
    for rank in range(1, ticket.world_size):
        with open(_part(ticket, rank), "rb") as file:
            parts.append(read_part(file.read(), _part(ticket, rank)))
    if shared:
        parts[0] = replace(parts[0], shared={**parts[0].shared, **shared})
    manifest = merged(ticket.id, ticket.step, time.time(), parts, ticket.origin)
    write_small(os.path.join(ticket.folder, NAME), manifest_bytes(manifest))
    for rank in range(1, ticket.world_size):
        os.unlink(_part(ticket, rank))
        os.unlink(_note(ticket, rank))
    return folder.commit(ticket.directory, ticket.folder, ticket.step, ticket.id), manifest


def await_commit(ticket: Ticket) -> None:
    """Other ranks: until rank 0 has committed, or given up. Raises SaveFailed."""
    target = os.path.join(ticket.directory, f"{ticket.step}-{ticket.id}")

    def settled() -> bool:
        if os.path.isdir(target):
            return True
        if not os.path.isdir(ticket.folder) and not os.path.isdir(target):
            raise SaveFailed(f"rank 0 gave up the save of step {ticket.step}")
        return False

    _wait(ticket, settled, "rank 0 did not commit")


def give_up(ticket: Ticket, error: BaseException) -> None:
    """Say why, for rank 0 to read; rank 0 takes the folder away, which tells the others."""
    if ticket.rank == 0:
        shutil.rmtree(ticket.folder, ignore_errors=True)
        return
    reason = json.dumps(f"{type(error).__name__}: {error}"[: _NOTE // 2]).encode()
    try:
        with open(_note(ticket, ticket.rank), "r+b", buffering=0) as note:
            note.write(reason[:_NOTE].ljust(_NOTE))
    except OSError:  # the folder is gone, or was never made
        pass


def _part(ticket: Ticket, rank: int) -> str:
    return os.path.join(ticket.folder, f"part-{rank:05d}.json")


def _note(ticket: Ticket, rank: int) -> str:
    return os.path.join(ticket.folder, f"note-{rank:05d}")


def _arrived(ticket: Ticket, rank: int) -> bool:
    if os.path.exists(_part(ticket, rank)):
        return True
    try:
        with open(_note(ticket, rank), "rb") as note:
            said = note.read(_NOTE).strip()
        reason = json.loads(said) if said else ""
    except (OSError, ValueError):  # not there yet, or half written
        return False
    if reason:
        raise SaveFailed(f"rank {rank}: {reason}")
    return False


def _wait(ticket: Ticket, done: Callable[[], bool], otherwise: str) -> None:
    began = time.monotonic()
    while not done():
        waited = time.monotonic() - began
        # Once the main thread has ended, Python waits for this one: ranks that are gone must not hold it up.
        limit = ticket.timeout if threading.main_thread().is_alive() else min(ticket.timeout, _LEAVING)
        if waited > limit:
            raise SaveFailed(f"step {ticket.step}: {otherwise} within {limit:.0f} s")
        time.sleep(min(0.05, max(0.002, waited / _LATE)))
