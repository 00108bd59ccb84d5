"""How far the attempts that run have come, by what rank 0 of each last reported, and whether their ranks were started again in
place: one command a user, every few seconds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from penstock.engines.slurm.attempts import Attempt
from penstock.engines.slurm.errors import Refused
from penstock.engines.slurm.pace import Pace
from penstock.engines.slurm.restarts import start
from penstock.engines.slurm.spec import Transport

EVERY_S = 4.0
_AT_ONCE = 500  # files in one command
_LONGEST = 1 << 16
_HEAD = re.compile(rb"==> (.*)/(progress/0|restarts) <==")


class Watch:
    """Asks when it is due, and not before."""

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._clock = clock
        self._due = 0.0

    async def look(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Those of which there is a new report; ``again`` of an attempt says the rest. Raises Unreachable."""
        now = asyncio.get_running_loop().time()
        if not attempts or now < self._due:
            return []
        self._due = now + EVERY_S
        users: dict[str | None, dict[str, Attempt]] = {}
        for attempt in attempts:
            users.setdefault(attempt.user, {})[attempt.folder] = attempt
        found: list[Attempt] = []
        for user, theirs in users.items():
            folders = list(theirs)
            for begin in range(0, len(folders), _AT_ONCE):
                some = folders[begin : begin + _AT_ONCE]
                files = [f"{folder}/progress/0" for folder in some]
                files += [f"{folder}/restarts" for folder in some if theirs[folder].asked.shimmed]
                try:
                    done = await self._transport.run(("tail", "-v", "-n", "1", "--", *files), user=user)
                except Refused:
                    continue
                found += self._read(done.out, theirs)
        return found

    def _read(self, said: bytes, theirs: dict[str, Attempt]) -> list[Attempt]:
        now, found, folder, what = self._clock(), [], "", b""
        for line in said.split(b"\n"):
            head = _HEAD.fullmatch(line)
            if head:
                folder, what = head[1].decode("utf-8", "replace"), head[2]
            elif line and (attempt := theirs.get(folder)) is not None:
                folder = ""
                if what == b"restarts":
                    begun = start(line[:_LONGEST].decode("ascii", "replace"))
                    attempt.again = begun is not None and begun.total > attempt.in_place
                    continue
                if attempt.pace is None:
                    attempt.pace = Pace()
                if attempt.pace.take(line[:_LONGEST], now):
                    found.append(attempt)
        return found
