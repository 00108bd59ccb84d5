"""Slurm's commands on this machine, as whichever Unix user a job belongs to."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import Mapping, Sequence

from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.process import PipeStream, TtyStream, completed
from penstock.engines.slurm.spec import Completed, Stream

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_FOUND = 127
_AT_ONCE = 8  # processes of ours; more would only wait for slurmctld


class LocalTransport:
    """Commands die with the server (PR_SET_PDEATHSIG, by setpriv): no forgotten sbatch submits later what is asked again."""

    def __init__(self, environment: Mapping[str, str] | None = None, path: str = _PATH) -> None:
        """``environment``: of every command, SLURM_CONF say. Nothing of the server's own is passed on."""
        self._environment = {"PATH": path, "LANG": "C.UTF-8", **(environment or {})}
        self.root = os.geteuid() == 0
        self._home = os.path.expanduser("~")
        self._setpriv = shutil.which("setpriv", path=path)
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", user: str | None = None, timeout_s: float = 30.0
    ) -> Completed:
        words, environment = self._as(argv, user)
        async with self._at_once:
            try:
                done = await completed(words, stdin=stdin, timeout_s=timeout_s, env=environment)
            except TimeoutError:
                raise Unreachable(f"{argv[0]} did not answer within {timeout_s:g} s") from None
            except OSError as error:
                raise Unreachable(f"{words[0]} cannot be started: {error.strerror}") from error
        if done.code == _NOT_FOUND and not done.out:
            raise Unreachable(
                f"{argv[0]} is not on this machine: install Slurm's commands, or name a login node (--ssh)"
            )
        return done

    async def open(self, argv: Sequence[str], *, user: str | None = None, tty: tuple[int, int] | None = None) -> Stream:
        words, environment = self._as(argv, user)
        return await (PipeStream.open(words, environment) if tty is None else TtyStream.open(words, tty, environment))

    async def home(self, user: str | None) -> str:
        if user is None:
            return self._home
        return _entry(user).pw_dir

    async def close(self) -> None:
        """Nothing is kept open."""

    def _as(self, argv: Sequence[str], user: str | None) -> tuple[list[str], dict[str, str]]:
        words = [self._setpriv, "--pdeathsig", "KILL"] if self._setpriv else []
        environment = dict(self._environment)
        if user is None:
            return [*words, *(["--"] if words else []), *argv], {**environment, "HOME": self._home}
        entry = _entry(user)
        environment |= {"HOME": entry.pw_dir, "USER": user, "LOGNAME": user, "SHELL": entry.pw_shell or "/bin/sh"}
        if os.geteuid() == entry.pw_uid:
            return [*words, *(["--"] if words else []), *argv], environment
        if not self.root or not self._setpriv:
            raise Refused(f"only root can run Slurm's commands as {user}, and the server does not run as root")
        become = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups"]
        return [*words, *become, "--", *argv], environment


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise Refused(f"the Unix user {user!r} does not exist on this machine") from None
