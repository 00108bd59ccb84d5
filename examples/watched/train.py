"""A small training that is watched: one line, and the job tells what its steps are spent on.

Runs by hand (`python train.py`), under `torchrun --nproc-per-node 2 train.py`, and as a job (`penstock apply -f job.yaml`).
"""

from __future__ import annotations

import os
import time

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

import penstock

STEPS = int(os.environ.get("STEPS", "2000"))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    model: nn.Module = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 8))
    if ranks > 1:
        distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    rows = torch.randn(64 * 50, 128)
    loader = DataLoader(TensorDataset(rows, rows[:, :8]), batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watched = penstock.watch(model, optimizer, loader)  # the line
    step = 0
    while step < STEPS:
        for inputs, wanted in watched:
            optimizer.zero_grad()
            loss = (model(inputs) - wanted).square().mean()
            watched.loss(loss)  # before the optimizer's step, which ends this one
            loss.backward()
            optimizer.step()
            time.sleep(0.02)  # stands in for the rest of a model
            penstock.report(step=step, total_steps=STEPS, loss=loss)
            step += 1
            if step == STEPS:
                break
    print(f"loss {loss.item():.3f} after {step} steps")
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
