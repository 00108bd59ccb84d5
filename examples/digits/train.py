"""Train a small CNN on the UCI digits (8x8 images) with DistributedDataParallel, restartable at any moment.

    python train.py                             # one process
    torchrun --nproc-per-node 2 train.py        # two, by hand
    penstock run --procs 2 -- python train.py   # two, watched, restarted from the last checkpoint when a rank dies

The 1,797 images come with scikit-learn: nothing is downloaded. A fifth of them are set aside before training and seen
only by the final test. The run is a function of the seed and the number of ranks: a restart repeats no step's effect.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

try:
    from penstock import report
except ImportError:  # the script runs without Penstock too

    def report(**_: object) -> None: ...


SPLIT_SEED = 0  # the same images are set aside whatever --seed says
SHIFT_PIXELS = 1  # training images are moved by up to this much, so that few images teach more


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rank, world, device = join()
    train_set, test_set = load()
    sampler = DistributedSampler(train_set, num_replicas=world, rank=rank, seed=args.seed, drop_last=True)
    loader = DataLoader(train_set, batch_size=max(1, args.batch // world), sampler=sampler, drop_last=True)
    total = args.epochs * len(loader)
    model = build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=total + 1)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    folder = Path(os.environ.get("PENSTOCK_CKPT_DIR") or args.checkpoints)
    first = step = restore(folder, parts, device)
    say(
        rank,
        f"{world} rank(s) on {device.type}, {total} steps: " + (f"resumed at step {step}" if step else "a fresh start"),
    )
    wrapped = DistributedDataParallel(model) if world > 1 else model
    began = time.monotonic()
    while step < total:
        epoch, done = divmod(step, len(loader))
        sampler.set_epoch(epoch)
        for images, labels in islice(loader, done, None):  # what was done before a restart is passed over
            torch.manual_seed((args.seed * total + step) * world + rank)  # a repeated step makes the same choices
            loss = cross_entropy(wrapped(shift(images.to(device))), labels.to(device), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if rank == 0 and step % 5 == 0:
                report(step=step, total_steps=total, loss=loss.item(), lr=schedule.get_last_lr()[0])
            if rank == 0 and (step % args.checkpoint_every == 0 or step == total):
                save(folder, step, parts)
        say(rank, f"epoch {epoch + 1}/{args.epochs} step {step}/{total} loss {loss.item():.4f}")
    if rank == 0:
        score = accuracy(model, test_set, device)
        report(step=step, total_steps=total, accuracy=score)
        result = {
            "accuracy": round(score, 4),
            "steps": step,
            "resumed_at": first,
            "world_size": world,
            "seed": args.seed,
        }
        result["seconds"] = round(time.monotonic() - began, 1)
        Path(args.result).write_text(json.dumps(result) + "\n")
        print(f"test accuracy {score:.4f}", flush=True)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128, help="images a step, over all ranks")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=20, help="steps")
    parser.add_argument("--checkpoints", default="checkpoints", help="where, when Penstock does not say")
    parser.add_argument("--result", default="result.json")
    return parser.parse_args()


def join() -> tuple[int, int, torch.device]:
    """This process's rank, the world size and its device; the process group where there is more than one rank."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if world > 1:
        # nccl wants a GPU for each rank; ranks that share one talk by gloo
        own_gpu = cuda and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        dist.init_process_group("nccl" if own_gpu else "gloo")
    return rank, world, device


def load() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.5
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=SPLIT_SEED, stratify=labels)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 4, 10),
    )  # fmt: skip


def shift(images: torch.Tensor) -> torch.Tensor:
    down, right = torch.randint(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2,)).tolist()
    return torch.roll(images, (down, right), dims=(2, 3))


def save(folder: Path, step: int, parts: dict[str, Any]) -> None:
    """Whole or not at all: written beside the last one, flushed to the disk, then renamed over it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"last.pt.{os.getpid()}"
    with partial.open("wb") as file:
        torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / "last.pt")
    print(f"checkpoint at step {step}", flush=True)


def restore(folder: Path, parts: dict[str, Any], device: torch.device) -> int:
    """The step to go on from: the last checkpoint's, or 0."""
    last = Path(os.environ.get("PENSTOCK_RESUME_FROM") or folder) / "last.pt"
    if not last.exists():
        return 0
    state = torch.load(last, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset, device: torch.device) -> float:
    model.eval()
    images, labels = data.tensors
    return (model(images.to(device)).argmax(1).cpu() == labels).float().mean().item()


def say(rank: int, line: str) -> None:
    if rank == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main()
