"""From a Launch to the frame that a supervisor is given: everything decided, so that it needs no further knowledge."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from penstock.engines import launchers
from penstock.engines.local import conda, environment, folder, procs
from penstock.engines.local.users import Users
from penstock.engines.spec import Failure, Launch, RankExit, RankGroup

_HOST = "127.0.0.1"
_COUNT_EVERY_S = 10.0
# Below Linux's ephemeral range (ip_local_port_range begins at 32768), so that no outgoing connection takes them.
_PORTS = range(20_000, 32_000)


class Renderer:
    """Knows what of the server's own environment jobs may see, and which Python runs the shim."""

    def __init__(
        self, host_env: Mapping[str, str], max_pids: int, url: str | None, python: str, *, counted: bool = True
    ) -> None:
        """``counted``: whether a control group counts a job's processes; otherwise RLIMIT_NPROC has to do."""
        own = os.path.dirname(python)
        self._base = environment.scrub(
            host_env, own_prefix=own if own != os.path.dirname(os.path.realpath(python)) else None
        )
        self._max_pids = max_pids
        self._counted = counted
        self._processes: dict[int, tuple[float, int]] = {}
        self._users = Users()
        self._url = url
        self._python = os.path.realpath(python)
        self._next_port = random.randrange(len(_PORTS))

    def frame(self, launch: Launch) -> bytes:
        """The Launch as JSON with ``rendered``: argument lines and variables of every process."""
        identity = self._users.look_up(launch.unix_user)
        prepared = self._prepared(launch, identity)
        shimmed = launchers.effective_launcher(launch) != "none"
        port = self._free_port()
        value: dict[str, Any] = asdict(launch)
        value |= {
            "format": folder.FORMAT,
            "max_pids": self._max_pids,
            "max_processes": None if self._counted else self._process_limit(identity),
            "identity": identity,
            "needs": prepared.needs,
            "hostfile": launchers.hostfile(launch) if len(launch.groups) > 1 or launch.procs > 1 else None,
            "flight": bool(launchers.flight_env(launch)),
            "rendered": [self._group(launch, group, prepared, port, shimmed=shimmed) for group in launch.groups],
        }
        return json.dumps(value, separators=(",", ":")).encode()

    def _prepared(self, launch: Launch, identity: Mapping[str, Any] | None) -> environment.Prepared:
        """A conda environment's name becomes its folder here: only the node knows where its user keeps them."""
        wanted = dict(launch.environment)
        if wanted.get("conda"):
            home = os.path.expanduser("~") if identity is None else identity.get("home")
            wanted["conda"] = conda.locate(str(wanted["conda"]), home, self._base["PATH"])
        return environment.prepare(wanted, self._base, folders=(launch.job_dir, launch.workdir or ""))

    def _group(
        self, launch: Launch, group: RankGroup, prepared: environment.Prepared, port: int, *, shimmed: bool
    ) -> dict[str, Any]:
        io = f"{launch.run_dir}/{folder.IO}"
        shim = (self._python, "-I", "-S", f"{io}/rank.py") if shimmed else None
        told = launchers.render(launch, group, rdzv_host=_HOST, rdzv_port=port, shim=shim)
        env = {**prepared.env, **told.env, **launchers.device_env(group), "PENSTOCK_ATTEMPT_ID": launch.attempt_id}
        env |= {"PENSTOCK_IO": io} if shimmed else {}
        env |= {"PENSTOCK_URL": self._url} if self._url else {}
        if not env["PENSTOCK_RESUME_FROM"] and _holds_something(launchers.checkpoint_dir(launch)):
            env["PENSTOCK_RESUME_FROM"] = launchers.checkpoint_dir(launch)
        workers = [
            {
                "rank": group.node_rank * launchers.processes_per_node(launch) + local,
                "env": launchers.worker_env(launch, group, local, rdzv_host=_HOST, rdzv_port=port),
            }
            for local in range(launchers.processes_per_node(launch))
        ]
        return {"argv": (*prepared.wrap, *told.argv), "env": env, "workers": workers, "shimmed": shimmed}

    def _process_limit(self, identity: Mapping[str, Any] | None) -> int:
        """What the job's user has running already, and ``max_pids`` on top; counted every few seconds at the most."""
        uid = os.getuid() if identity is None else identity.get("uid", 0)
        now = time.monotonic()
        counted_at, count = self._processes.get(uid, (-math.inf, 0))
        if now - counted_at > _COUNT_EVERY_S:
            count = procs.threads_of_user(uid)
            self._processes[uid] = (now, count)
        return count + self._max_pids

    def _free_port(self) -> int:
        """One on which nothing listens now, handed out in turn so that jobs started together get different ones."""
        for _ in range(len(_PORTS)):
            port = _PORTS[self._next_port % len(_PORTS)]
            self._next_port += 1
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((_HOST, port))
                except OSError:
                    continue
                return port
        return _PORTS[0]


def _holds_something(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def rank_exit(value: Mapping[str, Any]) -> RankExit:
    """One row of exit.json's ``ranks``."""
    return RankExit(
        value["rank"],
        value["node"],
        value["exit_code"],
        value["signal"],
        value.get("restarts", 0),
        value.get("ended_at"),
    )


def failures(values: Iterable[Mapping[str, Any]] | None) -> tuple[Failure, ...]:
    """exit.json's ``failures``."""
    return tuple(Failure(**{**value, "lines": tuple(value["lines"])}) for value in values or ())
