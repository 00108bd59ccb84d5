"""From an intent on the disk to one Slurm job, however often that is interrupted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from penstock.base.quantities import format_memory
from penstock.base.reasons import Reason
from penstock.engines.slurm import script, states
from penstock.engines.slurm.attempts import Attempt, save_all
from penstock.engines.slurm.book import MANY, Book
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.spec import Controller, SlurmConfig, SlurmJob, Transport, tag
from penstock.engines.spec import Launch, Observation, Stage

_DEFAULT_SCRIPT = 4 << 20  # bytes: Slurm's own limit, where a site sets none
_AT_ONCE = 4  # sbatch processes; slurmctld takes one after the other anyway
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 10.0
_PUT_S = 300.0
# The folders of an array's tasks: those of a home only where the user's own will not do, as the batch script has it (p_home).
_MAKE = """\
umask 077
mkdir -p -- "$1" && cd -- "$1" || exit
if [ -w "${HOME:-/nonexistent}" ] && [ -x "$HOME" ]; then grep -zv '/home$'; else cat; fi | LC_ALL=C xargs -0 mkdir -p --
"""
_PUT = 'umask 077; mkdir -p "$1" && cat >"$2.part" && mv "$2.part" "$2"'


class Sender:
    """``sent`` is called when the poller has something new to look at; ``fault`` with what kept Slurm from answering."""

    def __init__(
        self, config: SlurmConfig, transport: Transport, controller: Controller, book: Book, *, sent: Callable[[], None]
    ) -> None:
        self.url: str | None = None
        self._script_limit: int | None = None  # once it was asked for
        self.models: Callable[[Launch], Sequence[str]] = lambda launch: launch.gpu_models[:1]
        self._config = config
        self._transport = transport
        self._controller = controller
        self._book = book
        self._sent = sent
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._fixed = (Path(__file__).parent / "batch.sh").read_text(encoding="utf-8")

    async def send(self, attempts: Sequence[Attempt], home: str) -> None:
        """Until Slurm has taken them, or has refused them, or they were told to stop."""
        pause = _FIRST_RETRY_S
        unknown_since = None
        for attempt in attempts:
            attempt.sending = True
        try:
            while attempts := await self._not_stopped(attempts):
                try:
                    await self._try(attempts, home)
                except Refused as error:
                    now = self._book.clock()
                    for attempt in attempts:
                        await self._finish(attempt, states.refused(attempt.attempt_id, error.message, now))
                except Unreachable as error:
                    unknown_since = unknown_since or self._book.clock()
                    for attempt in attempts:
                        self._book.tell(attempt, _unknown(attempt, error.message, unknown_since))
                    await asyncio.sleep(pause)
                    pause = min(_LAST_RETRY_S, pause * 2)
                    continue
                return
        finally:
            for attempt in attempts:
                attempt.sending = False
            self._sent()

    async def find(self, attempts: Sequence[Attempt]) -> bool:
        """Give those that Slurm knows by their tag their key; whether it knows any. A second job of one tag is cancelled."""
        found = await self._controller.named(_tags(attempts))
        for attempt in attempts:
            mine = sorted((job for job in found if _is(job, attempt)), key=_precedence)
            if mine:
                attempt.key, attempt.name, attempt.index = mine[0].key, mine[0].name, mine[0].array_index
                attempt.lost = False
                with suppress(OSError):
                    await asyncio.to_thread(attempt.save)
            for other in mine[1:]:
                if not states.over(other):
                    await self._controller.cancel(other.key, user=attempt.user)
        return any(attempt.key for attempt in attempts)

    async def _try(self, attempts: Sequence[Attempt], home: str) -> None:
        async with self._at_once:
            if attempts[0].uncertain and await self.find(attempts):
                attempts = [attempt for attempt in attempts if attempt.lost]  # these were not sent with the others
            launches = [attempt.launch for attempt in attempts if attempt.launch is not None]
            if not attempts or len(launches) != len(attempts):
                return
            if len(attempts) == 1 and attempts[0].index is not None:
                await self._alone(attempts[0], launches)
            carried = await self._put(launches[0], attempts[0])
            for attempt in attempts:
                attempt.uncertain, attempt.lost = True, False
            text = script.text(launches, self._config, home, self._fixed, url=self.url, carried=carried)
            if carried is not None:
                await self._check_size(text)
            told = script.submission(launches, self._config, text, models=self.models(launches[0]))
            several = len(launches) > 1 and self._config.shared
            making = asyncio.create_task(self._make_folders(launches, home)) if several else None
            try:
                number = await self._controller.submit(told)
            finally:
                if making is not None:
                    await making
        for attempt in attempts:
            attempt.key = str(number) if attempt.index is None else f"{number}_{attempt.index}"
            queued = _queued(attempt, self._book.clock())
            if (
                len(attempts) > MANY
            ):  # that they were handed over is told; many of them will have begun at the next look
                attempt.told = queued
            else:
                self._book.tell(attempt, queued)
        with suppress(OSError):  # it is found again by its tag
            await asyncio.to_thread(save_all, attempts)

    async def _alone(self, attempt: Attempt, launches: Sequence[Launch]) -> None:
        """A task that was to be one of an array which never came to be: a job of its own, with its own tag."""
        attempt.index, attempt.name, attempt.tag = None, script.name_of(launches), tag(attempt.attempt_id)
        await asyncio.to_thread(attempt.save)

    async def _make_folders(self, launches: Sequence[Launch], home: str) -> None:
        """Of all tasks by one command, while Slurm takes them: a process less for each that comes later than its folders. What
        is not there yet, or fails here, the batch script does, and tells.
        """
        asked = "\0".join(script.folders(launches, "")).encode("utf-8", "surrogateescape")
        with suppress(Unreachable, Refused):
            await self._transport.run(("sh", "-c", _MAKE, "sh", home), stdin=asked, user=launches[0].unix_user)

    async def _put(self, launch: Launch, attempt: Attempt) -> bytes | None:
        """The snapshot into the run folder, where that is shared; elsewhere it is returned, and travels in the script."""
        if launch.snapshot is None:
            return None
        try:
            data = await asyncio.to_thread(Path(launch.snapshot).read_bytes)
        except OSError as error:
            raise Refused(f"the job's snapshot cannot be read: {error.strerror}") from error
        if not self._config.shared:
            return data
        words = ("sh", "-c", _PUT, "sh", attempt.folder, f"{attempt.folder}/snapshot.tgz")
        done = await self._transport.run(words, stdin=data, user=launch.unix_user, timeout_s=_PUT_S)
        if done.code != 0:
            said = done.err.decode("utf-8", "replace").strip()[:300]
            raise Refused(f"the snapshot cannot be put into {attempt.folder}: {said}")
        return None

    async def _check_size(self, text: bytes) -> None:
        """Raises Refused before Slurm would, in words that help."""
        if self._script_limit is None:
            told = (await self._controller.site()).config.get("SchedulerParameters", "")
            found = re.search(r"max_script_size=(\d{1,12})", told)
            self._script_limit = int(found[1]) if found else _DEFAULT_SCRIPT
        limit = self._script_limit
        if len(text) > limit:
            raise Refused(
                f"the job's files make its script {format_memory(len(text))}, and this site takes {format_memory(limit)} "
                "(max_script_size): carry fewer files, or have the data where the nodes can read it"
            )

    async def _not_stopped(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Without those that were told to stop and of which Slurm knows nothing."""
        left = [attempt for attempt in attempts if not attempt.over]
        for attempt in list(left):
            if attempt.stop is None:
                continue
            if attempt.uncertain:
                with suppress(Unreachable):
                    if await self.find([attempt]):
                        left.remove(attempt)
                        continue
                    attempt.uncertain = False
            if not attempt.uncertain:
                left.remove(attempt)
                now = self._book.clock()
                await self._finish(attempt, states.stopped(attempt.attempt_id, attempt.stop.reason, now))
        return left

    async def _finish(self, attempt: Attempt, seen: Observation) -> None:
        while True:
            try:
                return await self._book.finish(attempt, seen)
            except OSError:
                await asyncio.sleep(_LAST_RETRY_S)


def _tags(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Of those whose record was lost: of any with which it may have been sent."""
    lost = {tag(attempt.attempt_id) for attempt in attempts if attempt.lost}
    return tuple({attempts[0].tag, *lost})


def _is(job: SlurmJob, attempt: Attempt) -> bool:
    if attempt.lost and job.name.endswith(tag(attempt.attempt_id)) and job.array_index is None:
        return True  # it was sent alone
    return job.array_index == attempt.index


def _precedence(job: SlurmJob) -> tuple[bool, int]:
    """One that runs before one that waits; then the earlier."""
    return job.state in states.WAITING, job.id


def _queued(attempt: Attempt, now: float) -> Observation:
    message = "Slurm has taken it and not looked at it yet"
    return Observation(
        attempt.attempt_id,
        Stage.QUEUED,
        now,
        reason=Reason.WaitingForResources,
        message=message,
        engine_job=attempt.key,
    )


def _unknown(attempt: Attempt, message: str, since: float) -> Observation:
    seen = attempt.told or Observation(attempt.attempt_id, Stage.QUEUED, since, reason=Reason.EngineUnreachable)
    return replace(seen, message=message, unknown_since=since)
