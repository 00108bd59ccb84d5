"""One process: train, save every 20 steps, and go on from the newest whole checkpoint when started again.

penstock run -- python examples/checkpoint/plain.py --steps 200
"""

import argparse

import torch

import penstock

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--dir", help="default: the job's own folder (PENSTOCK_CKPT_DIR)")
arguments = parser.parse_args()

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)

ckpt = penstock.checkpoint.Checkpointer(arguments.dir, model=model, optimizer=optimizer, scheduler=scheduler, every=20)
for step in range(ckpt.load(), arguments.steps):
    x = torch.randn(32, 16)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    penstock.report(step=step, total_steps=arguments.steps, loss=loss)
    print(f"step {step} loss {loss.item():.9f}", flush=True)
    if ckpt.step(step):  # asked to stop: everything is saved
        break
ckpt.close()
