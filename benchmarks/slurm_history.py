"""A real Slurm with accounting (slurmdbd on MariaDB), a few minutes of work on it, and what a site would then hand over.

    .venv/bin/python -m benchmarks.slurm_history FOLDER [--jobs N] [--seed S]

Four nodes of four GPUs (null devices), multifactor priorities, backfill, three accounts with shares.
Needs root, as slurmd does. Own folder, keys, sockets and ports: the machine's own Slurm and MariaDB are not touched.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.measure import until
from benchmarks.slurm import Slurm
from tests.slurm_cluster import Place, make_people, started

NODES, GPUS, CPUS = 4, 4, 8
# As docs/capacity.md tells a site to call them (with its own dates).
FIELDS = "JobID,User,Account,Partition,QOS,Submit,Eligible,Start,End,Elapsed,Timelimit,State,AllocTRES,ReqTRES,NNodes"
SACCT = ("sacct", "-aDPX", "-o", FIELDS)
SITE = (
    ("scontrol", "show", "config"),
    ("scontrol", "-o", "show", "partition"),
    ("sacctmgr", "-P", "show", "qos", "format=Name,Priority"),
    ("sacctmgr", "-P", "show", "assoc", "format=Account,ParentName,User,Share,GrpTRES"),
)

PARAMETERS = {"bf_interval": 2, "bf_resolution": 1, "bf_continue": True, "batch_sched_delay": 0, "sched_interval": 5}
WEIGHTS = {"age": 3000, "fairshare": 1500, "job_size": 500, "partition": 1500, "qos": 1000}
SETTINGS = {
    "SlurmctldDebug": "info",
    "SlurmdDebug": "error",
    "JobAcctGatherType": "jobacct_gather/none",
    "JobAcctGatherParams": "NoShared",
    "SelectTypeParameters": "CR_Core",
    "MinJobAge": 600,
    "PriorityDecayHalfLife": 2,
    "PriorityCalcPeriod": 1,
    "PriorityMaxAge": "00:05:00",
}
BILLING = {"TRESBillingWeights": "CPU=0.0,Mem=0.0,GRES/gpu=1.0"}
INTERNS = 4  # GPUs, at the most: their GrpTRES
# Users that every Debian has; the account, its shares, theirs.
PEOPLE = {
    "production": (5, {"daemon": 2, "bin": 1}),
    "research": (3, {"sys": 3, "games": 1, "man": 1}),
    "interns": (1, {"mail": 1, "news": 1}),
}


@dataclass(frozen=True)
class Entry:
    """A job of the workload: when it is submitted, whose it is, and sbatch's words."""

    at: float
    user: str
    account: str
    words: tuple[str, ...]


@contextmanager
def accounted() -> Iterator[Slurm]:
    """A cluster with all nodes idle, its accounts made; ended whatever happens."""
    with started(_fleet, lambda cluster: make_people(cluster, PEOPLE)) as running:
        limit = ("sacctmgr", "-i", "modify", "account", "interns", "set", f"GrpTRES=gres/gpu={INTERNS}")
        # slurmctld makes it known
        until(lambda: running.tried(*limit).returncode == 0, "the TRES gres/gpu", timeout=60, every=0.5)
        yield Slurm(running)


def _fleet(place: Place) -> dict[str, object]:
    slurm = place.slurm(SETTINGS)
    return {
        "kind": "Fleet",
        "name": "history",
        "controllers": [{"host": place.host, "address": "127.0.0.1"}],
        "pools": [place.pool(f"n[1-{NODES}]", cpus=CPUS, memory=4000, gpus=("a100", GPUS))],
        "partitions": [
            {"name": "gpu", "default": True, "max_time": "1h", "priority_factor": 1, "extra": BILLING},
            {"name": "urgent", "priority_factor": 4, "extra": BILLING},
        ],
        "accounting": place.accounting(),
        "scheduler": {"parameters": PARAMETERS, "weights": WEIGHTS},
        "slurm": {**slurm, "cgroup": {"plugin": "none"}},
    }


# -- the work


def workload(jobs: int, seconds: float, rng: Random) -> list[Entry]:
    """Jobs of all sizes, more of them than the fleet can run at once, in the order of their submission."""
    people = [(user, account) for account, (_, users) in PEOPLE.items() for user in users]
    found = []
    for _ in range(jobs):
        user, account = rng.choices(people, [1 if account == "interns" else 3 for _, account in people])[0]
        gpus = rng.choices((1, 2, 4, 8, 16), (50, 22, 16, 10, 2))[0]
        gpus = min(gpus, INTERNS) if account == "interns" else gpus
        lasts = min(3 + rng.lognormvariate(1.3, 0.8), 30)
        limit = rng.choice(("1", "2", "2", "5", "10"))
        nodes = max(1, gpus // GPUS)
        words = [f"--gres=gpu:a100:{gpus // nodes}", f"-N{nodes}", f"-n{nodes}", f"-c{min(2 * gpus // nodes, CPUS)}"]
        words += ["-t", limit, "--wrap", f"sleep {lasts:.1f}"]
        if rng.random() < 0.1:
            words[:0] = ["-p", "urgent"]
        if rng.random() < 0.1:
            words[:0] = ["--qos=high"]
        found.append(Entry(rng.uniform(0, seconds), user, account, tuple(words)))
    found.sort(key=lambda entry: entry.at)
    return found


class Work:
    """Submits the workload, and does to it what happens to jobs."""

    def __init__(self, slurm: Slurm, entries: list[Entry]) -> None:
        self.slurm, self.entries = slurm, entries
        self.began = 0.0

    def submit(self, user: str, account: str, *words: str) -> str:
        said = self.slurm.run(
            "sbatch", "--parsable", "--output=/dev/null", "-D", "/tmp", f"--uid={user}", "-A", account, *words
        )
        return said.strip().split(";")[0]

    def state(self, job: str) -> str:
        return self.slurm.run("squeue", "-h", "-o", "%T", "-j", job).strip()

    def runs(self, job: str) -> None:
        until(lambda: self.state(job) == "RUNNING", f"job {job} runs", timeout=120, every=0.2)

    def control(self, *words: str) -> None:
        self.slurm.run("scontrol", *words)

    def run(self) -> None:
        """All of it, to the end."""
        self.began = time.monotonic()
        events: list[tuple[float, Entry | Callable[[], None]]] = [(entry.at, entry) for entry in self.entries]
        events += self.happenings().items()
        events.sort(key=lambda event: event[0])
        for at, what in events:
            time.sleep(max(0.0, self.began + at - time.monotonic()))
            if isinstance(what, Entry):
                self.submit(what.user, what.account, *what.words)
            else:
                what()
        self.slurm.wait_until_idle(600)
        time.sleep(3)  # slurmctld hands its last records to slurmdbd

    def happenings(self) -> dict[float, Callable[[], None]]:
        return {
            2.0: self.arrays,
            4.0: self.odd_limits,
            6.0: self.out_of_time,
            8.0: self.cancelled,
            10.0: self.het,
            15.0: self.later,
            20.0: self.steps,
            40.0: self.requeued,
            60.0: self.suspended,
            75.0: self.node_lost,
        }

    def arrays(self) -> None:
        self.submit("sys", "research", "--array=0-6%3", "--gres=gpu:1", "-t", "2", "--wrap", "sleep 6")
        doomed = self.submit("games", "research", "--array=1-9%1", "--gres=gpu:1", "-t", "2", "--wrap", "sleep 9")
        self.runs(f"{doomed}_1")
        self.slurm.run("scancel", f"{doomed}_[3-9]")

    def odd_limits(self) -> None:
        self.submit("bin", "production", "--gres=gpu:1", "--wrap", "sleep 8")  # the partition's
        self.submit("bin", "production", "-p", "urgent", "-t", "0", "--gres=gpu:1", "--wrap", "sleep 8")
        self.submit("bin", "production", "-n1", "-t", "1", "--wrap", "sleep 5")  # no GPU
        self.submit("bin", "production", "--gres=gpu:1", "-t", "1", "--wrap", "exit 3")

    def out_of_time(self) -> None:
        self.submit("man", "research", "--gres=gpu:a100:1", "-t", "1", "--wrap", "sleep 300")

    def cancelled(self) -> None:
        held = self.submit("mail", "interns", "--gres=gpu:2", "-t", "1", "--hold", "--wrap", "sleep 5")
        self.slurm.run("scancel", held)
        running = self.submit("daemon", "production", "-p", "urgent", "--gres=gpu:1", "-t", "2", "--wrap", "sleep 99")
        self.runs(running)
        self.slurm.run("scancel", running)

    def het(self) -> None:
        self.submit(
            "sys",
            "research",
            "-n1",
            "--gres=gpu:1",
            "-t",
            "2",
            ":",
            "-n1",
            "--gres=gpu:3",
            "-t",
            "2",
            "--wrap",
            "sleep 7",
        )

    def later(self) -> None:
        first = self.submit("news", "interns", "--gres=gpu:1", "-t", "2", "--wrap", "sleep 4")
        self.submit("news", "interns", f"--dependency=afterany:{first}", "--gres=gpu:1", "-t", "2", "--wrap", "sleep 4")
        self.submit("daemon", "production", "--begin=now+30", "--gres=gpu:2", "-t", "2", "--wrap", "sleep 4")

    def steps(self) -> None:
        self.submit("sys", "research", "--gres=gpu:1", "-t", "2", "--wrap", "srun --gres=gpu:1 sleep 2; srun sleep 2")

    def requeued(self) -> None:
        job = self.submit("daemon", "production", "-p", "urgent", "--gres=gpu:2", "-t", "2", "--wrap", "sleep 10")
        self.runs(job)
        self.control("requeue", job)

    def suspended(self) -> None:
        job = self.submit("daemon", "production", "-p", "urgent", "--gres=gpu:1", "-t", "2", "--wrap", "sleep 10")
        self.runs(job)
        self.control("suspend", job)
        time.sleep(4)
        self.control("resume", job)

    def node_lost(self) -> None:
        self.control("update", "NodeName=n4", "State=DOWN", "Reason=test")
        with suppress(RuntimeError):  # it may be back of itself
            self.control("update", "NodeName=n4", "State=RESUME")


def record(folder: Path, jobs: int, seconds: float, seed: int) -> None:
    """Run it, and write ``sacct.txt`` (with all steps), ``site.txt`` and ``nodes.txt`` there."""
    folder.mkdir(parents=True, exist_ok=True)
    with accounted() as slurm:
        try:
            Work(slurm, workload(jobs, seconds, Random(seed))).run()
            steps = [word.replace("X", "") for word in SACCT]
            (folder / "sacct.txt").write_text(slurm.run(*steps))
            (folder / "site.txt").write_text("".join(slurm.run(*command) for command in SITE))
        finally:
            for name in ("slurmctld.log", "slurmdbd.log"):
                shutil.copy(slurm.cluster.folder / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        record(arguments.folder, arguments.jobs, arguments.seconds, arguments.seed)
    except (RuntimeError, subprocess.TimeoutExpired) as exc:
        sys.exit(f"slurm_history: {exc}")
