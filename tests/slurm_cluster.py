"""A private, real Slurm for tests and benchmarks: munged, MariaDB, slurmdbd, slurmctld, eight slurmd with fake GPUs.

In a test marked ``real`` and ``needs("slurmdbd", "root")`` ask for the fixture ``slurm_cluster`` (one cluster a worker,
started at first use; leave it as you found it), or start your own where you stop daemons or want other settings:

    from tests.slurm_cluster import cluster

    with cluster(min_job_age=2, private_mounts=["/srv/nodes"]) as slurm:
        slurm.run("sbatch", "--parsable", "--wrap", "true", user="nobody")

``slurm.environment`` (SLURM_CONF) is what Slurm's commands need. Nodes ``node-0`` .. ``node-7``, each of 8 CPUs, 16000 MB
and 4 GPUs (``gres/gpu:h100``, null devices), in two leaves; a job that asks for no memory has 1000 MB a CPU, and one that
takes more than it has is killed by its control group (OUT_OF_MEMORY, ``0:125``) where this machine lets root make those of
version 1 (``slurm.contained``), by slurmd (FAILED, ``0:9``) where not. Partitions: ``all`` (default, every node), ``pair`` (node-0,
node-1), ``urgent`` (higher tier: its jobs preempt and requeue those of ``all`` and ``pair``), ``spare`` (lowest tier: its
jobs are cancelled for any other). ``preempt="qos"`` has QoS ``high`` preempt ``normal`` instead. Accounts and their users,
who are users of every Debian: PEOPLE. QoS: normal, high.

Needs root, as slurmd does. Own folder, keys, sockets and ports: nothing of the machine's own Slurm is used or changed, and
whatever was started is ended by its process id.
"""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import descendants, until

NODES, GPUS, CPUS, MEMORY = 8, 4, 8, 16_000
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db", "sbatch", "sacctmgr")
ACCOUNTS = {
    "production": (5, {"daemon": 2, "bin": 1}),
    "research": (3, {"nobody": 3, "sys": 3, "games": 1, "man": 1}),
    "interns": (1, {"mail": 1, "news": 1}),
}

CONFIG = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctl}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={dir}/jwt.key
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool.%n
SlurmctldPidFile={dir}/ctld.pid
SlurmdPidFile={dir}/slurmd.%n.pid
SlurmctldLogFile={dir}/ctld.log
SlurmdLogFile={dir}/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/{task}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams={memory}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={dbd}
AccountingStoragePass={dir}/munge.sock
AccountingStorageTRES=gres/gpu,gres/gpu:h100
AccountingStorageEnforce={enforce}
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
MinJobAge={min_job_age}
KillWait=2
CompleteWait=0
SlurmdTimeout=20
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
MailProg=/bin/true
SlurmdParameters=config_overrides
TopologyPlugin=topology/tree
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,bf_resolution=1,bf_continue,batch_sched_delay=0,sched_interval=1,sched_min_interval=0
PriorityType=priority/multifactor
PriorityWeightAge=1000
PriorityWeightFairshare=1000
PriorityWeightPartition=1000
PriorityWeightQOS=1000
PreemptType={preempt_type}
PreemptMode=REQUEUE
{nodes}
PartitionName=all Nodes=node-[0-7] Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=REQUEUE
PartitionName=pair Nodes=node-[0-1] MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=REQUEUE
PartitionName=urgent Nodes=node-[0-7] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes=node-[0-7] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
"""
DBD = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={dir}/jwt.key
DebugLevel=info
LogFile={dir}/dbd.log
PidFile={dir}/dbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=root
StorageLoc=slurm
"""
CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CgroupMountpoint={dir}/cgroup
ConstrainRAMSpace=yes
MinRAMSpace=10
"""
TOPOLOGY = """\
SwitchName=leaf1 Nodes=node-[0-3]
SwitchName=leaf2 Nodes=node-[4-7]
SwitchName=spine Switches=leaf[1-2]
"""


@dataclass
class Cluster:
    """A running private cluster."""

    folder: Path
    environment: dict[str, str]
    host: str
    ports: dict[str, int]
    private: tuple[str, ...] = ()
    contained: bool = False
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return [f"node-{i}" for i in range(NODES)]

    def run(
        self, *command: str, user: str | None = None, stdin: str = "", timeout: float = 60.0, cwd: str = "/"
    ) -> str:
        """What it wrote; RuntimeError with what it said when it failed. ``user``: as that Unix user."""
        done = self.tried(*command, user=user, stdin=stdin, timeout=timeout, cwd=cwd)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()[:500]}")
        return done.stdout

    def tried(
        self, *command: str, user: str | None = None, stdin: str = "", timeout: float = 60.0, cwd: str = "/"
    ) -> subprocess.CompletedProcess[str]:
        who: dict[str, Any] = {}
        environment = self.environment
        if user is not None:
            known = pwd.getpwnam(user)
            who = {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}
            environment = {**environment, "USER": user, "LOGNAME": user, "HOME": known.pw_dir}
        return subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
            cwd=cwd, **who,
        )  # fmt: skip

    # -- daemons: stop is SIGTERM, kill is SIGKILL; both return when the process is gone

    def start_munged(self) -> None:
        at = self.folder
        self._start(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={at}/munge.key", f"--socket={at}/munge.sock"),
            *(f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed"),
        )
        until((at / "munge.sock").exists, "munged", timeout=60)

    def start_mariadb(self) -> None:
        at = self.folder
        (at / "sql.sock").unlink(missing_ok=True)
        self._start(
            "mariadbd",
            *("mariadbd", "--no-defaults", f"--datadir={at}/sql", "--user=root", f"--port={self.ports['sql']}"),
            *("--bind-address=127.0.0.1", f"--socket={at}/sql.sock", f"--pid-file={at}/sql.pid"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M"),
            "--innodb-lock-wait-timeout=900",
        )
        until((at / "sql.sock").exists, "mariadbd", timeout=60)

    def start_dbd(self, *, wait: bool = True) -> None:
        self._start("slurmdbd", "slurmdbd", "-D")
        if wait:
            until(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd", timeout=90, every=0.05)

    def stop_dbd(self) -> None:
        self._end("slurmdbd")

    def start_ctld(self, *, wait: bool = True) -> None:
        fresh = not (self.folder / "state/job_state").exists()
        self._start("slurmctld", "slurmctld", "-D", *(["-c"] if fresh else []))
        if wait:
            until(lambda: self._answers("scontrol", "ping"), "slurmctld", timeout=90, every=0.05)

    def stop_ctld(self) -> None:
        self._end("slurmctld")

    def kill_ctld(self) -> None:
        """What happened in the last seconds and was not saved (``wait_saved``) is lost to it: a job that ran is pending."""
        self._end("slurmctld", kill=True)

    def restart_ctld(self) -> None:
        self.stop_ctld()
        self.start_ctld()

    def start_slurmd(self, node: str) -> None:
        binds = [word for folder in self.private for word in (str(self.disk(node, folder)), folder)]
        if self.contained:
            groups = [(str(_V1 / name / self.folder.name), str(self.folder / "cgroup" / name)) for name in _GROUPS]
            binds += [word for pair in groups for word in pair]
        script = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@"'
        unshare = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *binds, "--")
        self._start(node, *unshare, "slurmd", "-D", "-N", node)

    def disk(self, node: str, folder: str) -> Path:
        """Where what ``node`` sees at ``folder``, one of ``private_mounts``, can be seen from here."""
        return self.folder / f"disk.{node}" / folder.strip("/").replace("/", "-")

    def stop_slurmd(self, node: str) -> None:
        """Its job steps run on, as in life."""
        self._end(node)

    def kill_slurmd(self, node: str) -> None:
        """Its job steps run on, as in life; ``kill_node`` ends them too."""
        self._end(node, kill=True)

    def kill_node(self, node: str) -> None:
        """As when its power goes: slurmd and every process of its job steps."""
        self._end(node, kill=True)
        _kill_steps({"SLURM_CONF": self.environment["SLURM_CONF"], "TEST_NODE": node})

    def start_restd(self) -> str:
        """slurmrestd's URL. ``token`` makes what it wants to see."""
        port = self.ports["rest"]
        words = ("slurmrestd", "-a", "rest_auth/jwt", f"127.0.0.1:{port}")
        self._start(
            "slurmrestd", "env", "SLURM_JWT=daemon", "setpriv", "--reuid=1", "--regid=1", "--clear-groups", *words
        )
        until(lambda: _listens(port), "slurmrestd", timeout=60)
        return f"http://127.0.0.1:{port}"

    def stop_restd(self) -> None:
        self._end("slurmrestd")

    def token(self, user: str = "root", lifespan_s: int = 3600) -> str:
        said = self.run("scontrol", "token", f"username={user}", f"lifespan={lifespan_s}")
        return said.strip().partition("=")[2]

    # -- what tests wait for

    def wait_idle(self, timeout: float = 90.0) -> None:
        """Every node idle."""
        until(self._idle, "every node idle", timeout=timeout, every=0.05)

    def wait_saved(self, timeout: float = 60.0) -> None:
        """Until slurmctld has saved its jobs, as it does some seconds after each change."""
        asked = time.time()
        path = self.folder / "state/job_state"
        until(lambda: path.exists() and path.stat().st_mtime > asked, "jobs saved", timeout=timeout, every=0.1)

    def state(self, job: str) -> str:
        """Slurm's, while slurmctld knows it; empty later."""
        return self.tried("squeue", "-h", "-o", "%T", "-t", "all", "-j", job).stdout.strip()

    def clear(self) -> None:
        """Cancel whatever is there and wait for idle nodes; for tests that share a cluster."""
        if jobs := self.run("squeue", "-h", "-o", "%i").split():
            self.tried("scancel", "--quiet", *jobs)
        self.wait_idle()

    def _idle(self) -> bool:
        with suppress(RuntimeError):
            return self.run("sinfo", "-h", "-N", "-p", "all", "-o", "%T").split() == ["idle"] * NODES
        return False

    def _answers(self, *command: str) -> bool:
        return self.tried(*command).returncode == 0

    def _start(self, name: str, *command: str) -> None:
        assert name not in self.daemons, f"{name} runs"
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                command, env={**self.environment, "TEST_NODE": name}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, cwd="/",
            )  # fmt: skip

    def _end(self, name: str, *, kill: bool = False) -> None:
        process = self.daemons.pop(name)
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def unavailable() -> str:
    """Why none can be started here; empty when one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (make test-deps)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextmanager
def cluster(
    *,
    min_job_age: int = 300,
    enforce: str = "associations,limits,qos",
    preempt: str = "partition",
    private_mounts: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """A cluster with every node idle and its accounts made; ended whatever happens.

    ``min_job_age``: seconds until slurmctld forgets a finished job. ``preempt``: "partition" or "qos". ``private_mounts``:
    folders, made if missing, in whose place each node sees one of its own (``disk``): nodes that share no files.
    ``settings``: of slurm.conf, instead of those here.
    """
    if reason := unavailable():
        raise RuntimeError(f"Slurm: {reason}")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="penstock-slurm-", dir=memory))
    ports = dict(zip(("ctl", "dbd", "sql", "rest", *range(NODES)), _ports(4 + NODES), strict=True))
    found = Cluster(
        folder,
        {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "TZ": "UTC"},
        socket.gethostname().split(".")[0],
        {str(name): port for name, port in ports.items()},
        tuple(private_mounts),
    )
    values = {"min_job_age": str(min_job_age), "enforce": enforce, "preempt_type": f"preempt/{_PREEMPT[preempt]}"}
    try:
        found.contained = _make_groups(folder)
        kinds = ("cgroup", "cgroup", "NoOverMemoryKill") if found.contained else ("linuxproc", "none", "OverMemoryKill")
        values |= dict(zip(("proctrack", "task", "memory"), kinds, strict=True))
        _write(found, values, settings or {})
        _start(found, preempt)
        yield found
    finally:
        _stop(found)
        _remove_groups(folder)
        shutil.rmtree(folder, ignore_errors=True)


_V1, _GROUPS = Path("/sys/fs/cgroup"), ("freezer", "memory")
_PREEMPT = {"partition": "partition_prio", "qos": "qos"}


def _write(slurm: Cluster, values: dict[str, str], settings: Mapping[str, str]) -> None:
    folder = slurm.folder
    nodes = "\n".join(
        f"NodeName=node-{i} NodeAddr=127.0.0.1 NodeHostname={slurm.host} Port={slurm.ports[str(i)]} CPUs={CPUS} "
        f"RealMemory={MEMORY} Gres=gpu:h100:{GPUS} State=UNKNOWN"
        for i in range(NODES)
    )
    for name in ("state", "sql", *(f"spool.node-{i}" for i in range(NODES))):
        (folder / name).mkdir()
    told = {**values, "name": "test", "host": slurm.host, "dir": folder, "nodes": nodes, **slurm.ports}
    text = CONFIG.format(**told)
    lines = [line for line in text.splitlines() if line.partition("=")[0] not in settings]
    lines[1:1] = [f"{name}={value}" for name, value in settings.items()]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "topology.conf").write_text(TOPOLOGY)
    (folder / "slurmdbd.conf").write_text(DBD.format(**told))
    for number in range(GPUS):  # gres/gpu wants a device for each: null devices will do
        os.mknod(folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"NodeName=node-[0-7] Name=gpu Type=h100 File={folder}/gpu[0-{GPUS - 1}]\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "jwt.key").write_bytes(secrets.token_bytes(32))
    folder.chmod(0o755)  # jobs run as other users
    for name in ("munge.key", "slurmdbd.conf", "jwt.key"):
        (folder / name).chmod(0o600)
    if slurm.contained:
        (folder / "cgroup.conf").write_text(CGROUP.format(**told))
    for private in slurm.private:
        Path(private).mkdir(parents=True, exist_ok=True)
        for node in slurm.nodes:
            slurm.disk(node, private).mkdir(parents=True)
            slurm.disk(node, private).chmod(0o1777)


def _start(slurm: Cluster, preempt: str) -> None:
    folder = slurm.folder
    slurm.run(
        "mariadb-install-db", "--no-defaults", f"--datadir={folder}/sql", "--user=root",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    )  # fmt: skip
    slurm.start_mariadb()
    slurm.start_munged()
    slurm.start_dbd()
    _people(slurm, preempt)
    slurm.start_ctld(wait=False)
    for node in slurm.nodes:
        slurm.start_slurmd(node)
    slurm.wait_idle()


def _people(slurm: Cluster, preempt: str) -> None:
    def manage(*words: str) -> None:
        slurm.run("sacctmgr", "-i", *words)

    manage("add", "cluster", "test")
    manage("add", "qos", "high", "Priority=10", *(["Preempt=normal"] if preempt == "qos" else []))
    for account, (share, users) in ACCOUNTS.items():
        manage("add", "account", account, f"Fairshare={share}", "Cluster=test")
        for user, own in users.items():
            words = (f"Account={account}", f"Fairshare={own}", "QOS=normal,high", "DefaultQOS=normal")
            manage("add", "user", user, *words)


def _stop(slurm: Cluster) -> None:
    """Steps first, by their id: they would outlive slurmd."""
    order = [*slurm.nodes, "slurmrestd", "slurmctld", "slurmdbd", "mariadbd", "munged"]
    for name in slurm.nodes:
        if name in slurm.daemons:
            slurm.daemons[name].terminate()
    _kill_steps({"SLURM_CONF": slurm.environment["SLURM_CONF"]})
    for name in order:
        if name in slurm.daemons:
            slurm._end(name)
    _kill_steps({"SLURM_CONF": slurm.environment["SLURM_CONF"]})


def _kill_steps(marks: Mapping[str, str]) -> None:
    """Kill slurmstepd processes whose environment has the marks, with all below them."""
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            if Path(f"/proc/{entry}/comm").read_text().strip() != "slurmstepd":
                continue
            if wanted <= set(Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")):
                for pid in descendants(int(entry)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, 9)


def _make_groups(folder: Path) -> bool:
    """Control groups for this cluster alone: clusters with nodes of the same names would share Slurm's own."""
    try:
        for name in _GROUPS:
            (_V1 / name / folder.name).mkdir()
            (folder / "cgroup" / name).mkdir(parents=True)
    except OSError:
        _remove_groups(folder)
        return False
    return True


def _remove_groups(folder: Path) -> None:
    for name in _GROUPS:
        for at, _, _ in os.walk(_V1 / name / folder.name, topdown=False):
            with suppress(OSError, RuntimeError):
                until(partial(_gone, at), "an empty control group", timeout=5, every=0.05)


def _gone(group: str) -> bool:
    with suppress(OSError):
        os.rmdir(group)
    return not os.path.exists(group)


def _ports(count: int) -> list[int]:
    """Free on loopback at this moment, and none that the kernel lends to outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
