"""slurmctld and slurmdbd, asked by slurmrestd: whatever version of its API there is.

Some things no version of it can do (slurm.conf is not told), some an older one cannot (change a node). With Slurm's own
commands at hand (``commands``: over SSH, or on this machine) those are asked instead; without, it is said in words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import time
from typing import Any
from urllib.parse import quote

from penstock.engines.slurm import parsing, restdata, restjob
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.resthttp import Answered, RestClient
from penstock.engines.slurm.spec import Controller, Site, SlurmConfig, SlurmJob, SlurmNode, Submission

_NO_JOB = frozenset({2017, 2021})  # "Invalid job id specified", "Job/step already completing or completed"
_NOTHING = 9003  # slurmdbd has nothing of it
_BACK_S = 2 * 86400.0  # how far slurmdbd is searched for a name
_WARNING = "signal"  # before the partition's own limit: without it there is still Slurm's KillWait
_MORE = "Add --ssh user@login-node beside --rest: then Slurm's own commands do it."


class RestController:
    """The version is agreed on at the first question, and anew after an upgrade."""

    def __init__(
        self, config: SlurmConfig, commands: Controller | None = None, client: RestClient | None = None
    ) -> None:
        user, _ = restdata.token_user(config.token)
        self._client = client or RestClient(config.rest or "", config.token, user)
        self._config = config
        self._commands = commands
        self._version: int | None = None

    async def version(self) -> int:
        if self._version is None:
            self._version = await self._agreed()
        return self._version

    async def submit(self, submission: Submission) -> int:
        version = await self.version()
        body, lacking = restjob.document(submission, version)
        if lacking and self._commands is not None:
            return await self._commands.submit(submission)
        lacking = [name for name in lacking if name != _WARNING]
        if lacking:
            named = ", ".join(f"--{name}" for name in lacking)
            raise Refused(f"slurmrestd v0.0.{version} has no field for {named}", hint=_MORE)
        doc = await self._ask("POST", "job/submit", body, user=submission.user)
        found = restdata.number(doc.get("job_id")) or restdata.number((doc.get("result") or {}).get("job_id"))
        if not found:
            raise Unreachable("slurmrestd took the job and named no id for it")
        return found

    async def jobs(self, keys: Collection[str]) -> list[SlurmJob]:
        wanted = frozenset(keys)
        return [job for job in await self._jobs() if job.key in wanted] if wanted else []

    async def devices(self, keys: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]:
        return {job.key: dict(job.gpus) for job in await self.jobs(keys)}

    async def named(self, tags: tuple[str, ...]) -> list[SlurmJob]:
        found = [job for job in await self._jobs() if job.name.endswith(tags)]
        if found:
            return found
        since = time() - _BACK_S
        new = await self.version() >= restdata.NEW
        begin = str(int(since)) if new else datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return [job for job in await self._finished(f"jobs?start_time={quote(begin)}") if job.name.endswith(tags)]

    async def finished(self, keys: Sequence[str]) -> list[SlurmJob]:
        wanted, found = frozenset(keys), []
        for number in dict.fromkeys(key.partition("_")[0] for key in keys):
            found += [job for job in await self._finished(f"job/{number}") if job.key in wanted]
        return found

    async def signal(self, key: str, signal: str, *, user: str | None = None) -> None:
        """To the batch script alone; what is older than v0.0.40 knows no such flag, and signals the steps too."""
        if await self.version() < restdata.SLASH and self._commands is not None:
            return await self._commands.signal(key, signal, user=user)
        flags = "&flags=BATCH_JOB" if await self.version() >= restdata.SLASH else ""
        return await self._end(f"job/{quote(key)}?signal={quote(signal)}{flags}", user)

    async def cancel(self, key: str, *, user: str | None = None) -> None:
        await self._end(f"job/{quote(key)}", user)

    async def nodes(self) -> list[SlurmNode]:
        found = restdata.nodes(await self._ask("GET", "nodes"))
        if self._config.partition:
            found = [node for node in found if self._config.partition in node.partitions]
        return found

    async def set_node(self, name: str, state: str, reason: str = "") -> None:
        if await self.version() < restdata.NODE_UPDATE:
            if self._commands is None:
                raise Refused(f"slurmrestd v0.0.{self._version} cannot change nodes", hint=_MORE)
            await self._commands.set_node(name, state, reason)
            return
        body = {"state": [state.upper()]} | ({"reason": reason} if reason else {})
        await self._ask("POST", f"node/{quote(name)}", body)

    async def site(self) -> Site:
        """Of slurm.conf nothing is told: what it says is empty without Slurm's commands."""
        version = await self.version()
        release, cluster = restdata.release(await self._ask("GET", "ping"))
        api = f"v0.0.{version}"
        if self._commands is not None:
            return replace(await self._commands.site(), api=api)
        doc = await self._ask("GET", "partitions")
        gres = {part.split(":")[0] for node in await self.nodes() for part in node.gres.split(",") if part}
        first: Mapping[str, Any] = next(iter(doc.get("partitions") or ()), {})
        return Site(
            release,
            cluster or str(first.get("cluster") or ""),
            tuple(restdata.partitions(doc)),
            tuple(sorted(gres)),
            "",
            "accounting_storage/slurmdbd" if await self._accounts() else "",
            (),
            "",
            {},
            api,
        )

    # -- asking

    async def _jobs(self) -> list[SlurmJob]:
        detail = "?flags=DETAIL" if await self.version() >= restdata.NEW else ""
        return restdata.jobs(await self._ask("GET", f"jobs{detail}"))

    async def _finished(self, path: str) -> list[SlurmJob]:
        try:
            return restdata.finished(await self._ask("GET", path, part="slurmdb"))
        except Refused:
            return []  # no accounting is kept here, or nothing of it

    async def _accounts(self) -> bool:
        try:
            await self._ask("GET", "qos", part="slurmdb")
        except (Refused, Unreachable):
            return False
        return True

    async def _end(self, path: str, user: str | None) -> None:
        """What is over already need not be ended."""
        try:
            await self._ask("DELETE", path, user=user)
        except _Gone:
            return

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        part: str = "slurm",
        user: str | None = None,
    ) -> Mapping[str, Any]:
        whole = f"/{part}/v0.0.{await self.version()}/{_slashed(path, await self.version())}"
        found = await self._client.ask(method, whole, body, user=user)
        if found.status == 404 and not found.doc:
            self._version = None  # it was upgraded: agreed on anew with the next question
            raise Unreachable(f"slurmrestd has no {whole}: {found.text}")
        told = restdata.errors(found.doc)
        if told or found.status >= 400:
            raise _error(found, told)
        return found.doc

    async def _agreed(self) -> int:
        """By its own description; where that is not to be had, by trying."""
        found = await self._client.ask("GET", "/openapi/v3")
        version = restdata.chosen(restdata.versions(found.doc.get("paths") or ()))
        if version is not None:
            return version
        for each in restdata.KNOWN:
            tried = await self._client.ask("GET", f"/slurm/v0.0.{each}/{_slashed('ping', each)}")
            if tried.status == 200 and tried.doc:
                return each
        raise Unreachable(f"{self._client.url} answers, but not as a slurmrestd of Slurm 20.11 or later does")


class _Gone(Refused):
    """There is no such job, or none that could be ended."""


def _slashed(path: str, version: int) -> str:
    """Lists end in a slash in the newer documents."""
    name, mark, query = path.partition("?")
    lists = name in {"jobs", "nodes", "partitions", "ping", "qos"}
    return f"{name}{'/' if lists and version >= restdata.NEW else ''}{mark}{query}"


def _error(found: Answered, told: Sequence[tuple[int | None, str]]) -> Refused | Unreachable:
    words = "; ".join(text for _, text in told)[:500] or found.text or f"slurmrestd answered {found.status}"
    if words.lower() == "unspecified error":
        words = "Unspecified error (slurmrestd says no more; a token that has ended, or of another cluster, looks so)"
    numbers = {number for number, _ in told}
    if numbers & _NO_JOB or "invalid job id" in words.lower():
        return _Gone(words)
    if _NOTHING in numbers:
        return Refused(words)
    return Unreachable(words) if parsing.unavailable(words) or (found.status >= 500 and not told) else Refused(words)
