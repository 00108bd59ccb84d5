"""A rank of test_nodes: ``python -m tests.worker.checkpoint.apart BASE STEPS OPTIONS`` trains in a folder of its own.

Each rank is a node. The model is the same on all, so that each node has half of it; what was loaded is told as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from xxhash import xxh3_128_hexdigest

from penstock.base.errors import PenstockError
from penstock.worker.checkpoint import nodes
from penstock.worker.checkpoint.public import Options
from penstock.worker.checkpoint.tensors import as_bytes
from tests.worker.checkpoint.training import Training


def another_secret(rank: int) -> bytes:
    """Of a node that is of another job."""
    del rank
    return bytes(32)


def digest(training: Training) -> str:
    moments = training.optimizer.state_dict()["state"].values()
    tensors = [*training.state().values(), *(tensor for values in moments for tensor in values.values())]
    tensors = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return xxh3_128_hexdigest(b"".join(as_bytes(tensor.contiguous()).tobytes() for tensor in tensors))


def main() -> int:
    base, steps, said = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    fresh = said.pop("seed", 0)
    keep = said.pop("keep", 3)
    training = Training(seed=fresh)
    if said.pop("fsdp", False):
        fully_shard(training.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        training.optimizer = torch.optim.AdamW(training.model.parameters(), lr=0.01)
        training.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 50)
    if said.get("stranger") == dist.get_rank():
        nodes.shared_secret = another_secret
    told: dict[str, Any] = {}
    try:
        options = Options(
            node_local=True,
            commit_timeout=30,
            neighbour=said.get("neighbour", False),
            tiers=tuple(said.get("tiers", ())),
        )
        ckpt = training.checkpointer(f"{base}/node-{dist.get_rank()}", options, every=2, keep=keep)
        told["start"] = ckpt.load()
        told["loaded"] = digest(training)
        for step in range(told["start"], steps):
            training.one()
            ckpt.step(step)
            ckpt.wait()
        told["end"] = digest(training)
        ckpt.close()
    except PenstockError as error:
        told["error"] = f"{error.code}: {error.message}"
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
