"""500 trivial jobs through one persistent client, against a real Slurm on the same machine, in turns.

Both sides may run 32 jobs at once and are fed by the same number of submitting threads (the number at which Slurm was
fastest here). A round is the time from the first submission to the last job finished; rounds of the two alternate, so
that the machine's noise falls on both. CPU is everything that either side's processes used; of ours, what `true` takes by itself is subtracted, and said.
"""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks import slurm
from benchmarks.harness import Bar, alone, say, spread
from benchmarks.measure import CpuAccount
from benchmarks.ours import Server, server
from penstock.client.client import Client

JOBS = 500
ROUNDS = 5
AT_ONCE = slurm.NODES * slurm.CPUS
SUBMITTERS = 6
FULL = 2  # PRAGMA synchronous: 2 is FULL (sqlite.org/pragma.html#pragma_synchronous)


@dataclass(frozen=True, slots=True)
class Round:
    rate: float  # jobs per second
    cpu_ms: float  # per job


def trivial() -> dict[str, object]:
    """`true`, small enough that as many fit on this machine as Slurm may run at once."""
    cpus = (os.cpu_count() or 1) / AT_ONCE
    return {"command": ["true"], "resources": {"cpus": cpus}}  # Slurm here limits no memory either


def run_jobs(client: Client, count: int, *, prefix: str, submitters: int = SUBMITTERS) -> float:
    """Seconds until ``count`` jobs were submitted and had all succeeded."""
    spec = trivial()
    began = time.monotonic()
    with ThreadPoolExecutor(submitters) as pool:
        list(pool.map(lambda n: client.jobs.create(spec, name=f"{prefix}-{n}"), range(count)))
    while client.jobs.page(limit=1, phase="active").items:
        time.sleep(0.02)
    took = time.monotonic() - began
    wrong = [job for job in client.jobs.list(most=count) if job.phase != "Succeeded"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {count} jobs did not succeed: {wrong[0].status}")
    return took


def ours(running: Server, client: Client, number: int) -> Round:
    before = running.account.seconds()
    took = run_jobs(client, JOBS, prefix=f"r{number}")
    return Round(JOBS / took, (running.account.seconds() - before) / JOBS * 1000)


def theirs(cluster: slurm.Slurm, account: CpuAccount) -> Round:
    before = account.seconds()
    took = cluster.bulk(JOBS, submitters=SUBMITTERS)
    return Round(JOBS / took, (account.seconds() - before) / JOBS * 1000)


def job_itself_ms(count: int = 200) -> float:
    """CPU of starting and running `true` with nobody around it: the job's own share, which no server can save."""
    program = shutil.which("true") or "/bin/true"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(count):
        os.waitpid(os.posix_spawn(program, ["true"], {}), 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count * 1000


def check_durability(running: Server) -> None:
    """The bar holds only for SQLite in WAL mode; its writer's synchronous level is asserted by tests/store."""
    with sqlite3.connect(f"file:{running.folder}/penstock.db?mode=ro", uri=True) as connection:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        raise RuntimeError(f"the server's database is in journal mode {mode}, not wal")


def rounds() -> tuple[list[Round], list[Round], str]:
    """All rounds of both, and why the peer is missing, if it is."""
    missing = slurm.available()
    ours_found: list[Round] = []
    theirs_found: list[Round] = []
    account = CpuAccount("slurm")
    try:
        with server("throughput") as running, running.client() as client:
            check_durability(running)
            run_jobs(client, 50, prefix="warm")
            if missing:
                ours_found = [ours(running, client, number) for number in range(ROUNDS)]
            else:
                with slurm.cluster(account) as cluster:
                    cluster.bulk(20, submitters=SUBMITTERS)
                    for number in range(ROUNDS):
                        ours_found.append(ours(running, client, number))
                        theirs_found.append(theirs(cluster, account))
                        a, b = ours_found[-1], theirs_found[-1]
                        say(
                            f"   round {number + 1}: ours {a.rate:.0f} jobs/s, {a.cpu_ms:.1f} ms; "
                            f"Slurm {b.rate:.0f} jobs/s, {b.cpu_ms:.1f} ms; load {os.getloadavg()[0]:.1f}"
                        )
    finally:
        account.close()
    return ours_found, theirs_found, missing


def measure() -> list[Bar]:
    mine, peer, missing = rounds()
    rate = statistics.median(r.rate for r in mine)
    own = job_itself_ms()
    cpu = statistics.median(r.cpu_ms for r in mine) - own
    ratio, note = None, f"ours {rate:.0f} jobs/s; no Slurm here: {missing}"
    cpu_note = f"with the job itself ({own:.2f} ms): {spread([r.cpu_ms for r in mine], ' ms')}"
    if peer:
        peer_rate = statistics.median(r.rate for r in peer)
        ratio = rate / peer_rate
        pairs = spread([a.rate / b.rate for a, b in zip(mine, peer, strict=True)])
        note = f"ours {rate:.0f} jobs/s, Slurm {slurm.version()} {peer_rate:.0f}; paired rounds: {pairs}"
        cpu_note += f"; Slurm {statistics.median(r.cpu_ms for r in peer):.1f} ms"
    return [
        Bar(f"{JOBS} trivial jobs: jobs/s against Slurm's", ratio, 4.0, "x", "at least", note),
        Bar("CPU per trivial job, server and supervisors", cpu, 8.0, "ms", note=cpu_note),
    ]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
