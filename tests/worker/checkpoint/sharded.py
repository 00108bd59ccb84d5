"""What the ranks of test_dcp do: ``torchrun ... sharded.py save|load FOLDER`` saves on some ranks, loads on others.

The state is a function of names alone, so that a loader knows what it must find.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from penstock.worker.checkpoint.public import Reader, Stager, Writer

SHAPES = ((7, 5), (16, 3), (1, 4), (33, 2, 2))


def whole(index: int) -> torch.Tensor:
    return torch.randn(SHAPES[index % 4], generator=torch.Generator().manual_seed(index))


def state(fill: bool) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensors: dict[str, Any] = {}
    for index in range(12):
        value = whole(index) if fill else torch.zeros(SHAPES[index % 4])
        placement = [Shard(0), Shard(1), Replicate()][index % 3]
        tensors[f"t{index}"] = distribute_tensor(value, mesh, [placement])
    plain = torch.arange(10, dtype=torch.bfloat16) if fill else torch.zeros(10, dtype=torch.bfloat16)
    extra = {"lr": 0.25, "seen": [1, "two"], "when": (3, None)} if fill else {"lr": 0.0, "seen": [], "when": ()}
    return {"model": tensors, "plain": plain, "extra": extra}


def main() -> int:
    dist.init_process_group("gloo")
    verb, path = sys.argv[1:]
    if verb == "save":
        stager = Stager()
        for step in (1, 2):
            saved = state(fill=True)
            future: Any = async_save(saved, storage_writer=Writer(path, step), async_stager=stager)
            for tensor in saved["model"].values():
                tensor.zero_()  # what was staged does not change with it
            getattr(future, "upload_completion", future).result()
        stager.close()
    else:
        found = state(fill=False)
        load(found, storage_reader=Reader(path))
        for index in range(12):
            tensor = found["model"][f"t{index}"]
            assert isinstance(tensor, DTensor)
            assert torch.equal(tensor.full_tensor(), whole(index)), index
        assert torch.equal(found["plain"], torch.arange(10, dtype=torch.bfloat16))
        sys.stdout.write(f"{found['extra']}\n")
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # what is tested is done; torch's own threads ended one run of sixteen by std::terminate after it
