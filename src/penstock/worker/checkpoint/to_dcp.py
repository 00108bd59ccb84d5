"""A checkpoint as a folder of DCP's own, which ``dcp.load`` reads without Penstock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from penstock.worker.checkpoint.codec import decode
from penstock.worker.checkpoint.errors import CheckpointError
from penstock.worker.checkpoint.exporting import finished
from penstock.worker.checkpoint.layout import Box
from penstock.worker.checkpoint.loading import Filling
from penstock.worker.checkpoint.manifest import Manifest
from penstock.worker.checkpoint.parts import read_inline
from penstock.worker.checkpoint.reading import read_files
from penstock.worker.checkpoint.tensors import DTYPES
from penstock.worker.checkpoint.writing import sync_folder


def export_dcp(folder: str, manifest: Manifest, out: str) -> tuple[int, int]:
    """Models, optimizers and plain state under the names that ``torch.distributed.checkpoint.state_dict`` gives them.

    Each rank's own (random state, data position) is left out. Answers the number of tensors, and their bytes.
    """
    tensors = _tensors(folder, manifest)
    if not tensors:
        raise CheckpointError(f"no tensors in {folder}")
    with finished(out) as temporary:
        save(_tree(manifest, tensors), storage_writer=FileSystemWriter(temporary, sync_files=True), no_dist=True)
        sync_folder(temporary)
        size = sum(entry.stat().st_size for entry in os.scandir(temporary))
    return len(tensors), size


def _tensors(folder: str, manifest: Manifest) -> dict[str, torch.Tensor]:
    plan = Filling(manifest)
    whole = {}
    for tensor in manifest.tensors:
        whole[tensor.name] = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
        zeros = (0,) * len(tensor.shape)
        plan.add(Box(tensor.name, tensor.dtype, tensor.shape, zeros, tensor.shape), whole[tensor.name])
    read_files(folder, manifest.files, plan.wants, frozenset(file.name for file in manifest.files))
    plan.finish()
    return whole


def _tree(manifest: Manifest, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    if "dcp" in manifest.state:  # written through DCP: it has said where each name stands
        return _as_planned(manifest, tensors)
    tree: dict[str, Any] = {}
    for name, body in manifest.state.items():
        kind = body.get("kind")
        if kind == "module":
            tree[name] = {**dict(_below(name, tensors)), **decode(body["rest"], read_inline)}
        elif kind == "optimizer":
            state = {
                parameter: {
                    **{key: tensors[f"{name}.{parameter}.{key}"] for key in row["tensors"]},
                    **decode(row["values"], read_inline),
                }
                for parameter, row in body["state"].items()
            }
            tree[name] = {"state": state, "param_groups": decode(body["groups"], read_inline)}
        elif kind == "object":
            tree[name] = decode(body["state"], lambda tagged: _leaf(tagged, tensors))
    return tree


def _as_planned(manifest: Manifest, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    paths = decode(manifest.state["dcp"]["paths"])
    values: dict[str, Any] = dict(tensors)
    for row in manifest.ranks:
        values |= {name: decode(body, read_inline) for name, body in row.get("objects", {}).items()}
    tree: dict[str, Any] = {}
    for name, value in values.items():
        at: Any = tree
        path = paths.get(name, [name])
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    return tree


def _leaf(tagged: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    return tensors[tagged["v"]] if tagged["$"] == "kept" else read_inline(tagged)


def _below(name: str, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for full, tensor in tensors.items():
        if full.startswith(f"{name}."):
            yield full.removeprefix(f"{name}."), tensor
