"""Jobs on a real Slurm through Penstock against bare `sbatch`, in one run: start, rate, and what watching costs.

One private cluster (tests/slurm_cluster.py) serves both. Start: pairs, in turns, of one `sbatch` and one submission through
Penstock, from the call to the first act of the job, which writes down the time. Rate: 500 one-core jobs, submitted by a
loop of `sbatch`, as one array of Penstock's and as 500 single jobs. Watching: 1,000 jobs lie in Slurm's line while
slurmctld's own statistics (`sdiag`) count what our user asks of it, and a control group books our server's CPU with all
the commands that it starts.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.harness import Bar, alone, say, spread
from benchmarks.measure import until
from benchmarks.ours import PENSTOCK, Server, server
from penstock.client.client import Client
from tests.slurm_cluster import Cluster, cluster, unavailable

USER = "nobody"
PAIRS = 15
JOBS = 500
ROUNDS = 3
WAITING = 1000
WATCHED_S = 40.0
LOOK_S = 0.2  # between two looks at whether all is over: each costs whoever is asked
# As many one-core jobs as the cluster has cores run at once; none asks for memory, which Slurm here would count.
ONE_CORE = {"resources": {"cpus": 1, "memory": "10Mi"}}
# Where Slurm's own files lie too (tests/slurm_cluster.py): a site's shared file system is on no disk of this machine's.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
QUICK = {"MaxJobCount": "20000", "SlurmctldDebug": "error", "SlurmdDebug": "error"}


@contextmanager
def both() -> Iterator[tuple[Cluster, Server, Client, Path]]:
    """A cluster, a server that has it as its engine `c1`, and a folder in which jobs of any user may leave marks."""
    with (
        cluster(settings=QUICK) as slurm,
        tempfile.TemporaryDirectory(prefix="penstock-marks-", dir="/tmp") as marks,
        tempfile.TemporaryDirectory(prefix="penstock-runs-", dir=MEMORY) as runs,
        server("slurm") as running,
    ):
        for folder in (marks, runs):
            os.chmod(folder, 0o1777)
        add_engine(running, slurm, runs)
        with running.client() as client:
            yield slurm, running, client, Path(marks)


def add_engine(running: Server, slurm: Cluster, folder: str) -> None:
    words = ("engines", "add", "slurm", "--name", "c1", "--slurm-conf", slurm.environment["SLURM_CONF"])
    command = [PENSTOCK, *words, "--folder", folder, "--manage"]
    done = subprocess.run(command, env=running.environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"penstock engines add: {done.stderr.strip()[-500:]}")


def submit(client: Client, name: str, script: str, **fields: object) -> None:
    client.jobs.create({"command": ["sh", "-c", script], "engine": "c1", **ONE_CORE, **fields}, name=name)


def mark_time(path: Path) -> str:
    return f"date +%s.%N > {path}.part; mv {path}.part {path}"


def began(path: Path) -> float:
    until(path.exists, f"{path.name} to start", timeout=60, every=0.005)
    return float(path.read_text())


def starts(slurm: Cluster, client: Client, marks: Path) -> Bar:
    """Submit to start, each method's call included; which goes first alternates."""
    differences, ours, bare = [], [], []
    for number in range(-1, PAIRS):  # the first pair warms both up
        taken: dict[str, float] = {}
        for way in ("ours", "bare") if number % 2 else ("bare", "ours"):
            path = marks / f"{way}{number}"
            before = time.time()
            if way == "ours":
                submit(client, f"start{number + 1}", mark_time(path))
            else:
                slurm.run("sbatch", "-n1", "--mem=10", "-o", "/dev/null", "--wrap", mark_time(path), user=USER)
            taken[way] = began(path) - before
            idle(slurm)
        if number >= 0:
            ours.append(taken["ours"])
            bare.append(taken["bare"])
            differences.append(taken["ours"] - taken["bare"])
    note = f"ours {spread(ours, ' s')}; bare sbatch {spread(bare, ' s')}; {PAIRS} pairs"
    return Bar("start on Slurm: beyond bare sbatch, median", statistics.median(differences), 0.3, "s", note=note)


def idle(slurm: Cluster) -> None:
    until(lambda: not unfinished(slurm), "an empty line", timeout=600, every=LOOK_S)


def unfinished(slurm: Cluster) -> int:
    return len(slurm.run("squeue", "-h", "-r", "-o", "%i", "-t", "PD,R,CG,CF").split())


def bare_loop(slurm: Cluster) -> float:
    """Jobs a second of a shell's loop, as a person would write it: each keeps its output, as sbatch does unasked and we do."""
    loop = "sbatch -n1 --mem=10 --wrap true >/dev/null || exit 1"
    script = f"cd $1 && i=0; while [ $i -lt {JOBS} ]; do {loop}; i=$((i+1)); done"
    with tempfile.TemporaryDirectory(prefix="penstock-outputs-", dir=MEMORY) as outputs:
        os.chmod(outputs, 0o1777)
        started = time.monotonic()
        slurm.run("sh", "-c", script, "sh", outputs, user=USER, timeout=600)
        idle(slurm)
        return JOBS / (time.monotonic() - started)


def by_array(client: Client, name: str) -> float:
    started = time.monotonic()
    client.jobs.create({"command": ["true"], "engine": "c1", "array": {"count": JOBS}, **ONE_CORE}, name=name)
    return rate(client, started)


def singly(client: Client, prefix: str) -> float:
    spec = {"command": ["true"], "engine": "c1", **ONE_CORE}
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: client.jobs.create(spec, name=f"{prefix}-{n}"), range(JOBS)))
    return rate(client, started)


def rate(client: Client, started: float) -> float:
    """Jobs a second until Penstock knows that all have ended, and how."""

    def over() -> bool:
        return not any(client.jobs.page(limit=1, phase=phase).items for phase in ("active", "Pending"))

    until(over, "our jobs' end", timeout=600, every=LOOK_S)
    found = JOBS / (time.monotonic() - started)
    wrong = [job for job in client.jobs.list(most=JOBS) if job.phase != "Succeeded"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} jobs did not succeed: {wrong[0].status}")
    return found


def rates(slurm: Cluster, client: Client) -> list[Bar]:
    bare, arrays, singles = list[float](), list[float](), list[float]()
    for number in range(ROUNDS):
        ways: list[tuple[list[float], Callable[[], float]]] = [
            (bare, partial(bare_loop, slurm)),
            (arrays, partial(by_array, client, f"array{number}")),
            (singles, partial(singly, client, f"s{number}")),
        ]
        random.Random(number).shuffle(ways)
        for found, way in ways:
            found.append(way())
            idle(slurm)
        say(
            f"   round {number + 1}: sbatch {bare[-1]:.1f} jobs/s, our array {arrays[-1]:.1f}, singly {singles[-1]:.1f}"
        )
    loop = f"a loop of sbatch {spread(bare, '/s')}"
    ratio = statistics.median(a / b for a, b in zip(arrays, bare, strict=True))
    return [
        Bar(
            f"{JOBS} one-core jobs, an array: jobs/s against sbatch's", ratio, 0.9, "x", "at least",
            f"ours {spread(arrays, '/s')}; {loop}; singly {spread(singles, '/s')}",
        ),
    ]  # fmt: skip


def watching(slurm: Cluster, running: Server, client: Client) -> list[Bar]:
    """1,000 jobs of ours in Slurm: some run, the others wait."""
    spec = {"command": ["sleep", "3600"], "engine": "c1", **ONE_CORE}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: client.jobs.create(spec, name=f"w-{n}"), range(WAITING)))
    until(lambda: unfinished(slurm) >= WAITING, "1,000 jobs in Slurm", timeout=600, every=0.5)
    time.sleep(10)
    asked, cpu, at = queries(slurm), running.account.seconds(), time.monotonic()
    time.sleep(WATCHED_S)
    took = time.monotonic() - at
    rate = (queries(slurm) - asked) / took
    share = (running.account.seconds() - cpu) / took * 100
    slurm.run("scancel", "--user", USER)
    note = f"{WAITING} jobs, {took:.0f} s, by sdiag"
    return [
        Bar("Slurm queries while 1,000 jobs wait or run", rate, 0.5, "/s", note=note),
        Bar("CPU of watching them, commands included", share, 2.0, "%", note="of a core; idle server included"),
    ]


_RPC = re.compile(r"^\s*(REQUEST_\w+)\s+\(\s*\d+\)\s+count:(\d+)", re.MULTILINE)
# squeue asks for partitions beside jobs: one question of ours, counted once.
_QUERIES = ("REQUEST_JOB_INFO", "REQUEST_JOB_INFO_SINGLE", "REQUEST_JOB_USER_INFO", "REQUEST_NODE_INFO",
            "REQUEST_NODE_INFO_SINGLE", "REQUEST_BUILD_INFO", "REQUEST_PING")  # fmt: skip


def queries(slurm: Cluster) -> int:
    """Questions that slurmctld has answered since its start, of anybody; each `sdiag` asks one of another kind."""
    by_type = slurm.run("sdiag").partition("by message type")[2].partition("by user")[0]
    return sum(int(count) for name, count in _RPC.findall(by_type) if name in _QUERIES)


def measure() -> list[Bar]:
    if reason := unavailable():
        return [Bar("the Slurm engine", None, 0, "", note=reason)]
    with both() as (slurm, running, client, marks):
        say("   starts")
        bars = [starts(slurm, client, marks)]
        say("   rates")
        bars += rates(slurm, client)
        say("   watching")
        return [*bars, *watching(slurm, running, client)]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
