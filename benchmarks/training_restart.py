"""A killed rank, from the SIGKILL to the next step that a new life reports, beside torchrun's own cold start to its first step.

The same script with two ranks: in a job of `penstock up` on the local engine (torchrun as its launcher, which starts the ranks again in
place), of which one rank is killed; and under a bare torchrun, from its start. In turns, medians of both; the bar is their
difference, and the worst kill is told. While torchrun starts, the job runs on, and sleeps most of the time.

    .venv/bin/python -m benchmarks.training_restart [--json]
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, alone, say
from benchmarks.ours import server
from penstock.client.client import Client

PATIENCE_S = 120.0
ROUNDS = 3
KILLED = 1
# Each life's rank 0 writes down when it has reported its first step, and its ranks who they are.
SCRIPT = """
import os, time
import torch, torch.distributed as dist
import penstock

def note(word, text):
    path = os.path.join(os.environ["NOTES"], word)
    with open(path + ".new", "x") as file:
        file.write(text)
    os.rename(path + ".new", path)

dist.init_process_group("gloo")
rank, life = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
for step in range(1_000_000):
    dist.all_reduce(torch.ones(1024))
    penstock.report(step=step)
    if step == 0:
        note(f"{life}.{rank}.pid", str(os.getpid()))
        if rank == 0:
            note(f"{life}.first", repr(time.time()))
    time.sleep(0.02)
"""


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path.name} within {PATIENCE_S:.0f} s")
        time.sleep(0.005)
    return path.read_text()


def cold(script: Path) -> float:
    """Seconds from the start of a bare torchrun to its first step."""
    with tempfile.TemporaryDirectory() as notes:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        began = time.time()
        process = subprocess.Popen(
            command, env=env | {"NOTES": notes, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return float(wait_for(Path(notes) / "0.first")) - began
        finally:
            pids = [int(path.read_text()) for path in Path(notes).glob("0.*.pid")]
            process.send_signal(signal.SIGKILL)
            process.wait()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


def submit(client: Client, notes: Path) -> None:
    spec: dict[str, Any] = {
        "command": [sys.executable, "-c", SCRIPT], "procs": 2, "launcher": "torchrun", "max_restarts": 100,
        "crash_loop": 0, "env": {"NOTES": str(notes), "OMP_NUM_THREADS": "1"}, "resources": {"cpus": 2},
    }  # fmt: skip
    client.transport.request(
        "POST", "/api/v1/projects/default/jobs", body=json.dumps({"name": "killed", "spec": spec}).encode(),
        headers={"content-type": "application/json"}, repeatable=False,
    )  # fmt: skip


def kill(notes: Path, life: int) -> float:
    """Seconds from the SIGKILL of a rank to the next life's first step."""
    pid = int(wait_for(notes / f"{life}.{KILLED}.pid"))
    wait_for(notes / f"{life}.first")
    time.sleep(1.0)
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return float(wait_for(notes / f"{life + 1}.first")) - at


def measure(rounds: int = ROUNDS) -> list[Bar]:
    colds: list[float] = []
    kills: list[float] = []
    with server("restart") as ours:
        notes, script = ours.folder.parent / "notes", ours.folder.parent / "script.py"
        notes.mkdir(mode=0o777)
        notes.chmod(0o777)
        script.write_text(SCRIPT)
        submit(ours.client(), notes)
        for life in range(rounds):
            kills.append(kill(notes, life))
            colds.append(cold(script))
            say(f"a rank was killed: next step after {kills[-1]:.2f} s; torchrun's cold start: {colds[-1]:.2f} s")
    ours_s, theirs_s = statistics.median(kills), statistics.median(colds)
    note = f"{ours_s:.2f} s against {theirs_s:.2f} s, medians of {rounds}; the worst kill {max(kills):.2f} s"
    return [Bar("rank killed -> next step, less torchrun's cold start", ours_s - theirs_s, 1.0, "s", note=note)]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
