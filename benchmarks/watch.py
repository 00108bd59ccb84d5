"""What ``penstock.watch`` costs a training: seconds a step with it and without, turn by turn in the same processes.

    python -m benchmarks.watch

A plain loop, and two ranks of DistributedDataParallel over gloo. Each turn is some steps of some milliseconds: on such short steps a
cost shows, while on the 100 ms of the bar it would drown in the noise. The turns alternate (without, with), and each pair
gives one difference: what lasts longer than a pair (another tenant, heat) is in both. The median of the differences is told.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Bar, alone, say
from benchmarks.measure import free_ports

PAIRS = 40
STEPS = 25  # of a turn
STEP_MS = 100.0  # the step that the share is of
LIMIT_MS, LIMIT_SHARE = 0.3, 0.5
PATIENCE_S = 110.0

LOOP = """
import gc, json, os, sys, time
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset
import penstock
from penstock.worker import watch as watching

pairs, steps = int(sys.argv[1]), int(sys.argv[2])
watching.EVERY_S = 0.1  # steps are short here: as often by steps as on longer ones
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
several = "RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1
if several:
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
data = TensorDataset(torch.randn(64 * steps, 256), torch.randint(0, 10, (64 * steps,)))

def turn(watched):
    loader = DataLoader(data, batch_size=64)
    watcher = penstock.watch(model, optimizer, loader) if watched else None
    if several:
        dist.barrier()
    began = None
    for n, (x, y) in enumerate(loader):
        if n == 3:  # the hooks have settled
            began = time.perf_counter(), time.thread_time()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    took = (time.perf_counter() - began[0]) / (n - 2), (time.thread_time() - began[1]) / (n - 2)
    if watcher is not None:
        assert watcher.active
        watcher.close()
    return took

turn(False), turn(True)
found = []
for n in range(pairs):
    both = {watched: turn(watched) for watched in ((False, True) if n % 2 else (True, False))}
    found.append((both[False], both[True]))
if not several or dist.get_rank() == 0:
    print(json.dumps(found), flush=True)
"""


def measure() -> list[Bar]:
    bars = []
    for what, ranks in (("a plain loop", 1), ("DDP, 2 ranks", 2)):
        say(f"watch: {what}")
        pairs = _run(ranks)
        if not pairs:
            bars.append(Bar(f"watch, a step more: {what}", None, LIMIT_MS, "ms", note="the loop did not end"))
            continue
        wall, cpu = (sorted((on[n] - off[n]) * 1e3 for off, on in pairs) for n in (0, 1))
        more = statistics.median(wall)
        plain = statistics.median(off[0] for off, _ in pairs) * 1e3
        quartiles = f"quartiles {wall[len(wall) // 4]:.3f} to {wall[3 * len(wall) // 4]:.3f} ms"
        note = f"of {plain:.2f} ms; {len(pairs)} pairs, {quartiles}; CPU {statistics.median(cpu):.3f} ms"
        bars.append(Bar(f"watch, a step more: {what}", more, LIMIT_MS, "ms", note=note))
        bars.append(Bar(f"watch, of a step of 100 ms: {what}", 100 * more / STEP_MS, LIMIT_SHARE, "%"))
    return bars


def _run(ranks: int) -> list[tuple[list[float], list[float]]]:
    """(seconds a step and of CPU without it, with it) for each pair of turns."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "progress").mkdir()
        started = [_start(folder, rank, ranks, port) for rank in range(ranks)]
        try:
            said = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
        except subprocess.TimeoutExpired:
            return []
        finally:
            for process in started:
                process.kill()
    return [(off, on) for off, on in json.loads(said[0] or b"[]")]


def _start(folder: str, rank: int, ranks: int, port: int) -> subprocess.Popen[bytes]:
    fd = os.open(f"{folder}/progress/{rank}", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    env = os.environ | {
        "PENSTOCK_REPORT_FD": str(fd), "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    command = [sys.executable, "-c", LOOP, str(PAIRS), str(STEPS)]
    try:
        return subprocess.Popen(command, env=env, pass_fds=(fd,), stdout=subprocess.PIPE)
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
