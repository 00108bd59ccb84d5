"""A training that goes on through whatever happens to its nodes, with as many of them as there are.

The batch of a step is the same whatever the number of ranks, each of which takes its rows of it: so is the loss.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import penstock

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--step-seconds", type=float, default=0.05, help="how long a step is made to take")
arguments = parser.parse_args()

dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
model = DistributedDataParallel(layers)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

ckpt = penstock.checkpoint.Checkpointer(model=model, optimizer=optimizer, every=10)
for step in range(ckpt.load(), arguments.steps):
    batch = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
    x = batch.chunk(ranks)[rank]
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dist.all_reduce(mean := loss.detach() / ranks)
    time.sleep(arguments.step_seconds)
    if rank == 0:
        penstock.report(step=step, total_steps=arguments.steps, loss=mean, ranks=ranks)
        print(f"step {step} ranks {ranks} loss {mean.item()!r}", flush=True)
    if ckpt.step(step):  # asked to stop, say to start again on more nodes: everything is saved
        break
ckpt.close()
dist.destroy_process_group()
