"""A script that knows nothing of Penstock, as people have them for torchrun: it fits y = 3x - 1 on every rank's own data."""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(dist.get_rank())
model = DistributedDataParallel(torch.nn.Linear(1, 1).to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(1, 201):
    x = torch.randn(256, 1, device=device)
    loss = torch.nn.functional.mse_loss(model(x), 3 * x - 1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if dist.get_rank() == 0 and step % 40 == 0:
        print(f"step {step} loss {loss.item():.6f}", flush=True)
if dist.get_rank() == 0:
    print(f"y = {model.module.weight.item():.3f} x + {model.module.bias.item():.3f}, by {dist.get_world_size()} ranks")
dist.destroy_process_group()
