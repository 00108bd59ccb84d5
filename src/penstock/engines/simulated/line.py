"""A made-up cluster with a scheduler of its own: first in, first out, on nodes that nobody else places on.

It answers as such engines do: an attempt waits in its line, is placed by it, may be taken back into it, and the whole of it
may cease to answer. What waits is kept in the run folder too (``queued.json``), so that the next server finds it again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from penstock.base.errors import Problem
from penstock.base.reasons import Reason
from penstock.engines.errors import Unreachable
from penstock.engines.simulated import records
from penstock.engines.simulated.engine import SimulatedEngine, _Run
from penstock.engines.simulated.script import Script
from penstock.engines.simulated.shape import Fleet
from penstock.engines.spec import JobNeeds, Launch, NodeOffer, Observation, RankGroup, Stage

QUEUED = "queued.json"
SETTLE_S = 0.1  # after a start: what runs is found again before anything new is placed


@dataclass(slots=True)
class _Waiting:
    launch: Launch
    number: int
    restarts: int
    seen: Observation


@dataclass(slots=True)
class _Free:
    """Of a node."""

    cpus: float
    memory: int
    gpus: list[str] = field(default_factory=list)


class QueueingEngine(SimulatedEngine):
    """``prefix`` stands before the names of its nodes, where another engine has nodes of the same."""

    schedules_itself = True

    def __init__(self, fleet: Fleet, *, name: str = "queueing", prefix: str = "", **other: Any) -> None:
        super().__init__(fleet, **other)
        self.name = name
        self._well = tuple(replace(offer, name=prefix + offer.name) for offer in self._well)
        self._offers = self._well
        self._names = frozenset(offer.name for offer in self._well)
        self._free = {offer.name: _whole(offer) for offer in self._well}
        self._taken: dict[str, tuple[RankGroup, ...]] = {}
        self._waiting: dict[str, _Waiting] = {}  # in their order
        self._hopeless: dict[str, _Waiting] = {}
        self._restarts: dict[str, int] = {}
        self._jobs: dict[str, str] = {}  # what it calls an attempt
        self._numbers = itertools.count(int(self._clock()) + 1)  # goes up over restarts too
        self._to: Callable[[Observation], None] = lambda _seen: None
        self._missed: list[Observation] = []
        self._cordoned: set[str] = set()
        self._settling: asyncio.TimerHandle | None = None

    async def start(self, sink: Callable[[Observation], None]) -> None:
        self._to = sink
        await super().start(self._tell)

    async def close(self) -> None:
        await super().close()
        if self._settling is not None:
            self._settling.cancel()
        self._to = lambda _seen: None

    def _tell(self, seen: Observation) -> None:
        if self.unknown_since is not None:
            self._missed.append(seen)
        else:
            self._to(seen)

    def validate(self, needs: JobNeeds) -> list[Problem]:
        """Besides what the fleet says: it gives whole GPUs, and takes no options."""
        found = super().validate(needs)
        if needs.gpu_milli:
            found.append(Problem("resources.gpu_share", f"{self.name} gives whole GPUs alone"))
        if needs.mig:
            found.append(Problem("resources.mig", f"{self.name} gives whole GPUs alone"))
        return found + [Problem(f"engine_options.{name}", f"{self.name} takes no options") for name in needs.options]

    # -- its line

    async def submit(self, launch: Launch) -> None:
        """Raises ValueError for a command whose times cannot be read, Unreachable."""
        self._must_answer()
        Script.parse(launch.command, self.default_run_s)
        if not records.claim(launch.run_dir):
            return
        self._enter(launch, next(self._numbers), 0)
        self._advance()

    def _enter(self, launch: Launch, number: int, restarts: int) -> _Waiting:
        records.write(f"{launch.run_dir}/{QUEUED}", {"number": number, "restarts": restarts, "launch": asdict(launch)})
        return self._wait(launch, number, restarts)

    def _wait(self, launch: Launch, number: int, restarts: int) -> _Waiting:
        id_ = launch.attempt_id
        seen = Observation(
            id_, Stage.QUEUED, self._clock(), message="was not looked at yet", engine_job=str(number), restarts=restarts
        )
        one = self._waiting[id_] = _Waiting(launch, number, restarts, seen)
        self._jobs[id_], self._restarts[id_] = str(number), restarts
        return one

    def _advance(self) -> None:
        """Start those who are first in line while there is room for them; say why to whom nothing, or another, was said."""
        if self._settling is not None:
            return
        blocked = False
        for one in list(self._waiting.values()):
            groups = None if blocked else self._place(one.launch, self._free)
            if groups is not None:
                del self._waiting[one.launch.attempt_id]
                self._begin_at(one, groups)
            elif self._place(one.launch, {offer.name: _whole(offer) for offer in self._well}) is None:
                self._hopeless[one.launch.attempt_id] = self._waiting.pop(one.launch.attempt_id)
                self._say(one, Reason.Unschedulable, f"no nodes of {self.name} have what it asks for", "ask for less")
            elif blocked:
                if one.seen.reason == Reason.WaitingBehind:
                    break  # whoever stands behind was told so too
                self._say(one, Reason.WaitingBehind, f"waits behind others in the line of {self.name}", "")
            else:
                blocked = True
                words = "is first in line; the nodes, CPUs, memory or GPUs it needs are in use"
                self._say(one, Reason.WaitingForResources, words, "waits for running jobs to end")

    def _say(self, one: _Waiting, reason: Reason, message: str, help_: str) -> None:
        if one.seen.reason != reason:
            one.seen = replace(one.seen, at=self._clock(), reason=reason, message=message, help=help_)
            self._tell(one.seen)

    def _place(self, launch: Launch, free: Mapping[str, _Free]) -> tuple[RankGroup, ...] | None:
        """A node for each group, or for as many as will do. One that is asked for by name is had though it is lost, as the
        end will say.
        """
        groups: list[RankGroup] = []
        for group in launch.groups:
            names = [group.node] if group.node else [name for name in free if name not in launch.exclude_nodes]
            used = {placed.node for placed in groups}
            found = next((n for n in names if n not in used and self._fits(launch, group, n, free)), None)
            if found is None:
                return tuple(groups) if launch.least and len(groups) >= launch.least else None
            gpus = tuple(free[found].gpus[: launch.gpus_per_node])
            groups.append(replace(group, node=found, gpus=gpus))
        return tuple(groups)

    def _fits(self, launch: Launch, group: RankGroup, node: str, free: Mapping[str, _Free]) -> bool:
        has = free.get(node)
        if has is None or (group.node and node in self._down):
            return bool(group.node)
        if free is self._free and (node in self._down or node in self._cordoned):
            return False
        enough = has.cpus >= group.cpus and has.memory >= (group.memory or 0) and len(has.gpus) >= launch.gpus_per_node
        return enough and (not launch.gpu_models or self.fleet.model in launch.gpu_models)

    def _begin_at(self, one: _Waiting, groups: tuple[RankGroup, ...]) -> None:
        launch, now = replace(one.launch, groups=groups), self._clock()
        records.write_run(launch, now, self.fleet.speed)
        run = self._begin(launch, Script.parse(launch.command, self.default_run_s), self.fleet.speed, now)
        self._tell(run.seen)
        if run.seen.stage is Stage.RUNNING:
            self._plan(run, now)

    def _begin(self, launch: Launch, script: Script, speed: float, started_at: float) -> _Run:
        for group in launch.groups:
            free = self._free.get(group.node)
            if free is not None:
                free.cpus, free.memory = free.cpus - group.cpus, free.memory - (group.memory or 0)
                free.gpus = [gpu for gpu in free.gpus if gpu not in group.gpus]
        self._taken[launch.attempt_id] = launch.groups
        run = super()._begin(launch, script, speed, started_at)
        run.seen = self._placed(run.seen, launch.groups)
        return run

    def _placed(self, seen: Observation, groups: tuple[RankGroup, ...]) -> Observation:
        restarts = self._restarts.get(seen.attempt_id, 0)
        named = self._jobs.get(seen.attempt_id, "")
        return replace(seen, groups=groups, gpu_model=self.fleet.model, engine_job=named, restarts=restarts)

    def _over(self, run: _Run, reason: str, message: str, code: int | None, number: int | None, at: float) -> None:
        super()._over(run, reason, message, code, number, at)
        self._give(run.launch.attempt_id)

    def _give(self, attempt_id: str) -> None:
        for group in self._taken.pop(attempt_id, ()):
            free = self._free.get(group.node)
            if free is not None:
                free.cpus, free.memory = free.cpus + group.cpus, free.memory + (group.memory or 0)
                free.gpus = sorted([*free.gpus, *group.gpus])
        asyncio.get_running_loop().call_soon(self._advance)

    # -- found again, stopped, taken back

    async def adopt(self, attempt_id: str, run_dir: str) -> Observation:
        """Raises Unreachable."""
        self._must_answer()
        one = self._waiting.get(attempt_id) or self._hopeless.get(attempt_id)
        if one is not None:
            return one.seen
        kept = records.read(run_dir, QUEUED)
        if kept is None:
            return await super().adopt(attempt_id, run_dir)
        self._jobs[attempt_id], self._restarts[attempt_id] = str(kept["number"]), kept["restarts"]
        if all(records.read(run_dir, name) is None for name in (records.RUN, records.EXIT)):
            one = self._wait(_again(kept["launch"]), kept["number"], kept["restarts"])
            self._waiting = dict(sorted(self._waiting.items(), key=lambda item: item[1].number))
            if self._settling is None:
                self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settled)
            return one.seen
        known = attempt_id in self._runs
        seen = await super().adopt(attempt_id, run_dir)
        if known:
            return seen
        ran = records.read(run_dir, records.RUN)
        return seen if ran is None else self._placed(seen, _groups(kept, ran))

    def _settled(self) -> None:
        self._settling = None
        self._advance()

    @property
    def settling(self) -> bool:
        """Whether it still waits for what it had at work before a start."""
        return self._settling is not None

    def _launch(self, attempt_id: str, run_dir: str, record: Mapping[str, Any]) -> Launch:
        kept = records.read(run_dir, QUEUED)
        if kept is None:
            return super()._launch(attempt_id, run_dir, record)
        return replace(_again(kept["launch"]), groups=_groups(kept, record))

    async def stop(self, attempt_id: str, run_dir: str, *, reason: str, grace_s: float) -> None:
        """Raises Unreachable."""
        await self.adopt(attempt_id, run_dir)
        one = self._waiting.pop(attempt_id, None) or self._hopeless.pop(attempt_id, None)
        if one is None:
            await super().stop(attempt_id, run_dir, reason=reason, grace_s=grace_s)
            return
        now, words = self._clock(), f"it waited in the line of {self.name}"
        seen = replace(one.seen, stage=Stage.EXITED, at=now, ended_at=now, reason=reason, message=words)
        records.write_exit(run_dir, seen)
        self._tell(seen)
        self._advance()

    def requeue(self, attempt_id: str) -> None:
        """As a cluster does with what it preempts: it runs no more, and waits at the end of the line, by its old name."""
        run = self._runs.pop(attempt_id, None)
        if run is None:
            return
        for timer in run.timers:
            timer.cancel()
        kept = records.read(run.launch.run_dir, QUEUED)
        asked = run.launch.groups if kept is None else _again(kept["launch"]).groups  # it may have had fewer
        launch = replace(run.launch, groups=tuple(replace(group, node="", gpus=()) for group in asked))
        os.unlink(f"{launch.run_dir}/{records.RUN}")
        one = self._enter(launch, int(self._jobs[attempt_id]), self._restarts[attempt_id] + 1)
        one.seen = replace(one.seen, reason=Reason.Requeued, message="made room for another", ended_at=self._clock())
        self._tell(one.seen)
        one.seen = replace(one.seen, reason=None, ended_at=None)
        self._give(attempt_id)

    # -- drills

    def finish(self, attempt_id: str, code: int = 0) -> None:
        """Play the end of its command."""
        run = self._runs.get(attempt_id)
        if run is not None:
            reason, words = (Reason.Failed, f"the command exited with code {code}") if code else (Reason.Completed, "")
            self._end(run, reason, words, code, None, self._clock())

    def running(self) -> frozenset[str]:
        """Attempts that run, whether it answers or not."""
        return frozenset(self._runs)

    def cpus_of(self, attempt_id: str) -> float:
        """That an attempt holds."""
        return sum(group.cpus for group in self._taken.get(attempt_id, ()))

    def waiting(self) -> tuple[str, ...]:
        """Attempts in its line, in their order."""
        return tuple(self._waiting)

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        await super().cordon(node, why)
        if why is None:
            self._cordoned.discard(node)
            self._advance()
        else:
            self._cordoned.add(node)

    def _back(self, node: str) -> None:
        super()._back(node)
        self._advance()

    def cut_off(self, why: str) -> None:
        """From now on it does not answer; what runs there runs on."""
        if self.unknown_since is None:
            self.unknown_since, self._why = self._clock(), why
            for seen in self._states():
                self._to(replace(seen, unknown_since=self.unknown_since, message=why))

    def reconnect(self) -> None:
        """It answers again, and what happened meanwhile is told."""
        self.unknown_since = None
        missed, self._missed = self._missed, []
        for seen in (*missed, *self._states()):
            self._to(seen)

    def _states(self) -> Sequence[Observation]:
        lines = (*self._waiting.values(), *self._hopeless.values())
        return [*(one.seen for one in lines), *(run.seen for run in self._runs.values())]

    def _must_answer(self) -> None:
        if self.unknown_since is not None:
            raise Unreachable(f"engine {self.name} does not answer: {self._why}")

    _why = ""


def _whole(offer: NodeOffer) -> _Free:
    return _Free(offer.cpus, offer.memory, [gpu.id for gpu in offer.gpus])


def _again(kept: Mapping[str, Any]) -> Launch:
    """A Launch that was written as JSON."""
    groups = tuple(RankGroup(**{**group, "gpus": tuple(group["gpus"])}) for group in kept["groups"])
    lists = {name: tuple(kept[name]) for name in ("command", "gpu_models", "exclude_nodes")}
    array = tuple(kept["array"]) if kept["array"] is not None else None
    return Launch(**{**kept, **lists, "groups": groups, "array": array})


def _groups(kept: Mapping[str, Any], ran: Mapping[str, Any]) -> tuple[RankGroup, ...]:
    """What was asked for, as far as it was placed."""
    pairs = zip(_again(kept["launch"]).groups, ran["groups"], strict=False)
    return tuple(replace(group, node=at["node"], gpus=tuple(at["gpus"])) for group, at in pairs)
