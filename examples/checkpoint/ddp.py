"""Data parallel: the ranks share the work of saving, and what N ranks saved M can load.

penstock run --procs 2 -- python examples/checkpoint/ddp.py --steps 200
"""

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import penstock

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--dir", help="default: the job's own folder (PENSTOCK_CKPT_DIR)")
arguments = parser.parse_args()

dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

penstock.watch(model, optimizer)  # what each step is spent on: docs/diagnosis.md
ckpt = penstock.checkpoint.Checkpointer(arguments.dir, model=model, optimizer=optimizer, every=20)
for step in range(ckpt.load(), arguments.steps):
    # The batch is a function of the step, and each rank takes its rows: the same data whatever the number of ranks.
    batch = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
    x = batch.chunk(ranks)[rank]
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dist.all_reduce(mean := loss.detach() / ranks)
    if rank == 0:
        penstock.report(step=step, total_steps=arguments.steps, loss=mean)
        print(f"step {step} loss {mean.item():.9f}", flush=True)
    if ckpt.step(step):  # asked to stop: everything is saved
        break
ckpt.close()
dist.destroy_process_group()
