"""The peer: a private Slurm on this machine (munged, one slurmctld, four slurmd of 8 CPUs each), from Debian's packages.

The settings are the fastest found for a stream of trivial jobs: no accounting, no delay before batch scheduling, the
main scheduler on every event, no prolog, no cgroups. Needs root, as slurmd does. Nothing of the machine's own Slurm is
used or changed: own folder, own key and socket, own free ports.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.measure import CpuAccount
from tests.slurm_cluster import Cluster, Place, started, unavailable

NODES = 4
CPUS = 8
# batch_sched_delay=0: jobs are considered as they come, not up to 3 s later; sched_interval bounds the safety net.
PARAMETERS = {"batch_sched_delay": 0, "sched_interval": 1, "sched_min_interval": 0, "bf_interval": 1}
QUICK = {
    "SlurmctldDebug": "error",
    "SlurmdDebug": "error",
    "JobAcctGatherType": "jobacct_gather/none",
    "JobAcctGatherParams": "NoShared",
    "SelectTypeParameters": "CR_Core",
    "MaxJobCount": 100_000,
}


@dataclass
class Slurm:
    """Work on a running cluster. Figures are wall seconds; CPU is that of all daemons and job steps."""

    cluster: Cluster

    def run(self, *command: str, timeout: float = 60.0) -> str:
        return self.cluster.run(*command, timeout=timeout)

    def submit(self, *arguments: str) -> str:
        return self.run("sbatch", "--parsable", "--output=/dev/null", "-n1", *arguments).strip()

    def unfinished(self) -> int:
        return len(self.run("squeue", "-h", "-o", "%i", "-t", "PD,R,CG,CF").split())

    def wait_until_idle(self, timeout: float = 300.0) -> None:
        deadline = time.monotonic() + timeout
        while self.unfinished():
            if time.monotonic() > deadline:
                raise RuntimeError("Slurm did not finish its jobs")
            time.sleep(0.1)

    def bulk(self, jobs: int, *, submitters: int) -> float:
        """Seconds from the first of ``jobs`` sbatch calls to all of them finished."""
        began = time.monotonic()
        with ThreadPoolExecutor(submitters) as pool:
            list(pool.map(lambda _: self.submit("--wrap", "true"), range(jobs)))
        self.wait_until_idle()
        return time.monotonic() - began


def available() -> str:
    """Why no Slurm can be started here; empty when one can."""
    return unavailable(accounting=False)


def version() -> str:
    done = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=False)
    match = re.search(r"[\d.]+", done.stdout)
    return match[0] if match else "?"


@contextmanager
def cluster(account: CpuAccount | None = None, *, scheduler: str = "backfill") -> Iterator[Slurm]:
    """Start a cluster with all nodes idle, and end it, whatever happens. Its CPU is booked on ``account``."""

    def fleet(place: Place) -> dict[str, object]:
        slurm = place.slurm({**QUICK, "SchedulerType": f"sched/{scheduler}"})
        return {
            "kind": "Fleet",
            "name": "bench",
            "controllers": [{"host": place.host, "address": "127.0.0.1"}],
            "pools": [place.pool(f"n[1-{NODES}]", cpus=CPUS, memory=4000)],
            "partitions": [{"name": "all", "default": True}],
            "scheduler": {"parameters": PARAMETERS},
            "slurm": {**slurm, "cgroup": {"plugin": "none"}},
        }

    with started(fleet, watch=None if account is None else account.adopt) as running:
        yield Slurm(running)
