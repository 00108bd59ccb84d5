"""Part D's table on one GPU: a state of 20 GiB on it, pinned staging, against the same bytes copied and written.

The floors are taken in the same round: one copy of the same bytes into one pinned buffer, the faster of a buffered and a
direct write with fsync, the faster of a buffered and a direct read. ``--seconds`` bounds the whole; a round that would
not end in time is not begun. Prints a line a bar, and all samples as JSON to ``--out``. Needs a GPU: no part of
``make bars``; docs/gpu-checks.md has what was seen.

    python -m benchmarks.checkpoint_gpu [--gib 20] [--seconds 240] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

from benchmarks.harness import Bar
from penstock.worker.checkpoint.public import Checkpointer, Options

TENSORS, COLUMNS = 96, 4096
BLOCK = 64 << 20
now = time.perf_counter


class Weights(torch.nn.Module):
    def __init__(self, gib: float) -> None:
        super().__init__()
        rows = max(2, int(gib * 2**28 / TENSORS / COLUMNS))
        for index in range(TENSORS):
            value = torch.randn(rows, COLUMNS, device="cuda")
            self.register_parameter(f"t{index}", torch.nn.Parameter(value, requires_grad=False))


class Run:
    def __init__(self, folder: str, gib: float) -> None:
        self.folder = folder
        self.weights = Weights(gib)
        self.state: dict[str, Any] = dict(self.weights.state_dict())
        self.size = sum(value.nbytes for value in self.state.values())
        self.flat = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
        options = Options(read_back=False, reserve=0)
        self.ours = Checkpointer(f"{folder}/ours", weights=self.weights, keep=1, every=10**9, options=options)
        self.ours.step(0)
        self.stager = DefaultStager(StagingOptions(True, False, True, False))
        self.steps = 0
        self.hidden = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def copy(self) -> float:
        began, at = now(), 0
        for value in self.state.values():
            self.flat[at : at + value.nbytes].copy_(value.view(-1).view(torch.uint8), non_blocking=True)
            at += value.nbytes
        torch.cuda.synchronize()
        return now() - began

    def write(self, flags: int) -> float:
        path = f"{self.folder}/floor"
        began = now()
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | flags, 0o644)
        view = self.flat.numpy().data
        while view:
            view = view[os.pwrite(fd, view[:BLOCK], self.size - len(view)) :]
        os.fsync(fd)
        os.close(fd)
        return now() - began

    def read(self, flags: int) -> float:
        forget(Path(self.folder))
        began = now()
        fd = os.open(f"{self.folder}/floor", os.O_RDONLY | flags)
        view = self.flat.numpy().data
        while view:
            view = view[os.preadv(fd, [view[:BLOCK]], self.size - len(view)) :]
        os.close(fd)
        return now() - began

    def save(self) -> tuple[float, float]:
        self.steps += 1
        began = now()
        self.ours.save(self.steps)
        stall = now() - began
        self.ours.wait()
        return stall, now() - began

    def load(self) -> float:
        forget(Path(self.folder))
        began = now()
        self.ours.load()
        torch.cuda.synchronize()
        return now() - began

    def dcp(self) -> tuple[float, float]:
        folder = f"{self.folder}/dcp"
        began = now()
        answer: Any = async_save(
            self.state,
            checkpoint_id=folder,
            async_checkpointer_type=AsyncCheckpointerType.THREAD,
            async_stager=self.stager,
        )
        getattr(answer, "staging_completion", answer).result()
        stall = now() - began
        getattr(answer, "upload_completion", answer).result()
        for path in [*Path(folder).rglob("*"), Path(folder)]:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        durable = now() - began
        shutil.rmtree(folder)
        return stall, durable

    def step(self) -> float:
        """One of about 100 ms at an H100's rate."""
        began = now()
        for _ in range(70):
            self.hidden = torch.tanh(self.hidden @ self.hidden * 0.01)
        torch.cuda.synchronize()
        self.ours.step(self.steps)
        return now() - began

    def slow_down(self, seconds: float) -> tuple[float, int, float]:
        for _ in range(5):
            self.step()
        usual = [self.step() for _ in range(20)]
        self.steps += 1
        self.ours.save(self.steps)
        began, during = now(), []
        while self.ours.busy and now() - began < seconds:
            during.append(self.step())
        lasted = now() - began
        self.ours.wait()
        usual += [self.step() for _ in range(20)]
        return statistics.mean(during) / statistics.mean(usual) if during else float("nan"), len(during), lasted


def forget(folder: Path) -> None:
    """Out of the page cache: a load after a failure finds nothing there."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def one_round(run: Run) -> dict[str, float]:
    found = {"copy": run.copy()}
    found["buffered write"] = run.write(0)
    os.unlink(f"{run.folder}/floor")
    found["direct write"] = run.write(os.O_DIRECT)
    found["direct read"] = run.read(os.O_DIRECT)
    found["buffered read"] = run.read(0)
    os.unlink(f"{run.folder}/floor")
    found["stall"], found["durable"] = run.save()
    found["load"] = run.load()
    try:
        found["dcp stall"], found["dcp durable"] = run.dcp()
    except (RuntimeError, OSError) as error:
        sys.stdout.write(f"DCP: {error}\n")
        found["dcp stall"] = found["dcp durable"] = float("nan")
    return found


def bars(rounds: list[dict[str, float]], slow: tuple[float, int, float] | None) -> list[Bar]:
    def ratio(name: str, key: str, limit: float, *floors: str, peer: str = "") -> Bar:
        values = [row[key] / min(row[floor] for floor in floors) for row in rounds]
        note = f"{min(values):.2f} to {max(values):.2f} in {len(values)} rounds, {rounds[-1][key]:.2f} s"
        if peer:
            theirs = statistics.median(row[peer] / min(row[floor] for floor in floors) for row in rounds)
            note += f"; DCP async, pinned: {theirs:.2f}"
        return Bar(name, statistics.median(values), limit, "x", note=note)

    found = [
        ratio("checkpoint, GPU: stall / copy of the same bytes", "stall", 1.3, "copy", peer="dcp stall"),
        ratio(
            "checkpoint, GPU: durable and verified / write",
            "durable",
            1.3,
            "direct write",
            "buffered write",
            peer="dcp durable",
        ),
        ratio("checkpoint, GPU: load and verify / read", "load", 1.5, "direct read", "buffered read"),
    ]
    if slow is not None:
        note = f"{slow[1]} steps in a drain of {slow[2]:.1f} s"
        found.append(Bar("checkpoint, GPU: step time while a save drains", slow[0], 1.15, "x", note=note))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--out", default=None)
    arguments = parser.parse_args()
    ends = now() + arguments.seconds
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    folder = tempfile.mkdtemp(prefix="checkpoint-gpu-", dir=arguments.folder)
    rounds: list[dict[str, float]] = []
    slow = None
    try:
        run = Run(folder, arguments.gib)
        # The buffer is made in the background: the first floor must not share the memory with that.
        pinned = run.ours._stage(run.ours._capture()[2])  # noqa: SLF001 - nobody else waits for the buffer alone
        sys.stdout.write(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {run.size / 2**30:.1f} GiB, folder {folder}, "
            f"staging pinned: {pinned is not None and pinned._pinned}\n"  # noqa: SLF001 - no figure tells whether it is pinned
        )
        took = 0.0
        while len(rounds) < 5 and (not rounds or now() + 1.2 * took < ends - 30):
            began = now()
            rounds.append(one_round(run))
            took = now() - began
            sys.stdout.write(f"round {len(rounds)}: {json.dumps({k: round(v, 3) for k, v in rounds[-1].items()})}\n")
            sys.stdout.flush()
        if now() < ends - 15:
            slow = run.slow_down(max(10.0, ends - now() - 10))
        for bar in bars(rounds, slow):
            sys.stdout.write(bar.line() + f"   {bar.note}\n")
        run.ours.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if arguments.out:
            Path(arguments.out).write_text(json.dumps({"rounds": rounds, "slow": slow}))
    sys.stdout.flush()
    os._exit(0)  # DCP's threads do not end by themselves


if __name__ == "__main__":
    sys.exit(main())
