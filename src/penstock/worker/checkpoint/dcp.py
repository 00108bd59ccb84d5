"""PyTorch's Distributed Checkpoint (DCP) over this format: a storage writer, a storage reader and a stager.

``dcp.async_save(state, storage_writer=Writer(folder, step), async_stager=stager)`` plans as DCP plans, and writes what
``Checkpointer`` writes; ``dcp.load(state, storage_reader=Reader(folder))`` reads what either wrote. Where DCP would
pickle an object, it stands in the manifest as plain data, or is refused.
"""

from __future__ import annotations

import copy
import io
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from penstock.worker import contract
from penstock.worker.checkpoint import folder, saving
from penstock.worker.checkpoint.codec import decode, encode
from penstock.worker.checkpoint.errors import CheckpointError, Damaged
from penstock.worker.checkpoint.layout import Box, make_layout
from penstock.worker.checkpoint.loading import Filling
from penstock.worker.checkpoint.manifest import Manifest
from penstock.worker.checkpoint.memory import stand_back
from penstock.worker.checkpoint.parts import inline, read_inline
from penstock.worker.checkpoint.reading import read_files
from penstock.worker.checkpoint.staging import Staging, streamed
from penstock.worker.checkpoint.tensors import DTYPES, dtype_name, place
from penstock.worker.checkpoint.upkeep import Shelf, latest
from penstock.worker.checkpoint.writing import Pace


class Writer(StorageWriter):
    """Saves into ``directory`` as a new checkpoint each time; the last ``keep`` verified ones stay (None: all).

    The step is ``step``, or the number at the end of DCP's ``checkpoint_id`` where one is given (``step-500``).
    """

    def __init__(self, directory: str, step: int = 0, *, keep: int | None = None, pace: Pace | None = None) -> None:
        self.directory = os.path.abspath(directory)
        self.step = step
        self._keep = keep
        self._pace = pace or Pace()
        said = contract.current()
        self._origin = {"job": said.job_id, "attempt": said.attempt, "torch": torch.__version__}
        self._lock = _lock_of(self.directory, said.job_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        number = re.search(r"(\d+)$", os.fspath(checkpoint_id)) if checkpoint_id is not None else None
        self.step = int(number[1]) if number else self.step

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            os.makedirs(self.directory, exist_ok=True)
            if not self._lock.held:  # it is, after a save that failed on another rank
                self._lock.take()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: one id for all ranks."""
        series = folder.new_series(folder.entries(self.directory))
        folder.clear(self.directory, series)
        said = {"id": folder.save_id(series, 1), "step": self.step, "of": len(plans)}
        return [replace(plan, storage_data={**said, "rank": rank}) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if threading.current_thread() is not threading.main_thread():
            stand_back(self._pace.niceness)
        ticket = self._ticket(plan.storage_data)
        try:
            saving.begin(ticket)
            boxes, tensors, objects = _resolved(plan, planner)
            layout = make_layout(saving.shard_name(ticket.rank), boxes)
            source = streamed(layout, tensors, layout.header(saving.notes_of(ticket)))
            self._saved = ticket, saving.write_part(ticket, source, layout, {"objects": objects}, {})
        except BaseException as error:
            saving.give_up(ticket, error)
            self._lock.release()
            raise
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, _size(item), ticket.rank) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, after every rank has written: the commit."""
        paths = {name: list(path) for name, path in (metadata.planner_data or {}).items()}
        try:
            saving.conclude(*self._saved, {"dcp": {"paths": encode(paths)}})
            if self._keep is not None:
                Shelf(self.directory, self._keep, None).prune()
        except BaseException as error:
            saving.give_up(self._saved[0], error)
            raise
        finally:
            self._lock.release()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(os.fspath(checkpoint_id))

    def _ticket(self, said: Mapping[str, Any]) -> saving.Ticket:
        return saving.Ticket(
            directory=self.directory,
            id=said["id"],
            step=said["step"],
            rank=said["rank"],
            world_size=said["of"],
            pace=self._pace,
            origin=self._origin,
        )


@cache
def _lock_of(directory: str, job: str) -> folder.Lock:
    """One for all writers of this process: a script may make a new writer for each save."""
    return folder.Lock(directory, {"job": job})


def _resolved(plan: SavePlan, planner: SavePlanner) -> tuple[list[Box], list[torch.Tensor], dict[str, Any]]:
    found: list[tuple[Box, torch.Tensor]] = []
    objects: dict[str, Any] = {}
    for item in plan.items:
        name = item.index.fqn
        if item.type == WriteItemType.BYTE_IO:
            objects[name] = encode(_object(planner, item), name, inline)
            continue
        if item.tensor_data is None:
            raise CheckpointError(f"DCP's plan says nothing of the tensor {name}")
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, torch.Tensor)
        chunk, whole = item.tensor_data.chunk, item.tensor_data.size
        box = Box(name, dtype_name(name, tensor.dtype), tuple(whole), tuple(chunk.offsets), tuple(chunk.sizes))
        found.append((box, tensor.detach()))
    found.sort(key=lambda pair: -pair[1].element_size())
    return [box for box, _ in found], [tensor for _, tensor in found], objects


def _object(planner: SavePlanner, item: WriteItem) -> Any:
    """The object itself. A planner without a way to look it up has pickled it in memory, and it is read back safely."""
    if hasattr(planner, "lookup_object"):
        return planner.lookup_object(item.index)
    data = planner.resolve_data(item)
    assert isinstance(data, io.BytesIO)
    data.seek(0)
    return torch.load(data, weights_only=True)


def _size(item: WriteItem) -> int:
    return item.tensor_storage_size() or 0


class Reader(StorageReader):
    """Reads one checkpoint's folder, or the newest whole one of a directory. Every byte is verified."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder = ""
        self._manifest: Manifest | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.path = os.fspath(checkpoint_id) if checkpoint_id is not None else self.path
        self._manifest = None

    def _open(self) -> Manifest:
        if self._manifest is None:
            entry = folder.entry_of(self.path) or latest(self.path)
            if entry is None:
                raise Damaged(f"no checkpoint in {self.path} is whole")
            self._folder, self._manifest = entry.path, folder.checked_manifest(entry)
        return self._manifest

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        manifest = self._open()
        known: dict[str, Any] = dict.fromkeys(self._objects(), BytesStorageMetadata())
        for tensor in manifest.tensors:
            boxes = {piece.offsets: piece.shape for piece in tensor.pieces}
            chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes.items()]
            properties = TensorProperties(dtype=DTYPES[tensor.dtype])
            known[tensor.name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        paths = decode(manifest.state.get("dcp", {}).get("paths", {}))
        return Metadata(known, planner_data={name: tuple(path) for name, path in paths.items()} or None)

    def _objects(self) -> dict[str, Any]:
        return {name: body for row in self._open().ranks for name, body in row.get("objects", {}).items()}

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return [replace(plan, storage_data=(rank, len(plans))) for rank, plan in enumerate(plans)]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        manifest = self._open()
        rank, ranks = plan.storage_data
        filling, objects = Filling(manifest), self._objects()
        targets = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                # The planner wants DCP's own form, which is made here, of data that was verified, and read at once.
                made = io.BytesIO()
                torch.save(decode(objects[item.storage_index.fqn], read_inline), made)
                made.seek(0)
                planner.load_bytes(item, made)
                continue
            tensor = filling.tensors[item.storage_index.fqn]
            origin = item.storage_index.offset or (0,) * len(tensor.shape)
            offsets = tuple(o + s for o, s in zip(origin, item.storage_offsets, strict=True))
            target = planner.resolve_tensor(item).detach()
            filling.add(Box(tensor.name, tensor.dtype, tensor.shape, offsets, tuple(item.lengths)), target)
            targets.append((item, target))
        every = frozenset(file.name for index, file in enumerate(manifest.files) if index % ranks == rank)
        read_files(self._folder, manifest.files, filling.wants, every)
        filling.finish()
        for item, target in targets:
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return os.path.isdir(checkpoint_id)


class Stager:
    """DCP's stager: copies a state dictionary into one buffer, which is kept from save to save."""

    _synchronize_after_execute = True

    def __init__(self) -> None:
        self._staging: Staging | None = None

    @property
    def should_synchronize_after_execute(self) -> bool:
        return self._synchronize_after_execute

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        found: list[torch.Tensor] = []
        _walk(state_dict, lambda tensor: found.append(tensor))
        placed = sorted(
            ((place(str(index), tensor), tensor) for index, tensor in enumerate(found)),
            key=lambda pair: -pair[0].local.element_size(),
        )
        boxes = tuple(
            Box(item.box.name, item.box.dtype, tuple(item.local.shape), (0,) * item.local.ndim, tuple(item.local.shape))
            for item, _ in placed
        )
        if self._staging is None or self._staging.layout.boxes != boxes:
            self.close()
            self._staging = Staging(make_layout("", boxes), any(tensor.is_cuda for tensor in found))
        self._staging.copy([item.local for item, _ in placed], b"")
        copies = {
            id(tensor): _like(tensor, torch.empty_like(item.local, device="cpu") if view is None else view)
            for (item, tensor), view in zip(placed, self._staging.views, strict=True)
        }
        staged: dict[str, Any] = _walk(state_dict, lambda tensor: copies[id(tensor)])
        return staged

    def synchronize_staging(self) -> None:
        """``stage`` returns when the copy is done."""

    def close(self) -> None:
        if self._staging is not None:
            self._staging.close()
            self._staging = None


def _like(tensor: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """The copy in its tensor's place: with the same mesh and placements where that is a DTensor."""
    if not isinstance(tensor, DTensor):
        return local
    return DTensor.from_local(
        local,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _walk(value: Any, on_tensor: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return on_tensor(value)
    if isinstance(value, Mapping):
        return {key: _walk(item, on_tensor) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_walk(item, on_tensor) for item in value)
    return copy.deepcopy(value)
