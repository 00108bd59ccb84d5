"""A trial's ranks: processes that are forked from one that has torch loaded, each in a network namespace and a control group of
its own, as if on a node of its own. Nothing of a trial is there in the next.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from benchmarks.diagnosis_net import Fabric
from benchmarks.diagnosis_train import Options, train
from penstock.diagnosis.injecting.spec import Target
from penstock.engines.local import procs

GROUPS, ACCOUNTS = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpuacct")
SHARES = 262_144  # of all ranks together, against 1024 of any other process here: a node's cores are its job's
_FILES = 1024  # as most systems have it


class Cages:
    """Control groups for the processor, one below another: of the trials, and of each rank."""

    def __init__(self, size: int, shares: int = SHARES) -> None:
        self._base = GROUPS / f"penstock-trials-{os.getpid()}"
        self._account = ACCOUNTS / self._base.name
        self._base.mkdir()
        self._account.mkdir(exist_ok=True)  # one folder with the other where they are one hierarchy
        (self._base / "cpu.shares").write_text(str(shares))
        self.folders = [self._base / f"rank-{rank}" for rank in range(size)]
        self._runner = self._base / "runner"  # this process: what injects late, injects something else
        for folder in (*self.folders, self._runner):
            folder.mkdir()
        (self._runner / "cgroup.procs").write_text("0")

    def used_s(self) -> float:
        """Seconds of the processors that the ranks, and what faults put beside them, have had."""
        return int((self._account / "cpuacct.usage").read_text()) / 1e9

    def join(self, rank: int) -> None:
        for folder in (self._account, self.folders[rank]):
            (folder / "cgroup.procs").write_text("0")

    def close(self) -> None:
        (GROUPS / "cgroup.procs").write_text("0")
        for folder in (*self.folders, self._runner, self._base, self._account):
            for _ in range(500):
                if not folder.is_dir():
                    break
                with suppress(OSError):
                    folder.rmdir()
                time.sleep(0.01)


class Life:
    """One start of all ranks. ``ended``: exit code (or minus the signal) by rank."""

    def __init__(self, folder: Path, fabric: Fabric, cages: Cages, options: list[Options]) -> None:
        self.folder = folder
        self.ended: dict[int, int] = {}
        self.ended_at: dict[int, float] = {}
        self.pids: dict[int, int] = {}
        for name in ("progress", "logs", "watch", "checkpoints"):
            (folder / name).mkdir(exist_ok=True, parents=True)
        sys.stdout.flush()
        sys.stderr.flush()
        for one in options:
            pid = os.fork()
            if pid == 0:
                _be(folder, fabric, cages, one)
            self.pids[one.rank] = pid
        self._starts = {rank: procs.start_time(pid) or 0 for rank, pid in self.pids.items()}

    def targets(self) -> tuple[Target, ...]:
        hook, saves = str(self.folder / "inject.json"), str(self.folder / "checkpoints")
        return tuple(
            Target(rank, pid, self._starts[rank], f"node-{rank}", hook, saves) for rank, pid in self.pids.items()
        )

    def poll(self) -> bool:
        """Whether any still runs."""
        for rank, pid in self.pids.items():
            if rank not in self.ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.ended[rank] = os.waitstatus_to_exitcode(status)
                    self.ended_at[rank] = time.time()
        return len(self.ended) < len(self.pids)

    def end(self) -> None:
        for rank, pid in self.pids.items():
            if rank not in self.ended:
                procs.send([pid, *procs.descendants(pid)], signal.SIGKILL)
                self.ended[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                self.ended_at[rank] = time.time()

    def step(self, rank: int) -> int:
        """How many steps a rank has reported."""
        with suppress(OSError):
            return (self.folder / "progress" / str(rank)).read_bytes().count(b'"step"')
        return 0


def _be(folder: Path, fabric: Fabric, cages: Cages, options: Options) -> None:
    """The forked child's whole life."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        cages.join(options.rank)
        fabric.enter(options.rank)
        log = os.open(folder / "logs" / f"rank-{options.rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        reports = os.open(folder / "progress" / str(options.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        rank = str(options.rank)
        os.environ.update(
            {"PENSTOCK_JOB_ID": folder.name, "PENSTOCK_JOB_NAME": folder.name, "PENSTOCK_NODE_NAME": f"node-{rank}",
             "PENSTOCK_NNODES": str(options.world), "PENSTOCK_NODE_RANK": rank, "PENSTOCK_REPORT_FD": str(reports),
             "PENSTOCK_INJECT": str(folder / "inject.json"), "RANK": rank, "WORLD_SIZE": str(options.world),
             "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "eth0"}
        )  # fmt: skip
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
        train(options)
        code = 0
    except BaseException:  # noqa: BLE001 - a rank's log says how it ended, whatever it was
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
