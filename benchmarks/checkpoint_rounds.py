"""The rounds of `benchmarks.checkpoint`, run by torchrun: every method in turn on the same tensors, on each rank."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from penstock.worker.checkpoint import memory
from penstock.worker.checkpoint.public import Checkpointer, Options, Stager, Writer
from penstock.worker.checkpoint.tensors import as_bytes

TENSORS, COLUMNS = 96, 1024
BLOCK = 16 << 20
now = time.perf_counter
Method = Callable[[str], Any]  # a folder -> where it goes on in the background: a future, or what waits for it


class Weights(torch.nn.Module):
    def __init__(self, gib: float, mesh: Any) -> None:
        super().__init__()
        rows = max(2, int(gib * 2**28 / TENSORS / COLUMNS))
        for index in range(TENSORS):
            value = distribute_tensor(torch.randn(rows, COLUMNS), mesh, [Shard(0)])
            self.register_parameter(f"t{index}", torch.nn.Parameter(value, requires_grad=False))


class Rounds:
    def __init__(self, folder: str, gib: float) -> None:
        self.folder = folder
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.weights = Weights(gib, init_device_mesh("cpu", (self.ranks,)))
        self.state: dict[str, Any] = dict(self.weights.state_dict())
        self.local: dict[str, torch.Tensor] = {
            name: value.to_local() if isinstance(value, DTensor) else value for name, value in self.state.items()
        }
        self.copies = {name: torch.zeros_like(value) for name, value in self.local.items()}
        self.flat = memory.aligned(sum(value.nbytes for value in self.local.values()))
        memory.touch(self.flat)
        at = 0
        for value in self.local.values():
            self.flat[at : at + value.nbytes] = as_bytes(value.contiguous())
            at += value.nbytes
        self.group: Any = dist.new_group(backend="gloo")
        self.stager, self.theirs = Stager(), DefaultStager(StagingOptions(False, False, False, False))
        self.process = DefaultStager(StagingOptions(False, True, False, False))
        options = Options(read_back=False, reserve=0)
        self.ours = Checkpointer(f"{folder}/ours", weights=self.weights, keep=1, every=10**9, options=options)
        self.ours.step(0)
        self.steps = 0

    # ------------------------------------------------------------------------------------------------- the methods

    def memcpy(self, _folder: str) -> None:
        for name, value in self.local.items():
            self.copies[name].copy_(value)

    def plain(self, flags: int) -> Method:
        def write(folder: str) -> None:
            fd = os.open(f"{folder}/r{self.rank}.bin", os.O_CREAT | os.O_WRONLY | flags, 0o644)
            view = self.flat.data
            while view:
                view = view[os.pwrite(fd, view[:BLOCK], len(self.flat) - len(view)) :]
            os.close(fd)

        return write

    def read(self, flags: int) -> Method:
        def read(_folder: str) -> None:
            fd = os.open(f"{self.folder}/read-{self.rank}", os.O_RDONLY | flags)
            view = self.flat.data
            while view:
                view = view[os.preadv(fd, [view[:BLOCK]], len(self.flat) - len(view)) :]
            os.close(fd)

        return read

    def save_ours(self, _folder: str) -> Any:
        self.steps += 1
        self.ours.save(self.steps)
        return self.ours.wait

    def load_ours(self, _folder: str) -> None:
        self.ours.load()

    def dcp(self, kind: AsyncCheckpointerType, stager: Any) -> Method:
        def write(folder: str) -> Any:
            return async_save(
                self.state,
                checkpoint_id=folder,
                async_checkpointer_type=kind,
                async_stager=stager,
                process_group=self.group,
            )

        return write

    def dcp_ours(self, folder: str) -> Any:
        writer = Writer(f"{folder}/dcp")
        return async_save(self.state, storage_writer=writer, async_stager=self.stager, process_group=self.group)

    def methods(self) -> dict[str, Method]:
        return {
            "memcpy": self.memcpy,
            "buffered write": self.plain(0),
            "direct write": self.plain(os.O_DIRECT),
            "penstock": self.save_ours,
            "penstock by DCP": self.dcp_ours,
            "torch.save": lambda folder: torch.save(self.local, f"{folder}/r{self.rank}.pt"),
            "safetensors": lambda folder: save_file(self.local, f"{folder}/r{self.rank}.safetensors"),
            "dcp.save": lambda folder: save(self.state, checkpoint_id=folder) and None,
            "dcp async thread": self.dcp(AsyncCheckpointerType.THREAD, self.theirs),
            "dcp async process": self.dcp(AsyncCheckpointerType.PROCESS, self.process),
            "buffered read": self.read(0),
            "direct read": self.read(os.O_DIRECT),
            "penstock load": self.load_ours,
        }

    # -------------------------------------------------------------------------------------------------- one method

    def once(self, name: str, method: Method) -> dict[str, float]:
        """The slowest rank's seconds until the call returned, and until all is on the disk."""
        folder = f"{self.folder}/c"
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            os.sync()
            if "read" in name or "load" in name:
                for path in Path(self.folder).rglob("*"):
                    _forget(path)
        dist.barrier()
        began = now()
        answer: Any = method(folder)
        stall = now() - began
        answer = getattr(answer, "upload_completion", answer)
        done = answer if callable(answer) else getattr(answer, "result", None)
        if done is not None:
            done()
        dist.barrier()
        if self.rank == 0 and not name.startswith("penstock"):  # which has synced all it wrote
            for path in [*Path(folder).rglob("*"), Path(folder)]:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
        dist.barrier()
        worst = torch.tensor([stall, now() - began], dtype=torch.float64)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        return {"stall": worst[0].item(), "durable": worst[1].item()}

    def slow_down(self, times: int) -> tuple[list[float], str]:
        """A step's time over the steps that begin while a save drains, against those before and after, side by side.

        Each step ends with ``step()``, as a script's does: that is how the drain knows of a loop to stand back for.
        """
        side = torch.randn(384, 384)
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // self.ranks))

        def step() -> float:
            began = now()
            value = side
            for _ in range(8):
                value = torch.tanh(value @ side * 0.05)
            self.ours.step(self.steps)
            return now() - began

        found, counts, lasted = [], [], []
        for _ in range(times):
            for _ in range(20):
                step()
            self.steps += 1
            before = [step() for _ in range(40)]
            self.ours.save(self.steps)
            during, began = [], now()
            while self.ours.busy:
                during.append(step())
            lasted.append(now() - began)
            self.ours.wait()
            after = [step() for _ in range(40)]
            if during:
                found.append(statistics.mean(during) / statistics.mean(before + after))
                counts.append(len(during))
        torch.set_num_threads(threads)
        if not counts:
            return found, "no step fell into a drain"
        return found, f"{statistics.mean(counts):.0f} steps a drain of {statistics.median(lasted):.1f} s"


def _forget(path: Path) -> None:
    """Out of the page cache: a load after a failure finds nothing there."""
    if path.is_file():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def main() -> int:
    folder, out, rounds, gib = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    run = Rounds(folder, gib)
    with open(f"{folder}/read-{run.rank}", "wb", buffering=0) as file:
        file.writelines(run.flat[at : at + BLOCK].data for at in range(0, len(run.flat), BLOCK))
        os.fsync(file.fileno())
    methods = run.methods()
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for index in range(rounds + 1):
        order = list(methods)
        if index:  # another order in each round: a disk, or its host, that was just written to takes the next one's bytes slower
            random.Random(index).shuffle(order)
        for name in order:
            one = run.once(name, methods[name])
            if index:  # the first round warms up
                samples[name].append(one)
    slow, steps = run.slow_down(max(6, rounds))
    if run.rank == 0:
        Path(out).write_text(json.dumps({"samples": samples, "slow_down": slow, "steps": steps}))
    dist.barrier()
    run.ours.close()
    sys.stdout.flush()
    os._exit(0)  # DCP's own process and threads do not end by themselves


if __name__ == "__main__":
    sys.exit(main())
