"""The training whose faults are diagnosed: DDP over gloo, an ordinary loop, a few million operations a step.

A device is stood in for by a pause in the forward pass, in proportion to the rows, during which the host waits without working:
with 2 to 4 ranks on 2 cores nothing else would be measured but who gets a core.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, IterableDataset

import penstock

ROWS, WIDTH, HIDDEN, OUT = 64, 256, 512, 16
BATCH_BYTES = ROWS * WIDTH * 4  # 64 KiB, read from the disk at every step
BATCHES = 64  # of the file, round and round
DEVICE_S = 0.015  # for ROWS rows
SAVE_EVERY = 12
CHECKSUM_EVERY = 1


@dataclass(frozen=True, slots=True)
class Options:
    rank: int
    world: int
    steps: int
    master: str
    port: int
    data: str  # the file of the data set
    folder: str  # for checkpoints
    seed: int = 0
    workers: int = 0  # of the data loader
    double: bool = False  # a fault that a training is started with: it computes in double precision


class Rows(IterableDataset[torch.Tensor]):
    """Batches straight from the disk (O_DIRECT), so that a slow disk is felt."""

    def __init__(self, path: str, first: int) -> None:
        self.path, self.first = path, first

    def __iter__(self) -> Iterator[torch.Tensor]:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        page = mmap.mmap(-1, BATCH_BYTES)  # aligned, as O_DIRECT wants it
        number = self.first
        try:
            while True:
                os.preadv(fd, [page], number % BATCHES * BATCH_BYTES)
                yield torch.frombuffer(bytearray(page), dtype=torch.float32).view(ROWS, WIDTH)
                number += 1
        finally:
            os.close(fd)


class Device(nn.Module):
    """Takes its time for every row, and none of the host's."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        time.sleep(DEVICE_S * len(rows) / ROWS)
        return rows


def make_data(path: Path) -> None:
    """By NumPy: torch's threads would not be there after a fork."""
    rows = np.random.default_rng(7).standard_normal((BATCHES * ROWS, WIDTH), dtype=np.float32)
    path.write_bytes(rows.tobytes())


def save(model: nn.Module, folder: str, step: int) -> None:
    """Past the page cache, as a checkpoint that must survive is written."""
    path, part = f"{folder}/step-{step}.pt", f"{folder}/part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _direct(folder))
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    with closing(mmap.mmap(-1, -(-len(weights) // 4096) * 4096)) as pages:
        pages.write(weights)
        try:
            os.writev(fd, [pages])
            os.fsync(fd)
        finally:
            os.close(fd)
    os.replace(part, path)


def _direct(folder: str) -> int:
    """A memory file system (a small one, filled on purpose) takes no O_DIRECT."""
    return os.O_DIRECT if os.major(os.stat(folder).st_dev) else 0


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        Device(), nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT)
    )


def train(options: Options) -> None:
    torch.set_num_threads(1)
    bare = network(options.seed)
    if options.double:
        bare.double()
    where = f"tcp://{options.master}:{options.port}"
    distributed.init_process_group("gloo", init_method=where, rank=options.rank, world_size=options.world)
    model = nn.parallel.DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader: Any = DataLoader(Rows(options.data, options.rank * 7), batch_size=None, num_workers=options.workers)
    watched = penstock.watch(model, optimizer, loader, checksum_every=CHECKSUM_EVERY)
    batches = iter(watched)
    with closing(watched):  # as at the end of any process but a forked one
        for step in range(options.steps):
            rows = next(batches).to(bare[1].weight.dtype)
            optimizer.zero_grad()
            loss = (model(rows) - rows[:, :OUT]).square().mean()
            loss.backward()
            optimizer.step()
            watched.loss(loss)
            penstock.report(step=step, total_steps=options.steps)
            if options.rank == 0 and step % SAVE_EVERY == SAVE_EVERY - 1:
                with watched.checkpoint():
                    save(bare, options.folder, step)
    distributed.destroy_process_group()
