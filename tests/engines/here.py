"""A transport to this very machine, for tests of what is read and entered through one."""

from __future__ import annotations

import pwd
from collections.abc import Mapping, Sequence

from penstock.engines.slurm.process import PipeStream, TtyStream, completed
from penstock.engines.slurm.spec import Completed, Stream


class Here:
    """Runs as ``user`` by setpriv; the environment is ``environment`` and PATH."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = dict(environment or {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        self.opened = 0

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", user: str | None = None, timeout_s: float = 30.0
    ) -> Completed:
        return await completed(_as(user, argv), stdin=stdin, timeout_s=timeout_s, env=self.environment)

    async def open(self, argv: Sequence[str], *, user: str | None = None, tty: tuple[int, int] | None = None) -> Stream:
        self.opened += 1
        if tty is not None:
            return await TtyStream.open(_as(user, argv), tty, self.environment)
        return await PipeStream.open(_as(user, argv), self.environment)

    async def home(self, user: str | None) -> str:
        done = await self.run(("sh", "-c", "echo ~"), user=user)
        return done.out.decode().strip()

    async def close(self) -> None:
        return


def _as(user: str | None, argv: Sequence[str]) -> tuple[str, ...]:
    if user is None:
        return tuple(argv)
    known = pwd.getpwnam(user)
    return ("setpriv", f"--reuid={known.pw_uid}", f"--regid={known.pw_gid}", "--init-groups", "--", *argv)
