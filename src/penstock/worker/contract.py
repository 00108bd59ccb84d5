"""The launch contract as a process inside a job sees it: the one place that reads its variables.

docs/launch-contract.md lists them. Outside a job every field has its neutral value, so that code which asks
``checkpoint_dir()`` or ``attempt()`` runs anywhere.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, slots=True)
class LaunchContract:
    """Ids are empty, counts 1, ranks 0 and folders None where nothing is said (or what is said makes no sense)."""

    job_id: str = ""
    job_name: str = ""
    project: str = ""
    attempt: int = 1
    restart_count: int = 0  # restarts in place within this attempt
    nnodes: int = 1
    node_rank: int = 0
    node_name: str = ""
    nproc: int = 1  # ranks on each node
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1  # ranks on this node, as the launcher says
    rdzv_endpoint: str = ""
    checkpoint_dir: str | None = None
    resume_from: str | None = None
    hostfile: str | None = None
    report_fd: int | None = None
    url: str | None = None
    array_index: int | None = None
    array_count: int | None = None
    inject: str | None = None  # a file of faults for game days: worker/faults.py

    @property
    def in_job(self) -> bool:
        return bool(self.job_id)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> LaunchContract:
        def number(name: str, default: int) -> int:
            value = _number(environ.get(name))
            return default if value is None else value

        return cls(
            job_id=environ.get("PENSTOCK_JOB_ID", ""),
            job_name=environ.get("PENSTOCK_JOB_NAME", ""),
            project=environ.get("PENSTOCK_PROJECT", ""),
            attempt=number("PENSTOCK_ATTEMPT", 1),
            restart_count=number("TORCHELASTIC_RESTART_COUNT", 0),
            nnodes=number("PENSTOCK_NNODES", 1),
            node_rank=number("PENSTOCK_NODE_RANK", 0),
            node_name=environ.get("PENSTOCK_NODE_NAME", ""),
            nproc=number("PENSTOCK_NPROC", 1),
            rank=number("RANK", 0),
            local_rank=number("LOCAL_RANK", 0),
            world_size=number("WORLD_SIZE", 1),
            local_world_size=number("LOCAL_WORLD_SIZE", number("PENSTOCK_NPROC", 1)),
            rdzv_endpoint=environ.get("PENSTOCK_RDZV_ENDPOINT", ""),
            checkpoint_dir=environ.get("PENSTOCK_CKPT_DIR") or None,
            resume_from=environ.get("PENSTOCK_RESUME_FROM") or None,
            hostfile=environ.get("PENSTOCK_HOSTFILE") or None,
            report_fd=_number(environ.get("PENSTOCK_REPORT_FD")),
            url=environ.get("PENSTOCK_URL") or None,
            array_index=_number(environ.get("PENSTOCK_ARRAY_INDEX")),
            array_count=_number(environ.get("PENSTOCK_ARRAY_COUNT")),
            inject=environ.get("PENSTOCK_INJECT") or None,
        )


def current() -> LaunchContract:
    """The contract of this process, read anew: a script may set RANK before it starts processes of its own."""
    return LaunchContract.from_environ(os.environ)


def checkpoint_dir(default: str | None = None) -> str | None:
    """Where this job keeps its checkpoints; it outlives attempts. ``default`` outside a job."""
    return current().checkpoint_dir or default


def resume_from() -> str | None:
    """The folder to resume from, or None for a fresh start.

    After a restart in place the launcher repeats the first start's variables, so that the restart count is asked too.
    """
    contract = current()
    return contract.resume_from or (contract.checkpoint_dir if contract.restart_count else None)


def attempt() -> int:
    """Which attempt of the job this is, from 1."""
    return current().attempt


class StopSignal:
    """Remembers SIGTERM, which Penstock sends a grace period before SIGKILL. Installed from the main thread."""

    def __init__(self) -> None:
        self._seen = False
        self._installed = False

    def __call__(self) -> bool:
        """Whether this process was asked to stop. The first call, made early, starts to listen."""
        if not self._installed and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
            self._installed = True
        return self._seen

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        if callable(self._previous):
            self._previous(number, frame)


should_stop = StopSignal()


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None
