"""A private, real Slurm for tests and benchmarks: munged, MariaDB, slurmdbd, slurmctld, eight slurmd with fake GPUs.

In a test marked ``real`` and ``needs("slurmdbd", "root")`` ask for the fixture ``slurm_cluster`` (one cluster a worker,
started at first use; leave it as you found it), or start your own where you stop daemons or want other settings:

    from tests.slurm_cluster import cluster

    with cluster(min_job_age=2, private_mounts=["/srv/nodes"]) as slurm:
        slurm.run("sbatch", "--parsable", "--wrap", "true", user="nobody")

``slurm.environment`` (SLURM_CONF) is what Slurm's commands need. Nodes ``node-0`` .. ``node-7``, each of 8 CPUs, 16000 MB
and 4 GPUs (``gres/gpu:h100``, null devices), in two leaves; a job that asks for no memory has 1000 MB a CPU, and one that
takes more than it has is killed by its control group (OUT_OF_MEMORY, ``0:125``) where this machine lets root make those of
version 1 (``slurm.contained``), by slurmd (FAILED, ``0:9``) where not. Partitions: ``all`` (default, every node), ``pair``
(node-0, node-1), ``urgent`` (higher tier: its jobs preempt and requeue those of ``all`` and ``pair``), ``spare`` (lowest
tier: its jobs are cancelled for any other). ``preempt="qos"`` has QoS ``high`` preempt ``normal`` instead. Accounts and
their users, who are users of every Debian: ACCOUNTS. QoS: normal, high.

Every file of it is rendered from a fleet file (``fleet``) by ``penstock.provisioning``; ``started`` starts any other, as the
benchmarks do. Needs root, as slurmd does. Own folder, keys, sockets and ports: nothing of the machine's own Slurm is used or changed, and
whatever was started is ended by its process id.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import until
from penstock.provisioning.hostlist import expand
from penstock.provisioning.plan import parse
from penstock.provisioning.slurm import render
from tests.slurm_reaper import GROUPS, V1, kill_steps, remove_groups

NODES, GPUS, CPUS, MEMORY = 8, 4, 8, 16_000
MOST_NODES = 16
ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
ACCOUNTS = {
    "production": (5, {"daemon": 2, "bin": 1}),
    "research": (3, {"nobody": 3, "sys": 3, "games": 1, "man": 1}),
    "interns": (1, {"mail": 1, "news": 1}),
}

QOS = "QOS='normal,high':DefaultQOS='normal'"


@dataclass(frozen=True)
class Place:
    """What a fleet file for this machine needs to know. Ports by name: ``controller``, ``dbd``, ``sql``, ``rest``."""

    folder: Path
    host: str
    ports: Mapping[str, int]
    node_ports: Sequence[int]
    contained: bool  # whether jobs can have control groups of their own

    def slurm(self, extra: Mapping[str, object]) -> dict[str, object]:
        """The part ``slurm`` of a fleet file: everything in this folder, run by root, several slurmd on one host."""
        folder = str(self.folder)
        usual: dict[str, object] = {
            "SlurmdUser": "root",
            "SlurmdParameters": "config_overrides",
            "MailProg": "/bin/true",
        }
        usual |= {"ReturnToService": 2, "KillWait": 2, "JobCompType": "jobcomp/none"}
        return {
            "version": "22.05",
            "user": "root",
            "state_dir": f"{folder}/state",
            "spool_dir": f"{folder}/spool",
            "log_dir": folder,
            "run_dir": folder,
            "munge_socket": f"{folder}/munge.sock",
            "ports": {"controller": self.ports["controller"], "node": self.ports["node"]},
            "extra": usual | dict(extra),
        }

    def pool(self, nodes: str, *, cpus: int, memory: int, gpus: tuple[str, int] | None = None) -> dict[str, object]:
        """Nodes that are all on this machine, ``memory`` in MB."""
        ports = list(self.node_ports[: len(expand(nodes))])
        told: dict[str, object] = {"addresses": "127.0.0.1", "hostnames": self.host, "port": ports}
        told |= {"name": "nodes", "nodes": nodes, "cpus": cpus, "memory": f"{memory}Mi"}
        if gpus is not None:
            told["gpus"] = {"model": gpus[0], "count": gpus[1], "files": f"{self.folder}/gpu[0-{gpus[1] - 1}]"}
        return told

    def accounting(self) -> dict[str, object]:
        database = {"host": "127.0.0.1", "port": self.ports["sql"], "user": "root", "name": "slurm"}
        return {"host": self.host, "address": "127.0.0.1", "port": self.ports["dbd"], "database": database}


@dataclass
class Cluster:
    """A running private cluster."""

    place: Place
    environment: dict[str, str]
    name: str
    nodes: tuple[str, ...]
    accounted: bool
    private: tuple[str, ...] = ()
    watch: Callable[[int], None] | None = None
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    reaper: subprocess.Popen[str] | None = None
    idle_after_s: float = 0.0  # from the start of slurmctld and slurmd to every node idle

    @property
    def folder(self) -> Path:
        return self.place.folder

    @property
    def ports(self) -> Mapping[str, int]:
        return self.place.ports

    @property
    def contained(self) -> bool:
        return self.place.contained

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
        self._until((at / "munge.sock").exists, "munged")

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
        self._until((at / "sql.sock").exists, "mariadbd")

    def start_dbd(self, *, wait: bool = True) -> None:
        self._start("slurmdbd", "slurmdbd", "-D")
        if wait:
            self._until(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd")

    def stop_dbd(self) -> None:
        self._end("slurmdbd")

    def start_ctld(self, *, wait: bool = True) -> None:
        fresh = not (self.folder / "state/job_state").exists()
        self._start("slurmctld", "slurmctld", "-D", *(["-c"] if fresh else []))
        # Slurm's commands wait a second or two when nobody answers at once.
        self._until(lambda: _listens(self.ports["controller"]), "slurmctld")
        if wait:
            self._until(lambda: self._answers("scontrol", "ping"), "slurmctld")

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
        if self.contained and (self.folder / "cgroup.conf").exists():
            groups = [(str(V1 / name / self.folder.name), str(self.folder / "cgroup" / name)) for name in GROUPS]
            binds += [word for pair in groups for word in pair]
        script = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@"'
        unshare = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *binds, "--")
        self._start(node, *(unshare if binds else ()), "slurmd", "-D", "-N", node)

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
        kill_steps({"SLURM_CONF": self.environment["SLURM_CONF"], "TEST_NODE": node})

    def start_restd(self) -> str:
        """slurmrestd's URL. ``token`` makes what it wants to see."""
        port = self.ports["rest"]
        words = ("slurmrestd", "-a", "rest_auth/jwt", f"127.0.0.1:{port}")
        self._start(
            "slurmrestd", "env", "SLURM_JWT=daemon", "setpriv", "--reuid=1", "--regid=1", "--clear-groups", *words
        )
        self._until(lambda: _listens(port), "slurmrestd")
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
            told = self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
            return set(told) == {f"{node} idle" for node in self.nodes}
        return False

    def _answers(self, *command: str) -> bool:
        return self.tried(*command).returncode == 0

    def _until(self, condition: Callable[[], bool], name: str) -> None:
        """Until the daemon is ready; what it said, when it ends instead."""

        def ready() -> bool:
            if self.daemons[name].poll() is not None:
                said = (self.folder / f"{name}.out").read_text(errors="replace")
                raise RuntimeError(f"{name} did not start: {said[-800:]}")
            return condition()

        until(ready, name, timeout=90, every=0.02)

    def _start(self, name: str, *command: str) -> None:
        assert name not in self.daemons, f"{name} runs"
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                command, env={**self.environment, "TEST_NODE": name}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, cwd="/",
            )  # fmt: skip
        if self.watch is not None:
            self.watch(self.daemons[name].pid)
        self._tell_reaper(f"+{self.daemons[name].pid}")

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
        self._tell_reaper(f"-{process.pid}")

    def _tell_reaper(self, words: str) -> None:
        if self.reaper is None:
            module = ("-m", "tests.slurm_reaper", str(self.folder))
            self.reaper = subprocess.Popen(
                [sys.executable, *module], cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self.reaper.stdin is not None
        self.reaper.stdin.write(f"{words}\n")
        self.reaper.stdin.flush()

    def end(self) -> None:
        """All of it. Steps too, by their id: they would outlive slurmd."""
        for name in self.nodes:
            if name in self.daemons:
                self.daemons[name].terminate()
        kill_steps({"SLURM_CONF": self.environment["SLURM_CONF"]})
        for name in (*self.nodes, "slurmrestd", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            if name in self.daemons:
                self._end(name)
        kill_steps({"SLURM_CONF": self.environment["SLURM_CONF"]})
        if self.reaper is not None:
            self.reaper.communicate(".\n", timeout=30)


def unavailable(*, accounting: bool = True) -> str:
    """Why none can be started here; empty when one can."""
    wanted = PROGRAMS + (ACCOUNTING if accounting else ())
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (make test-deps)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextmanager
def cluster(
    *,
    min_job_age: int = 300,
    enforce: Sequence[str] = ("associations", "limits", "qos"),
    preempt: str = "partition",
    private_mounts: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> Iterator[Cluster]:
    """A cluster with every node idle and its accounts made; ended whatever happens.

    ``min_job_age``: seconds until slurmctld forgets a finished job. ``preempt``: "partition" or "qos". ``private_mounts``:
    folders, made if missing, in whose place each node sees one of its own (``disk``): nodes that share no files.
    ``settings``: of slurm.conf, instead of those here.
    """

    def document(place: Place) -> dict[str, object]:
        told = fleet(place, preempt=preempt, extra={"MinJobAge": min_job_age, **(settings or {})})
        accounting = {**place.accounting(), "enforce": list(enforce)}
        return {**told, "accounting": accounting}

    def people(slurm: Cluster) -> None:
        make_people(slurm, ACCOUNTS, preempt=preempt)

    with started(document, people, private=private_mounts) as slurm:
        yield slurm


def fleet(place: Place, *, preempt: str = "partition", extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """The fleet file of the tests' cluster."""
    told: dict[str, object] = {
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=1",
        "CompleteWait": 0,
        "SlurmdTimeout": 20,
    }
    cgroup: dict[str, object] = {"plugin": "none"}
    if place.contained:
        own = {"CgroupMountpoint": f"{place.folder}/cgroup", "CgroupAutomount": "no", "MinRAMSpace": 10}
        cgroup = {"plugin": "v1", "cores": False, "devices": False, "extra": own}
        told["TaskPlugin"] = "task/cgroup"
    slurm = place.slurm({**told, **(extra or {})})
    parameters = {"bf_interval": 1, "bf_resolution": 1, "bf_continue": True, "batch_sched_delay": 0}
    leaves = [{"name": f"leaf{i + 1}", "nodes": f"node-[{4 * i}-{4 * i + 3}]"} for i in range(NODES // 4)]
    usual = {"priority_tier": 5, "preempt_mode": "requeue"}
    return {
        "kind": "Fleet",
        "name": "test",
        "controllers": [{"host": place.host, "address": "127.0.0.1"}],
        "pools": [place.pool(f"node-[0-{NODES - 1}]", cpus=CPUS, memory=MEMORY, gpus=("h100", GPUS))],
        "topology": {"kind": "tree", "switches": [*leaves, {"name": "spine", "switches": "leaf[1-2]"}]},
        "partitions": [
            {"name": "all", "default": True, **usual},
            {"name": "pair", "nodes": "node-[0-1]", **usual},
            {"name": "urgent", "priority_tier": 10, "preempt_mode": "off"},
            {"name": "spare", "priority_tier": 1, "preempt_mode": "cancel"},
        ],
        "scheduler": {
            "parameters": parameters | {"sched_interval": 1, "sched_min_interval": 0},
            "weights": {"age": 1000, "fairshare": 1000, "partition": 1000, "qos": 1000},
            "preempt": preempt,
        },
        "slurm": {**slurm, "jwt_key": f"{place.folder}/jwt.key", "default_memory_per_cpu": "1000Mi", "cgroup": cgroup},
    }


def make_people(
    slurm: Cluster, accounts: Mapping[str, tuple[int, Mapping[str, int]]], *, preempt: str = "partition"
) -> None:
    """Accounts with their shares, their users with theirs, and the QoS ``high``. As a file: each call takes 0.6 s."""
    slurm.run("sacctmgr", "-i", "add", "qos", "high", "Priority=10", *(["Preempt=normal"] if preempt == "qos" else []))
    lines = [f"Cluster - '{slurm.name}'", "Parent - 'root'", "User - 'root':AdminLevel='Administrator'"]
    lines += [f"Account - '{account}':Fairshare={share}" for account, (share, _) in accounts.items()]
    for account, (_, users) in accounts.items():
        lines.append(f"Parent - '{account}'")
        lines += [f"User - '{user}':DefaultAccount='{account}':Fairshare={own}:{QOS}" for user, own in users.items()]
    path = slurm.folder / "people.cfg"
    path.write_text("\n".join([*lines, ""]))
    slurm.run("sacctmgr", "-i", "load", str(path))


# -- any cluster on this machine, from a fleet file


@contextmanager
def started(
    document: Callable[[Place], Mapping[str, object]],
    people: Callable[[Cluster], None] | None = None,
    *,
    private: Sequence[str] = (),
    watch: Callable[[int], None] | None = None,
) -> Iterator[Cluster]:
    """What the fleet file says, running, every node idle. ``watch`` is told the id of every daemon."""
    if reason := unavailable(accounting=False):
        raise RuntimeError(f"Slurm: {reason}")
    # In memory: on a disk the files that Slurm removes after each job slow down whoever makes new ones there.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="penstock-slurm-", dir=memory))
    slurm = None
    try:
        names = ("controller", "dbd", "sql", "rest", "node")
        ports = _ports(len(names) + MOST_NODES)
        host = socket.gethostname().split(".")[0]
        rooms = dict(zip(names, ports, strict=False))
        place = Place(folder, host, rooms, ports[len(names) :], _make_groups(folder))
        slurm = _written(place, document(place), private, watch)
        _start(slurm, people)
        yield slurm
    finally:
        if slurm is not None:
            slurm.end()
        remove_groups(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _written(
    place: Place, document: Mapping[str, object], private: Sequence[str], watch: Callable[[int], None] | None
) -> Cluster:
    """The rendered files, and what they name."""
    folder = place.folder
    told = parse(json.dumps(document))
    if reason := unavailable(accounting=told.accounting is not None):
        raise RuntimeError(f"Slurm: {reason}")
    for file in render(told):
        path = folder / file.name
        path.write_text(str(file))
        path.chmod(file.mode)
    for name in ("state", "sql", *(f"spool.{node}" for node in told.nodes)):
        (folder / name).mkdir()
    for number in range(max(pool.gpus.count if pool.gpus else 0 for pool in told.pools)):
        # gres/gpu wants a device for each: null devices will do
        os.mknod(folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name, size in (("munge.key", 128), ("jwt.key", 32)):
        (folder / name).write_bytes(secrets.token_bytes(size))
        (folder / name).chmod(0o600)
    folder.chmod(0o755)  # jobs run as other users
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "TZ": "UTC"}
    slurm = Cluster(place, environment, told.name, told.nodes, told.accounting is not None, tuple(private), watch)
    for each in private:
        Path(each).mkdir(parents=True, exist_ok=True)
        for node in slurm.nodes:
            slurm.disk(node, each).mkdir(parents=True)
            slurm.disk(node, each).chmod(0o1777)
    return slurm


def _start(slurm: Cluster, people: Callable[[Cluster], None] | None) -> None:
    slurm.start_munged()
    if slurm.accounted:
        slurm.run(
            "mariadb-install-db", "--no-defaults", f"--datadir={slurm.folder}/sql", "--user=root",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        slurm.start_mariadb()
        slurm.start_dbd()
        if people is not None:
            people(slurm)
    began = time.monotonic()
    slurm.start_ctld(wait=False)
    for node in slurm.nodes:
        slurm.start_slurmd(node)
    slurm.wait_idle()
    slurm.idle_after_s = time.monotonic() - began


def _make_groups(folder: Path) -> bool:
    """Control groups for this cluster alone: clusters with nodes of the same names would share Slurm's own."""
    try:
        for name in GROUPS:
            (V1 / name / folder.name).mkdir()
            (folder / "cgroup" / name).mkdir(parents=True)
    except OSError:
        remove_groups(folder)
        return False
    return True


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
    """Without connecting, which slurmctld would take for a broken message and log."""
    ending, listening = f":{port:04X}", "0A"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if local.endswith(ending) and state == listening:
            return True
    return False
