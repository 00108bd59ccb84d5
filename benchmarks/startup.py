"""Start-up and idleness: CPU of `penstock --help` and of a fresh `run --detach`, ready time, idle PSS and idle CPU."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Bar, alone, say, spread
from benchmarks.measure import descendants, process_cpu, pss_mb
from benchmarks.ours import PENSTOCK, Server, cpu_of, environment, server

RUNS = 15
STARTS = 5
IDLE_S = 30.0
SETTLE_S = 3.0


def help_cpu() -> Bar:
    with tempfile.TemporaryDirectory() as folder:
        values = [cpu_of([PENSTOCK, "--help"], environment(Path(folder))) for _ in range(RUNS)]
    note = f"{spread(values, ' s')}; Ray 0.75, dstack 1.03, SkyPilot 1.91"
    return Bar("penstock --help: CPU", statistics.median(values), 0.20, "s", note=note)


def ready() -> Bar:
    """On a new data folder each time, so that making the database is part of it."""
    values = []
    for _ in range(STARTS):
        with server("ready") as running:
            values.append(running.ready_s)
    note = f"{spread(values, ' s')}; Slurm 0.31, Ray 18-27, SkyPilot 28, dstack 21-45"
    return Bar("penstock up: ready after", statistics.median(values), 1.0, "s", note=note)


def idle(running: Server) -> list[Bar]:
    """Every process of the server, nothing running, nobody asking."""
    time.sleep(SETTLE_S)
    account = running.account
    if not account.exact:
        account.adopt(running.process.pid)
    before, began = account.seconds(), time.monotonic()
    time.sleep(IDLE_S)
    used, took = account.seconds() - before, time.monotonic() - began
    pids = descendants(running.process.pid)
    share = 100 * used / took
    processes = f"{len(pids)} processes"
    return [
        Bar(
            "idle memory, all processes", pss_mb(pids), 95, "MB PSS", note=f"{processes}; Slurm 62, dstack 195, Ray 609"
        ),
        Bar("idle CPU, all processes", share, 1.0, "%", note=f"over {took:.0f} s; Slurm 0.06, dstack 1.5, Ray 6-7"),
    ]


def detach(running: Server) -> Bar:
    """A new process each time, from a folder with a script in it, which is carried along."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text("print('hello')\n")
        command = [PENSTOCK, "run", "--detach", "--cpus", "0.1", "--workdir", folder, "--", "true"]
        cpu_of(command, running.environment)  # the snapshot's first journey is not every run's
        values = [cpu_of(command, running.environment) for _ in range(RUNS)]
    return Bar("penstock run --detach: CPU", statistics.median(values), 0.20, "s", note=spread(values, " s"))


def measure() -> list[Bar]:
    bars = [help_cpu(), ready()]
    say(f"   idle for {IDLE_S:.0f} s")
    with server("idle") as running:
        bars += idle(running)
        bars.append(detach(running))
        say(f"   server so far: {process_cpu(running.process.pid):.2f} s of CPU")
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
