"""The peer: a private Slurm on this machine (munged, one slurmctld, four slurmd of 8 CPUs each), from Debian's packages.

The settings are the fastest found for a stream of trivial jobs: no accounting, no delay before batch scheduling, the
main scheduler on every event, no prolog, no cgroups. Needs root, as slurmd does. Nothing of the machine's own Slurm is
used or changed: own folder, own key and socket, own free ports.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import CpuAccount, free_ports, until

NODES = 4
CPUS = 8

CONFIG = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctl_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool.%n
SlurmctldPidFile={dir}/ctld.pid
SlurmdPidFile={dir}/slurmd.%n.pid
SlurmctldLogFile={dir}/ctld.log
SlurmdLogFile={dir}/slurmd.%n.log
SlurmctldDebug=error
SlurmdDebug=error
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/{scheduler}
SchedulerParameters={parameters}
PriorityType=priority/basic
MaxJobCount=100000
MinJobAge=300
ReturnToService=2
SwitchType=switch/none
{nodes}
PartitionName=all Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
"""
# batch_sched_delay=0: jobs are considered as they come, not up to 3 s later; sched_interval bounds the safety net.
PARAMETERS = "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1"


@dataclass
class Slurm:
    """A running private cluster. Figures are wall seconds; CPU is that of all daemons and job steps."""

    folder: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen[bytes]]

    def run(self, *command: str, timeout: float = 60.0) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()[:300]}")
        return done.stdout

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
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "squeue") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (make test-deps)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


def version() -> str:
    done = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=False)
    match = re.search(r"[\d.]+", done.stdout)
    return match[0] if match else "?"


@contextmanager
def cluster(account: CpuAccount | None = None, *, scheduler: str = "backfill") -> Iterator[Slurm]:
    """Start a cluster with all nodes idle, and end it, whatever happens. Its CPU is booked on ``account``."""
    if reason := available():
        raise RuntimeError(f"Slurm: {reason}")
    # In memory, which is to Slurm's advantage: on a disk the files that it removes after each job slow down whoever makes
    # new ones there (ext4 looks past what was "recently deleted"), and that is us.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="penstock-slurm-", dir=memory))
    slurm = Slurm(folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}, [])
    try:
        _write(folder, scheduler)
        _start(slurm, account)
        yield slurm
    finally:
        stop(slurm)
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, scheduler: str) -> None:
    ctl_port, *node_ports = free_ports(1 + NODES)
    host = socket.gethostname().split(".")[0]
    nodes = "\n".join(
        f"NodeName=n{i} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs={CPUS} RealMemory=4000 State=UNKNOWN"
        for i, port in enumerate(node_ports, start=1)
    )
    for name in ("state", *(f"spool.n{i}" for i in range(1, NODES + 1))):
        (folder / name).mkdir()
    text = CONFIG.format(
        host=host, ctl_port=ctl_port, dir=folder, nodes=nodes, count=NODES, scheduler=scheduler, parameters=PARAMETERS
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    os.chmod(folder / "munge.key", 0o600)


def _start(slurm: Slurm, account: CpuAccount | None) -> None:
    folder = slurm.folder
    daemon(
        slurm,
        account,
        *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock"),
        *(f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
    )
    until((folder / "munge.sock").exists, "munged", timeout=60)
    daemon(slurm, account, "slurmctld", "-D", "-c")
    for index in range(1, NODES + 1):
        daemon(slurm, account, "slurmd", "-D", "-N", f"n{index}")

    def all_idle() -> bool:
        try:
            return slurm.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * NODES
        except RuntimeError:
            return False

    until(all_idle, "slurmctld and slurmd ready", timeout=60)


def daemon(slurm: Slurm, account: CpuAccount | None, *command: str) -> None:
    with open(slurm.folder / f"{command[0]}.out", "ab") as output:
        process = subprocess.Popen(
            command, env=slurm.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/"
        )
    slurm.daemons.append(process)
    if account is not None:
        account.adopt(process.pid)


def stop(slurm: Slurm) -> None:
    for process in reversed(slurm.daemons):
        process.terminate()
    for process in slurm.daemons:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
