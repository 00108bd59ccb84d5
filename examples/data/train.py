"""Data parallel over tokens: a small model of bytes that goes on in its data where it was, on any number of ranks.

penstock data prepare --bytes --block-size 64 README.md docs/*.md /tmp/tokens
penstock run --procs 2 -- python examples/data/train.py --data /tmp/tokens --steps 200
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import penstock

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--dir", help="default: the job's own folder (PENSTOCK_CKPT_DIR)")
arguments = parser.parse_args()
WIDTH, BLOCK = 32, 64


class Bytes(nn.Module):
    """One block of a GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        seen = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.block(seen, src_mask=mask, is_causal=True))


dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
torch.manual_seed(0)
model = DistributedDataParallel(Bytes())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

loader = penstock.data.TokenLoader(arguments.data, block_size=BLOCK, batch=24, seed=0)  # 24: of all ranks together
ckpt = penstock.checkpoint.Checkpointer(arguments.dir, model=model, optimizer=optimizer, loader=loader, every=20)
for step in range(ckpt.load(), arguments.steps):
    tokens = next(loader)
    logits = model(tokens)[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dist.all_reduce(mean := loss.detach().double() / dist.get_world_size())
    if dist.get_rank() == 0:
        penstock.report(step=step, total_steps=arguments.steps, loss=mean, epoch=loader.epoch)
        print(f"step {step} loss {mean.item():.9f}", flush=True)
    if ckpt.step(step):  # asked to stop: everything is saved
        break
ckpt.close()
loader.close()
dist.destroy_process_group()
