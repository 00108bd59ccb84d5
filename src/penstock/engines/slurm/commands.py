"""slurmctld and slurmdbd, asked by Slurm's own commands over a transport."""

from __future__ import annotations

import contextlib
import pwd
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from penstock.base.text import one_line
from penstock.engines.slurm import parsing
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.spec import Site, SlurmConfig, SlurmJob, SlurmNode, Submission, Transport

# Times in epoch seconds, whatever the site's clock; no setting of whoever we come as changes what is printed.
_PLAIN = ("env", "SLURM_TIME_FORMAT=%s", "SQUEUE_FORMAT=", "SQUEUE_FORMAT2=")
_SUBMIT_S = 30.0
_BACK_DAYS = 2  # how far slurmdbd is searched for a name
_TOPOLOGY_S = 300.0
_NAMED = 50  # jobs that squeue is asked for by their numbers
_GOING = (
    "PENDING,CONFIGURING,RUNNING,SUSPENDED,COMPLETING"  # as every release knows them; the rest is asked for by number
)
_AT_ONCE = 500  # jobs that sacct is asked about in one line


class CommandController:
    """Nothing is kept but the topology."""

    def __init__(self, transport: Transport, config: SlurmConfig) -> None:
        self._transport = transport
        self._config = config
        self._topology: tuple[float, Mapping[str, str]] = (-_TOPOLOGY_S, {})
        # squeue's last rows, by the states that were asked for: jobs that wait or run mostly do just that
        self._rows: dict[str, dict[str, SlurmJob | None]] = {}

    async def submit(self, submission: Submission) -> int:
        words = ["sbatch", "--parsable", *(["--array", submission.array] if submission.array else [])]
        for name, value in submission.options.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not False:
                words.append(f"--{name}={value}")
        said = await self._ask(words, stdin=submission.script, user=submission.user, timeout_s=_SUBMIT_S)
        number = said.strip().partition(";")[0]
        if not number.isdecimal():
            raise Unreachable(f"sbatch answered {one_line(said)[:200]!r}")
        return int(number)

    async def jobs(self, keys: Collection[str]) -> list[SlurmJob]:
        """Of many by two questions at the most: squeue compares each job that Slurm still knows with each that it is asked
        for, and those that have ended are most of them.
        """
        if len(keys) <= _NAMED:
            return await self._of(keys)
        wanted = set(keys)
        going = [job for job in await self._squeue(_GOING) if job.key in wanted]
        left = wanted.difference(job.key for job in going)
        return going + await self._of(left)

    async def _of(self, keys: Collection[str]) -> list[SlurmJob]:
        if not keys:
            return []
        # One number that is not there is an error, one of several is not: so it is given twice.
        wanted = ",".join(keys) if len(keys) > 1 else ",".join([*keys] * 2)
        try:
            return await self._squeue("all", f"--jobs={wanted}")
        except Refused as error:
            if "invalid job id" in error.message.lower():
                return []
            raise

    async def named(self, tags: tuple[str, ...]) -> list[SlurmJob]:
        found = [job for job in await self._squeue("all") if job.name.endswith(tags)]
        if found:
            return found
        since = f"--starttime=now-{_BACK_DAYS}days"
        return [job for job in await self._sacct("--allusers", since) if job.name.endswith(tags)]

    async def finished(self, keys: Sequence[str]) -> list[SlurmJob]:
        found: list[SlurmJob] = []
        for begin in range(0, len(keys), _AT_ONCE):
            found += await self._sacct(f"--jobs={','.join(keys[begin : begin + _AT_ONCE])}")
        return found

    async def devices(self, keys: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]:
        """One question, about one job or all of them."""
        if not keys:
            return {}
        found = parsing.devices(
            await self._ask(["scontrol", "-o", "-d", "show", "job", *(keys if len(keys) == 1 else ())])
        )
        return {key: found[key] for key in keys if key in found}

    async def signal(self, key: str, signal: str, *, user: str | None = None) -> None:
        await self._ask(["scancel", "--batch", f"--signal={signal}", key], user=user)

    async def cancel(self, key: str, *, user: str | None = None) -> None:
        await self._cancel(key, user=user)

    async def nodes(self) -> list[SlurmNode]:
        found = parsing.nodes(await self._ask([*_PLAIN, "scontrol", "-o", "-d", "show", "node"]))
        if self._config.partition:
            found = [node for node in found if self._config.partition in node.partitions]
        ways = await self._ways()
        return [replace(node, topology=ways.get(node.name, "")) for node in found]

    async def set_node(self, name: str, state: str, reason: str = "") -> None:
        words = ["scontrol", "update", f"NodeName={name}", f"State={state}"]
        await self._ask([*words, *([f"Reason={reason}"] if reason else [])])

    async def site(self) -> Site:
        config = parsing.settings(await self._ask(["scontrol", "show", "config"]))
        partitions = parsing.partitions(await self._ask(["scontrol", "-o", "-a", "show", "partition"]))
        return Site(
            config.get("SLURM_VERSION", ""),
            config.get("ClusterName", ""),
            tuple(partitions),
            tuple(filter(None, config.get("GresTypes", "").split(","))),
            config.get("TopologyPlugin", ""),
            config.get("AccountingStorageType", ""),
            tuple(filter(None, config.get("AccountingStorageEnforce", "").split(","))),
            config.get("SelectType", ""),
            config,
        )

    # -- asking

    async def _squeue(self, states: str, *words: str) -> list[SlurmJob]:
        mark, separator = _mark(), _mark()
        layout = mark + separator.join(parsing.SQUEUE)
        asked = [
            *_PLAIN,
            "squeue",
            "--noheader",
            "--all",
            "--array",
            f"--states={states}",
            f"--format={layout}",
            *words,
        ]
        rows = parsing.rows(await self._ask(asked), mark, separator)
        known = self._rows.get(states, {})
        found = self._rows[states] = {row: known[row] if row in known else parsing.job(row) for row in rows}
        return [job for job in found.values() if job is not None]

    async def _sacct(self, *words: str) -> list[SlurmJob]:
        mark = _mark()
        fields = ",".join(parsing.SACCT)
        asked = [
            *_PLAIN,
            "sacct",
            "-X",
            "--noheader",
            "--parsable2",
            f"--delimiter={mark}",
            f"--format={fields}",
            *words,
        ]
        try:
            text = await self._ask(asked)
        except Refused:
            return []  # no accounting is kept here
        users = {}
        for number in parsing.cancellers(text):
            with contextlib.suppress(KeyError):
                users[number] = pwd.getpwuid(number).pw_name
        return parsing.finished(text, mark, users)

    async def _cancel(self, *words: str, user: str | None) -> None:
        """What is over already need not be cancelled."""
        try:
            await self._ask(["scancel", *words], user=user)
        except Refused as error:
            said = error.message.lower()
            if "already complet" not in said and "invalid job id" not in said and "not running" not in said:
                raise

    async def _ways(self) -> Mapping[str, str]:
        asked, ways = self._topology
        if time.monotonic() - asked >= _TOPOLOGY_S:
            try:
                ways = parsing.topology(await self._ask(["scontrol", "-o", "show", "topology"]))
            except Refused:
                ways = {}
            self._topology = time.monotonic(), ways
        return ways

    async def _ask(
        self, argv: Sequence[str], *, stdin: bytes = b"", user: str | None = None, timeout_s: float = 20.0
    ) -> str:
        done = await self._transport.run(argv, stdin=stdin, user=user, timeout_s=timeout_s)
        if done.code == 0:
            return done.out.decode("utf-8", "replace")
        said = done.err.decode("utf-8", "replace")
        words = one_line(said)[:500] or f"{argv[0]} ended with code {done.code}"
        raise (Unreachable(words) if parsing.unavailable(said) or done.code < 0 else Refused(words))


def _mark() -> str:
    """Not of hexadecimal digits alone, and so no part of itself: it is found where it begins."""
    return f"x{secrets.token_hex(8)}"
