"""One run of the training that `benchmarks.training_data` kills: each rank writes down, and syncs, what it trained on.

python -m torch.distributed.run ... -m benchmarks.training_data_run DATA CHECKPOINTS RECORDS LIFE STEPS
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import penstock

BLOCK, BATCH, EVERY = 16, 24, 5


def main(data: str, checkpoints: str, records: str, life: str, steps: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(BLOCK, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = penstock.data.TokenLoader(data, block_size=BLOCK, batch=BATCH, seed=3)
    ckpt = penstock.checkpoint.Checkpointer(checkpoints, model=model, optimizer=optimizer, loader=loader, every=EVERY)
    start = ckpt.load()
    with open(os.path.join(records, f"{life}-{rank}.jsonl"), "a", encoding="utf-8") as record:

        def write(**row: object) -> None:
            record.write(json.dumps(row) + "\n")
            record.flush()
            os.fsync(record.fileno())

        write(start=start, ranks=dist.get_world_size())
        for step in range(start, int(steps)):
            tokens = next(loader)
            loss = model(tokens.float() / 1000).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            write(step=step, samples=tokens[:, 0].tolist())  # each sample's tokens are its number
            if ckpt.step(step):
                break
    ckpt.close()
    loader.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
