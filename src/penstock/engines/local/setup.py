"""What must be there before a job's first process: user, folders, code, control groups."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from penstock.engines.local import child
from penstock.engines.local.cgroups import Cage, Layout
from penstock.engines.local.child import Identity, LaunchError, Start


class Setup:
    """Prepares one attempt and takes its control groups away again."""

    def __init__(self, launch: dict[str, Any], layout: Layout) -> None:
        self.launch = launch
        self.who: Identity | None = None
        self.cages: list[Cage] = []
        self.work = f"{launch['job_dir']}/work"
        self._whole = Cage(layout, launch["attempt_id"])
        self._layout = layout
        self._null = -1

    @property
    def cwd(self) -> str:
        return self.work if self.launch["snapshot"] or not self.launch["workdir"] else str(self.launch["workdir"])

    def prepare(self) -> None:
        """Raises LaunchError, or OSError where the machine fails."""
        self.who = child.identity(self.launch["identity"])
        self._own_folder(f"{self.launch['job_dir']}/checkpoints")
        if self.launch.get("flight"):
            self._own_folder(f"{self.launch['job_dir']}/flight")
        if self.launch["snapshot"]:
            self._unpack()
        elif self.cwd == self.work:
            self._own_folder(self.work)
        if hostfile := self.launch.get("hostfile"):
            with open("hostfile", "w", encoding="utf-8") as file:
                file.write(hostfile)
            os.chmod("hostfile", 0o644)
        self._make_cages()  # last: groups that stay empty for long are swept away (cgroups.sweep)

    def start(self, group: int, argv: list[str], env: dict[str, str], out: int) -> Start:
        """A process of ``group``, not started yet."""
        start = Start(argv, env, self.cwd, out)
        start.who = self.who
        start.cage = self.cages[group]
        start.needs = list(self.launch["needs"])
        start.fallback_home = f"{self.launch['job_dir']}/home"
        start.processes = self.launch["max_processes"]
        return start

    def give(self, fd: int) -> None:
        """Let the job's user open this pipe again by /dev/stdout or /proc/self/fd."""
        if self.who is not None:
            os.fchown(fd, self.who.uid, self.who.gid)

    def kill(self) -> None:
        for cage in self.cages:
            cage.kill()

    def remove(self) -> None:
        for cage in self.cages:
            cage.remove()
        if len(self.cages) > 1:
            self._whole.attach().remove()

    def pids(self, group: int) -> list[int] | None:
        return self.cages[group].pids()

    def _make_cages(self) -> None:
        groups = self.launch["groups"]
        for index, group in enumerate(groups):
            cage = self._whole if len(groups) == 1 else Cage(self._layout, f"{self.launch['attempt_id']}/{index}")
            self.cages.append(cage)
            cage.create(cpus=group["cpus"], memory=group["memory"], pids=self.launch["max_pids"])

    def _own_folder(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
        if self.who is not None:
            os.chown(path, self.who.uid, self.who.gid)

    def _unpack(self) -> None:
        """Once per job, as the job's user: beside ``work`` first, so that a half unpacked one is never run."""
        if os.path.isdir(self.work):
            return
        try:
            source = os.open(self.launch["snapshot"], os.O_RDONLY)
        except OSError as error:
            raise LaunchError("LaunchFailed", f"the job's snapshot cannot be read: {error.strerror}") from None
        fresh = f"{self.work}.{self.launch['attempt_id']}"
        with contextlib.suppress(FileExistsError):
            self._own_folder(fresh)
        failure = self._as_user(lambda: _extract(source, fresh), source)
        os.close(source)
        if failure is not None:
            raise LaunchError(failure["reason"], failure["message"])
        os.rename(fresh, self.work)

    def _as_user(self, body: Any, source: int) -> dict[str, str] | None:
        """Run ``body`` in a child with the job's user; what went wrong."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        start = Start(["unpack"], {}, "/", writer)
        start.who = self.who
        pid = child.in_child(start, writer, body)
        os.close(writer)
        with open(reader, "rb") as file:
            text = file.read()
        status = os.waitpid(pid, 0)[1]
        if status == 0:
            return None
        try:
            found: dict[str, str] = json.loads(text)
        except ValueError:
            return {"reason": "LaunchFailed", "message": f"unpacking the snapshot ended with status {status}"}
        return found


def _extract(source: int, target: str) -> None:
    from penstock.engines.local import snapshot  # noqa: PLC0415 - tarfile is heavy; only jobs with a snapshot need it

    snapshot.unpack(source, target)
