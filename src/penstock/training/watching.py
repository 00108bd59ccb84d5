"""Trainings that run are watched: one that gets nowhere is looked into, told of, and started again.

Each second costs one read of what runs, and a comparison with the last report that its engine passed on. Only what has been
silent for its limit is looked at more closely: first its own reports of all ranks, then the ranks themselves.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from penstock.base.quantities import format_duration, parse_time
from penstock.base.reasons import Reason
from penstock.base.routes import Sample
from penstock.engines.several import Engines
from penstock.engines.spec import Engine, LogRequest
from penstock.jobs import running
from penstock.jobs.running import Key, Running
from penstock.jobs.view import Memory
from penstock.store.store import Store, Tx
from penstock.training import culprit, findings, plan, sampling, stacks, straggler, waiting
from penstock.training.plan import Answer, Means, Policy, Verdict
from penstock.training.sampling import Sampled, Sampler
from penstock.training.slowdown import Slow, Track
from penstock.training.state import Clue, Evidence, Point
from penstock.training.straggler import Straggler
from penstock.training.waiting import Awaited

log = logging.getLogger("penstock.training")
EVERY_S = 1.0
SOON_S = 0.05
COMPARE_S = 60.0
AGAIN_S = 5.0  # the first wait after ranks were seen to work, and where a look failed; it doubles
AGAIN_LIMIT_S = 60.0
YOUNG_S = 5.0
MEETING_S = 0.05  # between two jobs whose reports are read for the first time
SAMPLE_MEETING_S = 2.0  # likewise, whose ranks are sampled for the first time
SURE = frozenset({Clue.STOPPED, Clue.FLIGHT})
RESTARTS_IN_PLACE = frozenset({"torchrun", "accelerate"})
MUTE_LIMIT_S = 1800.0  # of several ranks that report nothing and state no limit


@dataclass(slots=True)
class Watched:
    """What is known of one attempt between looks. ``sign``: its newest sign of life; ``due``: look closer then."""

    one: Running
    policy: Policy
    sign: float
    due: float
    limit_s: float
    longest_s: float = 0.0  # silence that was no hang, where nothing is reported
    again_s: float = AGAIN_S
    told_at: float | None = None  # its hang was told of, and nothing more is done about it
    compare_at: float = 0.0  # its ranks' own work, with each other's
    slow: frozenset[int] = frozenset()  # ranks that straggle
    pace: Track = field(default_factory=Track)
    slowed: Slow | None = None  # as it was told
    sampled: Sampled = field(default_factory=lambda: Sampled(math.inf))


@dataclass(slots=True)
class TrainingWatch:
    """Wired in server.py. ``progress``: the last report by job id, as engines pass it on; ``wake``: a job is to be reconciled."""

    store: Store
    engines: Engines
    fence: Callable[[Tx], int]
    progress: Mapping[str, Mapping[str, Any]]
    wake: Callable[[str], None]
    memory: Memory = field(default_factory=Memory)
    watched: dict[Key, Watched] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    _running: Mapping[Key, Running] = field(default_factory=dict)
    _tasks: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _sampling: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _sampler: Sampler | None = None

    async def reconcile(self, _key: object) -> float:
        """For the loop: again after so many seconds."""
        await self.look()
        now = self.store.clock()
        due = min((one.due for key, one in self.watched.items() if key not in self._tasks), default=math.inf)
        return min(EVERY_S, max(due - now, SOON_S))

    async def look(self) -> None:
        """One look at all that runs; what is due is looked at more closely, beside it."""
        now = self.store.clock()
        rows = await self.store.read(lambda conn: running.running(conn, self.memory, self._running))
        self._running = {one.key: one for one in rows}
        found = {key: one for key, one in self._running.items() if policy_of(one) is not None}
        for key in self.watched.keys() - found.keys():
            del self.watched[key]
        for key, one in found.items():
            watched = self.watched.get(key) or self._meet(one, now)
            watched.one = one
            newest = self._reported(one)
            await self._paced(watched, newest)
            if newest > watched.sign:
                watched.sign, watched.due, watched.again_s = newest, newest + watched.limit_s, AGAIN_S
                if watched.told_at is not None:
                    await self._went_on(watched)
            if now >= watched.compare_at and key not in self._tasks and self._compared(one):
                watched.compare_at = now + COMPARE_S
                task = self._tasks[key] = asyncio.ensure_future(self._compare(watched))
                task.add_done_callback(partial(self._done, key))
            elif now >= watched.due and key not in self._tasks:
                task = self._tasks[key] = asyncio.ensure_future(self._closer(watched))
                task.add_done_callback(partial(self._done, key))
            elif now >= watched.sampled.due and key not in self._sampling and self._sampled(one):
                task = self._sampling[key] = asyncio.ensure_future(self._sample(watched))
                task.add_done_callback(partial(self._done, key))

    def _reported(self, one: Running) -> float:
        """When the job's last report was made, as its engine passed it on."""
        at = (self.progress.get(one.job_id) or {}).get("at")
        return -math.inf if at is None else parse_time(at)

    def _meet(self, one: Running, now: float) -> Watched:
        """What ran before this server did may have reported long ago: its reports are read at once."""
        policy = policy_of(one) or Policy(None)
        young = now - one.started_at < YOUNG_S
        due = one.started_at + policy.floor_s if young else now + MEETING_S * len(self.watched)
        made = self.watched[one.key] = Watched(one, policy, one.started_at, due, policy.floor_s)
        made.sampled.due = max(one.started_at + sampling.FIRST_S, now + SAMPLE_MEETING_S * len(self.watched))
        return made

    def _done(self, key: Key, task: asyncio.Task[None]) -> None:
        for tasks in (self._tasks, self._sampling):
            if tasks.get(key) is task:
                del tasks[key]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("a look at job %s failed: %s", key[0], error, exc_info=error)
            if (watched := self.watched.get(key)) is not None:
                self._later(watched)

    # -- steps that take longer than before

    async def _paced(self, watched: Watched, at: float) -> None:
        one = watched.one
        step = (self.progress.get(one.job_id) or {}).get("step")
        if step is None or (watched.pace.last is not None and at == watched.pace.last[0]):
            return
        slow = watched.pace.add(at, step)
        if (slow is None) == (watched.slowed is None):
            return
        watched.slowed = slow
        reason = Reason.SlowdownEnded if slow is None else Reason.SlowedDown
        words = "its steps take as long as before" if slow is None else slow.words()
        data = {} if slow is None else slow.data()
        await self.store.write(lambda tx: self._tell(tx, one, reason, words, data, stands=True))

    # -- who is slower than the others

    def _compared(self, one: Running) -> bool:
        metrics = (self.progress.get(one.job_id) or {}).get("metrics") or {}
        return straggler.METRIC in metrics and len(one.nodes) * one.spec.procs > 1

    async def _compare(self, watched: Watched) -> None:
        one = watched.one
        engine = self.engines.find(one.engine)
        if engine is None or engine.unknown_since is not None:
            return
        points = await engine.logs(one.run_dir).progress()
        born = max(await self.store.read(lambda conn: running.lives(conn, one, (Reason.RankHung,))))
        busy = straggler.times(points, born)
        await self._slow_now(watched, straggler.find(busy, len(one.nodes) * one.spec.procs, watched.slow))

    def _sampled(self, one: Running) -> bool:
        return sampling.wanted(one, self.progress.get(one.job_id) or {})

    async def _sample(self, watched: Watched) -> None:
        engine = self.engines.find(watched.one.engine)
        watched.sampled.due = self.store.clock() + sampling.EVERY_S
        if engine is None or engine.unknown_since is not None:
            return
        if self._sampler is None:
            self._sampler = sampling.Sampler(self.progress)
        if await self._sampler.look(engine, watched.one, watched.sampled, self.store.clock()):
            await self._slow_now(watched, waiting.find(watched.sampled.looks, watched.slow))

    async def _slow_now(self, watched: Watched, found: Sequence[Straggler | Awaited]) -> None:
        one, slow = watched.one, frozenset(each.rank for each in found)
        if slow != watched.slow:
            began = [each for each in found if each.rank not in watched.slow]
            await self.store.write(lambda tx: self._compared_anew(tx, one, began, sorted(watched.slow - slow)))
            watched.slow = slow

    def _compared_anew(self, tx: Tx, one: Running, began: Sequence[Straggler | Awaited], ended: Sequence[int]) -> None:
        self.fence(tx)
        for each in began:
            node = one.nodes[each.rank // one.spec.procs]
            words = each.words(node)
            data = {**each.data(), "node": node}
            if running.tell(tx, one, Reason.Straggling, words, data) and one.spec.on_straggler == "avoid":
                running.avoid(tx, one, node, words)
        for rank in ended:
            words = f"rank {rank} works as long as its peers again"
            running.tell(tx, one, Reason.StragglingEnded, words, {"rank": rank})

    # -- one that is silent

    async def _closer(self, watched: Watched) -> None:
        one = watched.one
        engine = self.engines.find(one.engine)
        if engine is None or engine.unknown_since is not None:
            self._later(watched)
            return
        points = await _points(engine, one)
        lives = await self.store.read(lambda conn: running.lives(conn, one, (Reason.RankHung,)))
        now = self.store.clock()
        if points:
            verdict = plan.judge(points, lives, watched.policy, now)
        else:
            verdict = await self._by_log(engine, watched, max(lives), now)
        watched.sign, watched.due = max(watched.sign, verdict.since), verdict.due
        watched.limit_s = (
            verdict.limit_s if verdict.started else watched.policy.floor_s
        )  # a start has a limit of its own
        if verdict.stalled:
            await self._stalled(engine, watched, verdict, last_steps(points, max(lives)), born=max(lives))

    async def _by_log(self, engine: Engine, watched: Watched, born: float, now: float) -> Verdict:
        """Of a job that reports nothing. Before its first line it has as long as a start may take."""
        one, policy = watched.one, watched.policy
        line = await last_line(engine, one.run_dir)
        if policy.limit_s is None:
            policy = Policy(MUTE_LIMIT_S, policy.restart)
        if line is None or line < born:
            return Verdict(now - born >= policy.start_s, born, policy.start_s, started=False, pace=plan.Pace())
        return plan.silent(max(line, watched.sign), watched.longest_s, policy, now)

    async def _stalled(
        self, engine: Engine, watched: Watched, verdict: Verdict, steps: Mapping[int, int], born: float
    ) -> None:
        """Look at the ranks; a word in the meantime, and it is no hang."""
        one = watched.one
        place = stacks.Place(engine, one.attempt_id, one.run_dir, one.nodes, one.spec.procs)
        seen = await stacks.look(place)
        if any(point.at > verdict.since for point in await _points(engine, one)):
            return  # read anew: what an engine passes on may come late, and with another time
        if not seen.looks and watched.again_s == AGAIN_S:
            self._later(watched)  # it may be over, and its engine has not told so yet
            return
        now = self.store.clock()
        evidence = Evidence(seen.looks, place.world, steps, seen.flight, seen.silent or None)
        found = culprit.find(evidence)
        in_place = one.spec.effective_launcher() in RESTARTS_IN_PLACE and not found.nodes  # there it would be in vain
        sure = place.world > 1 and (found.clue in SURE or any(map(culprit.waits, seen.looks)))
        starting, whole = verdict.since <= born, len(seen.looks) == place.world
        means = Means(one.restarts_left, in_place, bool(seen.looks), starting, whole, sure)
        answer = plan.answer(watched.policy, evidence, now - verdict.since, means)
        if watched.policy.limit_s is None and not sure and not verdict.started:
            answer = Answer.WAIT  # of a job that never reported silence alone is not worth a word
        if answer is Answer.WAIT:
            log.info(
                "job %s/%s has been silent for %.1f s, and is looked at again",
                one.project,
                one.name,
                now - verdict.since,
            )
            if not starting:
                watched.longest_s = max(watched.longest_s, now - verdict.since)
            self._later(watched)
            return
        await self._act(place, watched, findings.Finding(verdict, evidence, found, answer, now))

    async def _act(self, place: stacks.Place, watched: Watched, found: findings.Finding) -> None:
        """Tell first, so that what follows has its reason; then end ranks, or the attempt."""
        one, now = watched.one, found.at
        if found.answer is Answer.TELL and watched.told_at is not None:
            watched.due = math.inf
            return
        file = await asyncio.to_thread(findings.keep, one.run_dir, found)
        message = findings.words(found)
        data = findings.data(found, file)
        stands = found.answer is Answer.TELL
        if not await self.store.write(lambda tx: self._tell(tx, one, Reason.RankHung, message, data, stands=stands)):
            return
        log.warning("job %s/%s: %s", one.project, one.name, message)
        self.counts[found.answer] = self.counts.get(found.answer, 0) + 1
        if found.answer is Answer.IN_PLACE:
            first = found.culprit.ranks or tuple(look.rank for look in found.evidence.looks[:1])
            watched.sign, watched.due = now, now + watched.policy.start_s
            if not await stacks.end(place, found.evidence.looks, first):
                await self._anew(watched, found)  # they could not be reached a second time
        elif found.answer is Answer.ANEW:
            await self._anew(watched, found)
        else:
            watched.told_at, watched.due = now, math.inf

    async def _anew(self, watched: Watched, found: findings.Finding) -> None:
        one, words = watched.one, findings.headline(found)
        watched.due = math.inf
        await self.store.write(lambda tx: self._end(tx, one, words, found.culprit.nodes))
        self.wake(one.job_id)

    def _tell(
        self, tx: Tx, one: Running, reason: Reason, message: str, data: Mapping[str, Any], *, stands: bool
    ) -> bool:
        self.fence(tx)
        return running.tell(tx, one, reason, message, data, stands=stands)

    def _end(self, tx: Tx, one: Running, message: str, blamed: Sequence[str]) -> bool:
        self.fence(tx)
        for node in blamed:
            running.avoid(tx, one, node, message)
        return running.end(tx, one, Reason.Hung, message)

    async def _went_on(self, watched: Watched) -> None:
        one, told_at = watched.one, watched.told_at or watched.sign
        watched.told_at = None
        took = format_duration(round(max(watched.sign - told_at, 0.0), 1))
        message = f"it reports again, {took} after its hang was told of; nothing was done about it"
        await self.store.write(lambda tx: self._tell(tx, one, Reason.HangEnded, message, {}, stands=True))

    def _later(self, watched: Watched) -> None:
        watched.due = self.store.clock() + watched.again_s
        watched.again_s = min(watched.again_s * 2, AGAIN_LIMIT_S)

    async def samples(self) -> list[Sample]:
        return [
            Sample("hangs", "counter", "Hangs that were found since the server's start, by what was done.", {"answer": answer}, n)
            for answer, n in sorted(self.counts.items())
        ]  # fmt: skip


def policy_of(one: Running) -> Policy | None:
    """None of a job that is not watched: interactive, told so, or of an engine in which nothing really runs."""
    spec = one.spec
    if spec.interactive or spec.hang_limit == 0 or one.engine == "simulated":
        return None
    return Policy(spec.hang_limit, spec.on_hang == "restart")


async def _points(engine: Engine, one: Running) -> list[Point]:
    told = await engine.logs(one.run_dir).progress()
    return [Point(float(point["at"]), int(point["rank"]), point["step"]) for point in told]


def last_steps(points: list[Point], born: float) -> dict[int, int]:
    """Each rank's last step in the life that began at ``born``."""
    return {point.rank: point.step for point in points if point.at >= born and point.step is not None}


async def last_line(engine: Engine, run_dir: str) -> float | None:
    """When a rank last wrote a line to its log; None before the first."""
    request = LogRequest(tail=1, timestamps=True, prefix=False)
    text = b"".join([piece async for piece in engine.logs(run_dir).read(request, lambda: True)])
    word = text.split(b" ", 1)[0].decode("ascii", "replace")
    try:
        return parse_time(word)
    except ValueError:
        return None
