"""Folders that each node has for itself (``Options(node_local=True)``): one commit for all of them, no shared disk.

A node's folder has its own ranks' files and the whole manifest. The ranks meet in a group of their own on gloo, which
no training collective uses, from the thread that saves. A commit has two phases: every node has all that it answers for
on its disk (and, with ``neighbour``, a verified copy at the next node), and says so; then each gives its folder its
name. A node that died in between finds the rest committed elsewhere, and goes forward when it is back. Files that a
load wants and a node lacks are sent by one that has them, and verified by who receives them.
"""

from __future__ import annotations

import hmac
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint import folder, saving
from penstock.worker.checkpoint.errors import CheckpointError, Damaged, SaveFailed
from penstock.worker.checkpoint.layout import Layout
from penstock.worker.checkpoint.manifest import (
    NAME,
    File,
    Manifest,
    Part,
    manifest_bytes,
    merged,
    part_bytes,
    read_manifest,
    read_part,
    seal,
    unseal,
)
from penstock.worker.checkpoint.ranks import Ranks
from penstock.worker.checkpoint.reading import read_files
from penstock.worker.checkpoint.writing import Source, sync_folder, write_shard, write_small

_LEFT_AT: Final = "penstock/checkpoint/secret"
HELD: Final = "held.json"  # which files of the checkpoint this node answers for


@dataclass(frozen=True, slots=True)
class Move:
    """A file that one node sends to another."""

    file: File
    source: int
    target: int


class Nodes:
    """Which ranks share a folder: those of one host that were given one path. The first of them leads."""

    def __init__(self, ranks: Ranks, directory: str, patience: float, *, neighbour: bool) -> None:
        key = (socket.gethostname(), os.path.realpath(directory))
        keys = ranks.all(key)
        order = list(dict.fromkeys(keys))
        self.directory = directory
        self.rank, self.world_size = ranks.rank, ranks.world_size
        self.index, self.count = order.index(key), len(order)
        self.of_rank = [order.index(one) for one in keys]
        self._leaders = [keys.index(one) for one in order]
        self.leads = self._leaders[self.index] == self.rank
        self.neighbour = neighbour and self.count > 1
        several = self.world_size > 1
        limit = timedelta(seconds=patience)
        self._groups: list[Any] = [
            dist.new_group(backend="gloo", timeout=limit) if several else None for _ in ("saves", "copies")
        ]
        for index in range(len(self._groups) if several else 0):
            self._prove(shared_secret(self.rank), index)

    def close(self) -> None:
        for group in self._groups:
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)
        self._groups = [None, None]

    def _prove(self, secret: bytes, of: int) -> None:
        """That at the other end of each connection is a rank of this job: the one that has its secret, and answers for this
        meeting alone. A connection lasts as long as its group. Raises CheckpointError.
        """
        nonces = b"".join(self.gather(os.urandom(16), of))
        said = self.gather(_proof(secret, nonces, of, self.rank), of)
        for rank, proof in enumerate(said):
            if not hmac.compare_digest(proof, _proof(secret, nonces, of, rank)):
                raise CheckpointError(
                    f"what answers as rank {rank} is no rank of this job: it does not know the job's secret",
                    hint="Something else has connected to the training's ports.",
                )

    def gather(self, value: Any, of: int = 0) -> list[Any]:
        """What every rank says. Raises SaveFailed where one is gone."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(found, value, group=self._groups[of])
        except RuntimeError as error:
            raise SaveFailed(f"a rank is gone: {str(error).splitlines()[0]}") from error
        return found

    def agree(self, work: Callable[[], Any], of: int = 0) -> list[Any]:
        """Have each rank do its part, and tell what it came to. Raises SaveFailed, naming the rank that could not."""
        value, fault = None, ""
        try:
            value = work()
        except (OSError, CheckpointError) as error:
            fault = f"{type(error).__name__}: {error}"
        said = self.gather((value, fault), of)
        for rank, (_, wrong) in enumerate(said):
            if wrong:
                raise SaveFailed(f"rank {rank}: {wrong}")
        return [value for value, _ in said]

    # -------------------------------------------------------------------------------------------------------- save

    def save(
        self, ticket: saving.Ticket, source: Source, layout: Layout, own: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> tuple[folder.Entry, Manifest]:
        """Every rank calls it, from the thread that saves. Raises SaveFailed: then no node has committed, or all may."""
        try:
            self.agree(lambda: os.makedirs(ticket.folder) if self.leads else None)
            said = self.agree(lambda: self._write(ticket, source, layout, own, shared))
            manifest = self._merged(ticket, said)
            self.agree(lambda: self._prepare(ticket, manifest))
        except BaseException:
            if self.leads:
                shutil.rmtree(ticket.folder, ignore_errors=True)
            raise
        target = os.path.join(ticket.directory, f"{ticket.step}-{ticket.id}")
        self.agree(
            lambda: folder.commit(ticket.directory, ticket.folder, ticket.step, ticket.id) if self.leads else None
        )
        return folder.Entry(target, ticket.step, ticket.id), manifest

    @staticmethod
    def _write(
        ticket: saving.Ticket, source: Source, layout: Layout, own: Mapping[str, Any], shared: Mapping[str, Any]
    ) -> tuple[bytes, float]:
        file = write_shard(os.path.join(ticket.folder, layout.file), source, ticket.chunk, ticket.pace)
        return part_bytes(Part(ticket.rank, (file,), layout.tensors(), own, shared)), time.time()

    def _merged(self, ticket: saving.Ticket, said: Sequence[tuple[bytes, float]]) -> Manifest:
        """The same on every rank."""
        parts = [read_part(data, f"the part of rank {rank}") for rank, (data, _) in enumerate(said)]
        names = [[f.name for p in parts if self.of_rank[p.rank] == node for f in p.files] for node in range(self.count)]
        return merged(ticket.id, ticket.step, said[0][1], parts, {**ticket.origin, "nodes": names})

    def _prepare(self, ticket: saving.Ticket, manifest: Manifest) -> None:
        """All that this node answers for, on its disk: what is its own, and what its neighbour gives it to keep."""
        held = set(_of_node(manifest, self.index))
        fault = ""
        if self.neighbour:
            kept = _of_node(manifest, (self.index - 1) % self.count)
            moves = [
                Move(file, node, (node + 1) % self.count)
                for node in range(self.count)
                for file in _named(manifest, _of_node(manifest, node))
            ]
            fault = self.move(moves, lambda name: os.path.join(ticket.folder, name))
            held |= set(kept)
        if not self.leads:
            return
        if fault:
            raise Damaged(fault)
        self._describe(ticket.folder, manifest, held)

    @staticmethod
    def _describe(path: str, manifest: Manifest, held: Iterable[str]) -> None:
        write_small(os.path.join(path, HELD), seal({"id": manifest.id, "files": sorted(held)}))
        write_small(os.path.join(path, NAME), manifest_bytes(manifest))
        sync_folder(path)

    # ------------------------------------------------------------------------------------------------------ moving

    def move(self, moves: Sequence[Move], path: Callable[[str], str]) -> str:
        """Send and receive, in one order on every node; what went wrong here, in words."""
        fault = ""
        for move in moves if self.leads else ():
            if move.source == self.index:
                self._send(move.file, path(move.file.name), self._leaders[move.target])
            elif move.target == self.index:
                fault = self._receive(move.file, path(move.file.name), self._leaders[move.source]) or fault
        return fault

    def _send(self, file: File, path: str, to: int) -> None:
        """Every chunk is sent whatever this disk says: who receives it knows its hash."""
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the other will say that it is damaged
            pass
        try:
            for start in range(0, file.size, file.chunk):
                data = np.zeros(min(file.chunk, file.size - start), np.uint8)
                if fd >= 0:
                    try:
                        os.preadv(fd, [data.data], start)
                    except OSError:  # as above
                        pass
                dist.send(torch.from_numpy(data), to, group=self._groups[0])
        finally:
            if fd >= 0:
                os.close(fd)

    def _receive(self, file: File, path: str, source: int) -> str:
        """Verified chunk by chunk, and on the disk; or why not, and then nothing of it is there."""
        fault, beside = "", f"{path}.part"
        fd = -1
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            fault = str(error)
        for index, start in enumerate(range(0, file.size, file.chunk)):
            data = torch.empty(min(file.chunk, file.size - start), dtype=torch.uint8)
            dist.recv(data, source, group=self._groups[0])
            view = data.numpy().data
            if xxh3_128_hexdigest(view) != file.digest(index):
                fault = fault or f"{file.name}, as rank {source} sent it: byte {start} on is not what was written"
            try:
                while view and not fault:
                    view = view[os.pwrite(fd, view, start + len(data) - len(view)) :]
            except OSError as error:
                fault = str(error)
        if fd >= 0:
            if not fault:
                os.fsync(fd)
            os.close(fd)
            if fault:
                os.unlink(beside)
            else:
                os.rename(beside, path)
        return fault

    # -------------------------------------------------------------------------------------------------------- load

    def entries(self) -> list[folder.Entry]:
        """What any node has committed, oldest first, as it would lie here; what only this one had not yet is named."""
        try:
            mine = [(entry.step, entry.id) for entry in folder.entries(self.directory)] if self.leads else []
        except OSError:  # it cannot be read: what it has, nobody has
            mine = []
        found = sorted({one for said in self.gather(mine) for one in said}, key=lambda one: one[1])
        made = [folder.Entry(os.path.join(self.directory, f"{step}-{name}"), step, name) for step, name in found]
        for entry in made if self.leads else ():
            prepared = folder.temporary(self.directory, entry.id)
            if not os.path.exists(entry.path) and os.path.exists(os.path.join(prepared, NAME)):
                folder.commit(self.directory, prepared, entry.step, entry.id)
        return made

    def bring(self, entry: folder.Entry, wanted: Callable[[Manifest], Collection[str]]) -> str:
        """Have here, verified, each file that this node's ranks want; why that cannot be, the same on every rank."""
        data, faults = b"", []
        if self.leads:
            try:
                data = manifest_bytes(folder.checked_manifest(entry))
            except CheckpointError as error:
                faults.append(error.message)
        said = self.gather((data, faults))
        known = next((data for data, _ in said if data), b"")
        if not known:
            faults = [fault for _, found in said for fault in found]
            return faults[0]
        manifest = read_manifest(known, entry.path)
        try:
            mine = set(wanted(manifest))
        except CheckpointError:  # of another model: said when it is loaded
            mine = set()
        have, faults = self._whole(entry, manifest) if self.leads else (set(), [])
        told = self.gather((mine, have, faults))
        return self._fetch(entry, manifest, told)

    def _fetch(
        self, entry: folder.Entry, manifest: Manifest, told: Sequence[tuple[set[str], set[str], list[str]]]
    ) -> str:
        has = [told[leader][1] for leader in self._leaders]
        wants: list[set[str]] = [set() for _ in range(self.count)]
        for rank, (mine, _, _) in enumerate(told):
            wants[self.of_rank[rank]] |= mine
        lost = [file.name for file in manifest.files if not any(file.name in names for names in has)]
        if lost:
            why = [fault for _, _, found in told for fault in found if lost[0] in fault]
            return why[0] if why else f"{entry.path}: no node has {lost[0]}"
        moves = [
            Move(file, next(node for node in range(self.count) if file.name in has[node]), target)
            for file in manifest.files
            for target in range(self.count)
            if file.name in wants[target] - has[target]
        ]
        fault = ""
        if self.leads and not os.path.exists(os.path.join(entry.path, NAME)):
            try:
                os.makedirs(entry.path, exist_ok=True)
            except OSError as error:
                fault = str(error)
        fault = self.move(moves, lambda name: os.path.join(entry.path, name)) or fault
        if self.leads and not fault:
            here = has[self.index] | wants[self.index]
            try:
                self._describe(entry.path, manifest, here)
            except OSError as error:
                fault = str(error)
        said: list[str] = self.gather(fault)
        return next((text for text in said if text), "")

    def _whole(self, entry: folder.Entry, manifest: Manifest) -> tuple[set[str], list[str]]:
        """Which files are here as they were written, and what is wrong with others."""
        have, faults = set(), []
        for file in manifest.files:
            if os.path.exists(os.path.join(entry.path, file.name)):
                try:
                    read_files(entry.path, [file], {}, frozenset([file.name]))
                    have.add(file.name)
                except Damaged as error:
                    faults.append(error.message)
        return have, faults

    def verify(self, entry: folder.Entry) -> bool:
        """Whether every node's share is whole: read from the disks."""
        fault = ""
        if self.leads:
            try:
                manifest = folder.checked_manifest(entry)
                with open(os.path.join(entry.path, HELD), "rb") as file:
                    names = unseal(file.read(), os.path.join(entry.path, HELD))["files"]
                held = _named(manifest, names)
                read_files(entry.path, held, {}, frozenset(names), lanes=1)
            except (OSError, CheckpointError) as error:
                fault = str(error)
        return not any(self.gather(fault))


def shared_secret(rank: int) -> bytes:
    """Random, made by rank 0 and left in the store by which the process group has met; where there is none, told by rank 0."""
    made = os.urandom(32) if rank == 0 else b""
    store: Any = dist.distributed_c10d._get_default_store()  # noqa: SLF001 - it has no public name
    if store is None:  # MPI meets without one
        box: list[Any] = [made]
        dist.broadcast_object_list(box, src=0)
        return bytes(box[0])
    if rank == 0 and not store.check([_LEFT_AT]):  # a second checkpointer of the process group uses the first one's
        store.set(_LEFT_AT, made.hex())
    return bytes.fromhex(store.get(_LEFT_AT).decode())


def _proof(secret: bytes, nonces: bytes, of: int, rank: int) -> bytes:
    return hmac.digest(secret, b"penstock checkpoint %d %d " % (of, rank) + nonces, "sha256")


def here(manifest: Manifest, path: str) -> Manifest:
    """With those files alone that a node's folder has."""
    return replace(manifest, files=tuple(f for f in manifest.files if os.path.exists(os.path.join(path, f.name))))


def own_files(manifest: Manifest, node: int) -> tuple[File, ...]:
    return tuple(_named(manifest, _of_node(manifest, node)))


def _of_node(manifest: Manifest, node: int) -> list[str]:
    nodes = manifest.origin["nodes"]
    names: list[str] = nodes[node] if node < len(nodes) else []
    return names


def _named(manifest: Manifest, names: Collection[str]) -> list[File]:
    return [file for file in manifest.files if file.name in set(names)]
