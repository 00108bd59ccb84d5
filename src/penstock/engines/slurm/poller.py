"""One question for all attempts at once, at a pace that fits what is going on; and what follows from its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from penstock.engines.slurm import apart, runfolder, states
from penstock.engines.slurm.attempts import Attempt
from penstock.engines.slurm.book import MANY, Book
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.failing import Failing
from penstock.engines.slurm.figures import Figures
from penstock.engines.slurm.runfolder import Facts
from penstock.engines.slurm.spec import Controller, SlurmConfig, SlurmJob, Transport
from penstock.engines.slurm.watching import Watch
from penstock.engines.spec import Observation, Stage

_HURRY_S = 3.0  # after a submission or a stop: as long is asked more often
_AT_LEAST_S = 0.1  # between the end of one look and the next
_QUICK_S, _QUICK_EACH_S = 0.25, 0.004  # at the quickest, and by the number of attempts
_EACH_S, _SLOWEST_S = 0.004, 10.0  # the pace by the number of attempts, so that asking costs much the same however many
_STILL = 2.0  # of very many of which the last looks had nothing new: so many times slower
_WHY_AGAIN_S = 10.0  # with so many (book.MANY), until it is told anew why one waits
_UNREACHABLE_S = 5.0
_FOLDER_PATIENCE_S = 5.0  # a shared file system may show a file late
_PATIENCE_S = 15.0  # until one that Slurm does not know is given up
_CANCELLED_S = 1.0  # and one that waited and was cancelled: of an array's tasks Slurm then keeps nothing
_TERM_AGAIN_S = 5.0
_REFUSED_S = 3.0  # from then on, until one that cannot be signalled is cancelled
_KILL_PATIENCE_S = 10.0  # from the end of the grace until Slurm itself ends it
_FOLDERS_AT_ONCE = 200


def _as_told(attempt: Attempt, job: SlurmJob) -> bool:
    """Whether there is nothing to say or do of one that Slurm tells as it did at the last look. Figures of limits move."""
    told = attempt.told is not None and attempt.told.unknown_since is None
    known = job.state != "RUNNING" or not attempt.gpus or bool(attempt.devices)
    moves = job.reason.startswith(("Assoc", "QOS")) or job.comment == apart.OVER
    return told and known and attempt.stop is None and not moves


def told_lately(attempt: Attempt, job: SlurmJob, now: float) -> bool:
    """Of one that waits: where many do, each why is gone before it is read, and costs more than the job."""
    told = attempt.told
    if told is None or told.unknown_since is not None or attempt.stop is not None:
        return False
    return told.stage is Stage.QUEUED and job.state in states.WAITING and now - told.at < _WHY_AGAIN_S


class Poller:
    """``resubmit`` is given an attempt that Slurm has lost before it began, and that is still known in full."""

    def __init__(
        self, config: SlurmConfig, transport: Transport, controller: Controller, book: Book, *,
        resubmit: Callable[[Attempt], None],
    ) -> None:  # fmt: skip
        self.unknown_since: float | None = None
        self.figures = Figures()
        self.fetch: Callable[[Attempt, SlurmJob], None] = lambda _attempt, _job: None
        self._config = config
        self._transport = transport
        self._controller = controller
        self._book = book
        self._resubmit = resubmit
        self._watch = Watch(transport, book.clock)
        self._failing = Failing(config, transport)
        self._wake = asyncio.Event()
        self._hurry_until = 0.0
        self._still = 0  # looks without news
        self._looked_at = -_SLOWEST_S  # when the last one began
        self._turn = asyncio.Lock()

    def hurry(self) -> None:
        """Something was asked for: look soon, and often for a while."""
        self._hurry_until = asyncio.get_running_loop().time() + _HURRY_S
        self._wake.set()

    def answers(self) -> None:
        """Slurm was asked something else, and answered: what is told as unknown is asked for now."""
        if self.unknown_since is not None:
            self.unknown_since = None
            self.hurry()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wait()
            with suppress(OSError):  # the disk is full: ends are told when they can be written
                await self.turn()

    async def _wait(self) -> None:
        if not any(attempt.key for attempt in self._book.live.values()):
            await self._wake.wait()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval()):
                    await self._wake.wait()
        if self._wake.is_set():
            self._wake.clear()
            await asyncio.sleep(min(0.05, self._config.poll_s))  # several that come together are one question

    def _interval(self) -> float:
        loop = asyncio.get_running_loop()
        pace = max(
            self._config.poll_s, min(_SLOWEST_S, len(self._book.live) * _EACH_S * (_STILL if self._still > 1 else 1))
        )
        if self.unknown_since is not None:
            return max(pace, _UNREACHABLE_S)
        if loop.time() < self._hurry_until:
            pace = min(pace, max(_QUICK_S, len(self._book.live) * _QUICK_EACH_S))
        pace = max(_AT_LEAST_S, pace - (loop.time() - self._looked_at))  # a busy machine takes its time for a look
        now = self._book.clock()
        due = [
            attempt.stop.at + attempt.stop.grace_s - now
            for attempt in self._book.live.values()
            if attempt.stop is not None and not attempt.stop.killed_at and attempt.key
        ]
        return max(0.02, min([pace, *due]))

    async def turn(self) -> None:
        """Ask about all, and tell what is new."""
        async with self._turn:
            attempts = [attempt for attempt in self._book.live.values() if attempt.key and not attempt.over]
            if not attempts:
                return
            self._looked_at = asyncio.get_running_loop().time()
            try:
                seen = await self.look(attempts)
            except (Unreachable, Refused) as error:
                self._silent(attempts, error.message)
                return
            self.unknown_since = None
            news = (attempt.told is None or attempt.told.stage is not one.stage for attempt, one in seen)
            self._still = 0 if any(news) else self._still + 1
            ends = [one for one in seen if one[1].stage in (Stage.EXITED, Stage.LOST)]
            for (
                attempt,
                observation,
            ) in seen:  # before the ends, whose writing may fail: the next look skips what was told
                if observation.stage is Stage.ABSENT:
                    self._absent(attempt, observation)
                elif observation.stage not in (Stage.EXITED, Stage.LOST):
                    self._book.tell(attempt, observation)
            if ends:
                self._hurry_until = asyncio.get_running_loop().time() + _HURRY_S  # more may end, and soon
                await self._book.finish_all(ends)
            await self._watch_progress()

    async def _watch_progress(self) -> None:
        """Where the folder is shared; elsewhere a job's own files tell it after its end."""
        if not self._config.shared:
            return
        runs = [attempt for attempt in self._book.live.values() if attempt.told and attempt.told.stage is Stage.RUNNING]
        with suppress(Unreachable):
            for attempt in await self._watch.look(runs):
                if attempt.told is not None and attempt.pace is not None and not attempt.over:
                    self._book.tell(
                        attempt, replace(attempt.told, at=self._book.clock(), progress=attempt.pace.summary)
                    )
            for attempt in runs:
                if attempt.again and attempt.told is not None and not attempt.over:
                    attempt.again = False
                    self._book.tell(attempt, await self._failing.took(attempt, attempt.told))
                    with suppress(OSError):
                        await asyncio.to_thread(attempt.save)

    def _silent(self, attempts: Iterable[Attempt], message: str) -> None:
        self.unknown_since = self.unknown_since or self._book.clock()
        for attempt in attempts:
            last = attempt.told or Observation(attempt.attempt_id, Stage.QUEUED, self.unknown_since)
            self._book.tell(attempt, replace(last, message=message, unknown_since=self.unknown_since))

    def _absent(self, attempt: Attempt, seen: Observation) -> None:
        """Slurm has lost it before it began."""
        if attempt.launch is not None:
            attempt.key, attempt.missing_since = "", None
            self._resubmit(attempt)
        else:
            self._book.forget(attempt)
            self._book.sink(seen)

    async def look(self, attempts: Sequence[Attempt]) -> list[tuple[Attempt, Observation]]:
        """What is new of each; stops that are due are sent on the way. Raises Unreachable."""
        jobs = await self._jobs(attempts)
        over: list[tuple[Attempt, SlurmJob]] = []
        gone: list[Attempt] = []
        found = []
        now = self._book.clock()
        for attempt in attempts:
            job = jobs.get(attempt.key)
            if job is None:
                gone.append(attempt)
                continue
            if job is attempt.looked_at and _as_told(attempt, job):
                continue
            attempt.missing_since = None
            if states.over(job):
                over.append((attempt, job))
            else:
                attempt.silent_since = None
                if len(attempts) > MANY and told_lately(attempt, job, now):
                    continue
                attempt.looked_at = job
                await self._drive(attempt, job)
                await self._ask_devices(attempt, job)
                if job.comment == apart.OVER and not self._config.shared:
                    self.fetch(attempt, job)
                found.append((attempt, self._going(attempt, job, now)))
        for attempt in gone:
            attempt.missing_since = attempt.missing_since or now
        return found + await self._ends(over, gone)

    async def _jobs(self, attempts: Iterable[Attempt]) -> dict[str, SlurmJob]:
        """By key; ids that were given to others after Slurm had forgotten ours are none of ours."""
        names = {attempt.key: attempt.name for attempt in attempts}
        return {job.key: job for job in await self._controller.jobs(list(names)) if job.name == names.get(job.key)}

    def _going(self, attempt: Attempt, job: SlurmJob, now: float) -> Observation:
        last, waits = attempt.told, job.state in states.WAITING
        if waits and last is not None and last.stage in (Stage.RUNNING, Stage.STARTING):
            attempt.requeues += 1
            attempt.devices, attempt.groups = {}, ()
            attempt.requeued_at = _ceased(last, job, now)
        job = replace(job, restarts=max(job.restarts, attempt.requeues))  # squeue does not tell them
        why = self.figures.why(attempt, job) if waits else None
        seen = states.going(attempt.asked, job, now, why=why, devices=attempt.devices)
        if seen.stage is Stage.QUEUED:
            seen = replace(seen, ended_at=attempt.requeued_at)
        else:
            attempt.groups, attempt.slurm_id = seen.groups, job.id
        restarts = seen.restarts + attempt.in_place
        return replace(seen, restarts=restarts, progress=attempt.pace.summary if attempt.pace is not None else None)

    async def _ask_devices(self, attempt: Attempt, job: SlurmJob) -> None:
        if attempt.gpus and job.state == "RUNNING" and not attempt.devices:
            with suppress(Refused):
                found = await self._controller.devices([attempt.key])
                attempt.devices = found.get(attempt.key) or {"": ()}

    # -- the end

    async def _ends(
        self, over: Sequence[tuple[Attempt, SlurmJob]], gone: Sequence[Attempt]
    ) -> list[tuple[Attempt, Observation]]:
        if not over and not gone:
            return []
        facts = await self._facts([*(attempt for attempt, _ in over), *gone])
        told = await self._accounting(over, gone, facts)
        now = self._book.clock()
        found = []
        for attempt, job in over:
            known = told.get(attempt.key, job)
            if self._settled(attempt, known, facts[attempt.attempt_id], now):
                found.append((attempt, self._ended(attempt, known, facts[attempt.attempt_id], now)))
        for attempt in gone:
            seen = self._gone(attempt, told.get(attempt.key), facts[attempt.attempt_id], now)
            if seen is not None:
                found.append((attempt, seen))
        return await self._failing.all_ended(found)

    def _ended(self, attempt: Attempt, job: SlurmJob, facts: Facts, now: float) -> Observation:
        attempt.requeues = max(job.restarts, attempt.requeues, facts.requeues)
        job = replace(job, restarts=attempt.requeues)
        seen = states.ended(attempt.asked, job, facts, now)
        groups = attempt.groups or seen.groups
        progress = attempt.pace.summary if attempt.pace is not None else None
        return replace(seen, groups=groups, progress=progress)

    def _settled(self, attempt: Attempt, job: SlurmJob, facts: Facts, now: float) -> bool:
        """Whether what is known will do: a run folder may tell its end a little later than Slurm, and slurmdbd too."""
        if job.state == "CANCELLED" and attempt.stop is None:
            enough = bool(job.cancelled_by)
        elif job.state in ("COMPLETED", "FAILED"):
            enough = facts.end is not None or (attempt.stop is not None and not facts.claim)
            enough = enough or (not self._config.shared and job.exit_code is not None)
        else:
            enough = True
        if enough:
            return True
        attempt.silent_since = attempt.silent_since or now
        return now - attempt.silent_since >= _FOLDER_PATIENCE_S

    def _gone(self, attempt: Attempt, job: SlurmJob | None, facts: Facts, now: float) -> Observation | None:
        """Of one that slurmctld does not know: slurmdbd's word, the run folder's, and only then none."""
        if job is not None and states.over(job):
            return self._ended(attempt, job, facts, now)
        cancelled = attempt.stop is not None and attempt.told is not None and attempt.told.stage is Stage.QUEUED
        if now - (attempt.missing_since or now) < (_CANCELLED_S if cancelled else _PATIENCE_S):
            return None
        if facts.end is not None:
            state = "COMPLETED" if facts.end.reason == "Completed" else "FAILED"
            nodes = tuple(group.node.removeprefix(self._config.node_prefix) for group in attempt.groups)
            job = SlurmJob(int(attempt.key.partition("_")[0]), attempt.name, state, nodes=nodes)
            return replace(self._ended(attempt, job, facts, now), engine_job=attempt.key)
        if attempt.stop is not None and not facts.claim:
            return replace(states.stopped(attempt.attempt_id, attempt.stop.reason, now), engine_job=attempt.key)
        if facts.claim or attempt.groups:
            message = "Slurm has forgotten it, and it left no word of its end"
            return states.lost(attempt.asked, attempt.key, facts, now, message)
        return Observation(attempt.attempt_id, Stage.ABSENT, now, message="Slurm has lost it before it began")

    async def _facts(self, attempts: Sequence[Attempt]) -> dict[str, Facts]:
        """One command a user."""
        found = {attempt.attempt_id: Facts() for attempt in attempts}
        if not self._config.shared:
            return await asyncio.to_thread(apart.by_attempt, {a.attempt_id: a.run_dir for a in attempts})
        users: dict[str | None, list[Attempt]] = {}
        for attempt in attempts:
            users.setdefault(attempt.user, []).append(attempt)
        for user, theirs in users.items():
            for begin in range(0, len(theirs), _FOLDERS_AT_ONCE):
                some = theirs[begin : begin + _FOLDERS_AT_ONCE]
                folders = [attempt.folder for attempt in some]
                words = runfolder.command(folders)
                try:
                    done = await self._transport.run(words, user=user)
                except Refused:  # that user is no more
                    continue
                told = runfolder.read(done.out.decode("utf-8", "replace"), folders)
                found |= {attempt.attempt_id: told.get(attempt.folder, Facts()) for attempt in some}
        return found

    async def _accounting(
        self, over: Sequence[tuple[Attempt, SlurmJob]], gone: Sequence[Attempt], facts: Mapping[str, Facts]
    ) -> dict[str, SlurmJob]:
        """slurmdbd's word on those of whose end slurmctld does not tell enough."""
        keys = [attempt.key for attempt in gone]
        for attempt, job in over:
            if attempt.stop is None and (job.state == "CANCELLED" or facts[attempt.attempt_id].end is None):
                keys.append(attempt.key)
        if not keys:
            return {}
        names = {attempt.key: attempt.name for attempt in (*gone, *(attempt for attempt, _ in over))}
        try:
            told = await self._controller.finished(keys)
        except (Unreachable, Refused):  # it goes without
            return {}
        return {job.key: job for job in told if job.name == names.get(job.key) and states.over(job)}

    # -- stops

    async def _drive(self, attempt: Attempt, job: SlurmJob) -> None:
        """Its stop, as far as it has come: out of the line; or SIGTERM, then SIGKILL, then Slurm's own way."""
        stop, now = attempt.stop, self._book.clock()
        if stop is None:
            return
        try:
            if job.state in states.WAITING:
                await self._controller.cancel(attempt.key, user=attempt.user)
                return
            left = stop.at + stop.grace_s - now
            if left > 0 and now - stop.sent_at >= _TERM_AGAIN_S:
                await self._controller.signal(attempt.key, "TERM", user=attempt.user)
                stop.sent_at = now
            elif left <= 0 and not stop.killed_at:
                if not stop.sent_at:
                    await self._controller.signal(attempt.key, "TERM", user=attempt.user)
                    stop.sent_at = now
                await self._controller.signal(attempt.key, "USR1", user=attempt.user)
                stop.killed_at = now
            elif left < -_KILL_PATIENCE_S and now - stop.cancelled_at >= _KILL_PATIENCE_S:
                await self._controller.cancel(attempt.key, user=attempt.user)
                stop.cancelled_at = now
        except Refused:  # its batch script has not begun, or has just ended: the next turn sees
            if now >= stop.at + stop.grace_s + _REFUSED_S:
                with suppress(Refused):
                    await self._controller.cancel(attempt.key, user=attempt.user)


def _ceased(last: Observation, job: SlurmJob, now: float) -> float:
    """When a run was over that waits in the line again: a requeue is a submission of its own, to Slurm."""
    began, again = last.started_at, job.submitted_at
    return again if began is not None and again is not None and began <= again <= now else now
