"""The Slurm engine: a site's own scheduler places and runs the work, and Penstock asks, tells and never does it twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from penstock.base.errors import Conflict, InvalidInput, NotFound, Problem
from penstock.base.reasons import Reason
from penstock.engines.slurm import apart, checks, drained, offers, reading, script, states
from penstock.engines.slurm import attempts as records
from penstock.engines.slurm.accounting import Accounts
from penstock.engines.slurm.attempts import Attempt, Stop
from penstock.engines.slurm.book import Book
from penstock.engines.slurm.commands import CommandController
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.logs import SlurmLogReader
from penstock.engines.slurm.poller import Poller
from penstock.engines.slurm.sending import Sender
from penstock.engines.slurm.sessions import Place, open_session
from penstock.engines.slurm.spec import Controller, SlurmConfig, SlurmJob, SlurmNode, Transport
from penstock.engines.slurm.transport import LocalTransport
from penstock.engines.spec import (
    GpuSample,
    JobNeeds,
    Launch,
    LogReader,
    NodeOffer,
    Observation,
    Session,
    SessionRequest,
    Stage,
)

_NODES_S, _NODES_AGAIN_S = 20.0, 5.0
_FETCH_AGAIN_S = 2.0
_FIRST_NODES_S = 3.0  # how long a start waits to hear of the nodes
_BACK_S, _BACK_AGAIN_S = 10.0, 0.25
_TASKS_AT_ONCE = 500  # of an array in one sbatch: its script says what is each task's own


class SlurmEngine:
    """See slurm/spec.py for the run folder, and engines/README.md for what holds."""

    schedules_itself = True

    def __init__(
        self,
        config: SlurmConfig,
        transport: Transport,
        controller: Controller | None = None,
        *,
        clock: Callable[[], float] = time.time,
        url: str | None = None,
    ) -> None:
        self.name = config.name
        self.node_prefix = config.node_prefix
        self.accounts = Accounts(transport)
        self._config = config
        self._clock = clock
        self._transport = transport
        self._controller = controller or CommandController(transport, config)
        self._book = Book(clock)
        self._poller = Poller(config, transport, self._controller, self._book, resubmit=self._resubmit)
        self._sender = Sender(config, transport, self._controller, self._book, sent=self._poller.hurry)
        self._sender.url = url
        self._sender.models = self._models
        self._poller.fetch = self._fetch
        self._nodes: list[SlurmNode] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unrecorded: set[str] = set()  # attempts that were asked for and of which there is no record

    @property
    def unknown_since(self) -> float | None:
        return self._poller.unknown_since

    # -- life

    async def start(self, sink: Callable[[Observation], None]) -> None:
        """Attempts of earlier servers are taken up by ``adopt``."""
        self._book.sink = sink
        self._spawn(self._poller.run())
        first = asyncio.Event()
        self._spawn(self._watch_nodes(first))
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_NODES_S):
                await first.wait()

    async def close(self) -> None:
        """What is with Slurm goes on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()

    # -- what it offers

    def nodes(self) -> Sequence[NodeOffer]:
        """As Slurm told them last."""
        return [offers.offer(node, self._config.node_prefix) for node in self._nodes]

    def validate(self, needs: JobNeeds) -> list[Problem]:
        """Every reason for which this site could never run such a job."""
        return checks.problems(needs, self.nodes(), self._config)

    async def gpu_samples(self) -> Sequence[GpuSample]:
        """Slurm does not say how busy GPUs are."""
        return ()

    async def _watch_nodes(self, first: asyncio.Event) -> None:
        while True:
            try:
                await self._refresh()
                await self._poller.figures.refresh(self._controller, self.accounts)
            except Unreachable:
                self._poller.unknown_since = self._poller.unknown_since or self._clock()
            except Refused:
                pass
            first.set()
            await asyncio.sleep(_NODES_S if self.unknown_since is None else _NODES_AGAIN_S)

    async def _refresh(self) -> None:
        self._nodes = await self._controller.nodes()
        self._poller.answers()

    # -- running

    async def submit(self, launch: Launch) -> None:
        """The intent is written down when this returns; what becomes of it comes through the sink."""
        if launch.attempt_id in self._book.live or self._book.told_end(launch.attempt_id):
            return
        known = await asyncio.to_thread(records.load, launch.run_dir, self._config)
        if known is not None and known.end is not None:
            self._book.end_told(launch.attempt_id)
            self._book.sink(known.end)
            return
        if known is not None and known.key:
            self._take_up(known)
            return
        lost = {self._config.node_prefix + node.name for node in self._nodes if offers.lost(node)}
        gone = [group.node for group in launch.groups if group.node in lost]
        try:
            home = await self._home(launch)
        except Refused as error:
            attempt = records.fresh(launch, self._config, "/")
            await self._book.finish(attempt, states.refused(launch.attempt_id, error.message, self._clock()))
            return
        attempt = known or self._fresh(launch, home)
        attempt.launch = launch
        if launch.attempt_id in self._book.live:
            return
        self._book.add(attempt)
        await asyncio.to_thread(attempt.save)
        if gone:
            now = self._clock()
            seen = Observation(launch.attempt_id, Stage.EXITED, now, ended_at=now, reason=Reason.NodeLost)
            await self._book.finish(attempt, replace(seen, message=f"node {gone[0]} was lost"))
            return
        self._spawn(self._sender.send([attempt], home))

    async def submit_array(self, launches: Sequence[Launch]) -> None:
        """Tasks that differ only in their index are one sbatch."""
        together: dict[str, list[Launch]] = {}
        recorded = await asyncio.to_thread(records.recorded, [launch.run_dir for launch in launches])
        for launch in launches:
            known = launch.attempt_id in self._book.live or self._book.told_end(launch.attempt_id)
            if known or launch.run_dir in recorded or launch.array is None:
                await self.submit(launch)
            else:
                together.setdefault(script.alike(launch), []).append(launch)
        for alike in together.values():
            for begin in range(0, len(alike), _TASKS_AT_ONCE):
                await self._submit_together(alike[begin : begin + _TASKS_AT_ONCE])

    async def _submit_together(self, launches: Sequence[Launch]) -> None:
        try:
            home = await self._home(launches[0])
        except Refused:
            home = ""
        if len(launches) == 1 or not home:
            for launch in launches:
                await self.submit(launch)
            return
        tasks = [self._fresh(launch, home) for launch in launches]
        for attempt in tasks:
            attempt.name, attempt.tag = tasks[0].name, tasks[0].tag
            attempt.index = attempt.launch.array[1] if attempt.launch and attempt.launch.array else None
            self._book.add(attempt)
        await asyncio.to_thread(records.save_all, tasks)
        self._spawn(self._sender.send(tasks, home))

    def _fresh(self, launch: Launch, home: str) -> Attempt:
        attempt = records.fresh(launch, self._config, home)
        if launch.attempt_id in self._unrecorded:
            self._unrecorded.discard(launch.attempt_id)
            attempt.uncertain = attempt.lost = True
        return attempt

    def _resubmit(self, attempt: Attempt) -> None:
        """Slurm has lost it before it began."""
        attempt.uncertain = True
        if attempt.launch is not None:
            self._spawn(self._sender.send([attempt], attempt.folder.rpartition("/")[0]))

    async def adopt(self, attempt_id: str, run_dir: str) -> Observation:
        """What an attempt of an earlier server does. Raises Unreachable."""
        attempt = self._book.live.get(attempt_id) or await asyncio.to_thread(records.load, run_dir, self._config)
        absent = Observation(attempt_id, Stage.ABSENT, self._clock())
        if attempt is None:
            self._unrecorded.add(attempt_id)
            return absent
        if attempt.end is not None:
            self._book.end_told(attempt_id)
            return replace(attempt.end, at=self._clock())
        if not attempt.key:
            if attempt.sending:
                return attempt.told or replace(absent, stage=Stage.QUEUED, reason=Reason.WaitingForResources)
            if not await self._sender.find([attempt]):
                return await self._never_sent(attempt, absent)
        self._book.add(attempt)
        self._poller.hurry()
        found = await self._poller.look([attempt])
        if not found:
            return attempt.told or replace(absent, stage=Stage.STARTING, engine_job=attempt.key)
        seen = found[0][1]
        if seen.stage in (Stage.EXITED, Stage.LOST):
            await self._book.finish(attempt, seen, tell=False)
        elif seen.stage is Stage.ABSENT:
            self._book.forget(attempt)
        else:
            attempt.told = seen
        return seen

    async def _never_sent(self, attempt: Attempt, absent: Observation) -> Observation:
        if attempt.stop is None:
            return absent
        seen = states.stopped(attempt.attempt_id, attempt.stop.reason, self._clock())
        await self._book.finish(attempt, seen, tell=False)
        return seen

    def _take_up(self, attempt: Attempt) -> None:
        self._book.add(attempt)
        self._poller.hurry()

    async def stop(self, attempt_id: str, run_dir: str, *, reason: str, grace_s: float) -> None:
        """SIGTERM, and after ``grace_s`` SIGKILL; the end's reason will be ``reason``. Also before it has begun."""
        now = self._clock()
        attempt = self._book.live.get(attempt_id) or await asyncio.to_thread(records.load, run_dir, self._config)
        if attempt is None:
            attempt = records.forestalled(attempt_id, run_dir, states.stopped(attempt_id, reason, now))
            await asyncio.to_thread(attempt.save)
            return
        if attempt.end is not None:
            return
        if attempt.stop is None:
            attempt.stop = Stop(reason, grace_s, now)
            attempt.asked = replace(attempt.asked, stop=reason)
        else:
            attempt.stop.grace_s = max(0.0, min(attempt.stop.grace_s, now - attempt.stop.at + grace_s))
        await asyncio.to_thread(attempt.save)
        if attempt_id not in self._book.live:
            self._book.add(attempt)
        if not attempt.key and not attempt.sending:
            self._spawn(self._sender.send([attempt], attempt.folder.rpartition("/")[0]))
        self._poller.hurry()

    # -- nodes

    async def lose(self, node: str) -> None:
        """End everything there at once, and take it for gone. Raises NotFound, Conflict."""
        slurm_node = self._owned(node)
        await self._controller.set_node(slurm_node.name, "DOWN", drained.reason(offers.LOST))
        # a node that answers may be back at once (ReturnToService): drained as well, it stays empty
        await self._controller.set_node(slurm_node.name, "DRAIN", drained.reason(offers.LOST))
        await self._refresh()
        self._poller.hurry()

    async def restore(self, node: str) -> None:
        """Raises NotFound, Conflict."""
        slurm_node = self._owned(node)
        if drained.flags(slurm_node.state) & {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL"}:
            await self._controller.set_node(slurm_node.name, "RESUME")
        with suppress(TimeoutError):  # slurmctld asks it first whether it is there
            async with asyncio.timeout(_BACK_S):
                await self._until_ready(node)

    async def _until_ready(self, node: str) -> None:
        await self._refresh()
        while not any(offer.ready for offer in self.nodes() if offer.name == node):
            await asyncio.sleep(_BACK_AGAIN_S)
            await self._refresh()

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        """Drain it, or open it again; what the site drained, by ``force`` alone. Raises NotFound, Conflict."""
        self._owned(node)
        await self._refresh()  # somebody may have drained it a moment ago
        slurm_node = self._owned(node)
        by_site = drained.closed(slurm_node)
        if why is not None:
            await self._controller.set_node(slurm_node.name, "DRAIN", drained.reason(why))
        elif by_site and not force:
            raise Conflict(
                f"node {node} was not closed by Penstock: {by_site}", hint="Ask whoever closed it, or use --force."
            )
        elif by_site or drained.cordoned(slurm_node):
            await self._controller.set_node(slurm_node.name, "RESUME")
        await self._refresh()

    def _owned(self, name: str) -> SlurmNode:
        prefix = self._config.node_prefix
        node = next((node for node in self._nodes if prefix + node.name == name), None)
        if node is None:
            raise NotFound(f"there is no node {name!r} in {self.name}")
        if not self._config.managed:
            raise Conflict(
                f"the nodes of {self.name} are not Penstock's to change",
                hint=f"`penstock engines set {self.name} --manage` lets it change them.",
            )
        return node

    # -- reading and entering

    def logs(self, run_dir: str) -> LogReader:
        return reading.LateReader(lambda: records.load(run_dir, self._config), self._log_reader)

    def _log_reader(self, known: Attempt | None) -> SlurmLogReader:
        if known is None or self._config.shared:
            return reading.log_reader(known, self._transport)
        attempt_id, prefix = known.attempt_id, self._config.node_prefix
        return reading.apart_reader(known, self._transport, lambda: self._book.live.get(attempt_id), prefix)

    async def session(self, attempt_id: str, run_dir: str, request: SessionRequest) -> Session:
        """A terminal, a command, or a port. Raises InvalidInput, NotFound, Conflict."""
        if request.port is None and not request.command:
            raise InvalidInput("no command was given", details=[Problem("command", "give at least one word")])
        place = reading.place(self._book.live.get(attempt_id), self._config.node_prefix)
        return await open_session(self._transport, place, self._unprefixed(request))

    def _unprefixed(self, request: SessionRequest) -> SessionRequest:
        return replace(request, node=request.node.removeprefix(self._config.node_prefix)) if request.node else request

    def _fetch(self, attempt: Attempt, job: SlurmJob) -> None:
        if not attempt.fetching:
            attempt.fetching = True
            self._spawn(self._fetched(attempt, Place(job.id, "", attempt.user, job.nodes)))

    async def _fetched(self, attempt: Attempt, place: Place) -> None:
        """Again at a later look, if it fails: its batch script waits."""
        with suppress(Unreachable, Refused, OSError):
            await apart.fetch(self._transport, place, attempt.folder, attempt.run_dir)
            self._poller.hurry()
            return
        await asyncio.sleep(_FETCH_AGAIN_S)
        attempt.fetching = False

    # -- what all of these need

    async def _home(self, launch: Launch) -> str:
        local_root = isinstance(self._transport, LocalTransport) and self._transport.root
        if local_root and launch.unix_user in (None, "root"):
            raise Refused(
                "jobs are never run as root, and this one has no other Unix user: map its submitter, or use --job-user"
            )
        folder = self._config.folder
        if not folder.startswith("~"):
            return folder
        return await self._transport.home(launch.unix_user) + folder[1:]

    def _models(self, launch: Launch) -> Sequence[str]:
        there = {gpu.model for node in self.nodes() for gpu in node.gpus}
        return [model for model in launch.gpu_models if model in there] or launch.gpu_models

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
