"""``Checkpointer``: what a training script uses, in three lines (docs/checkpoints.md).

``ckpt = Checkpointer(model=model, optimizer=optimizer)`` before the loop, ``for step in range(ckpt.load(), steps)`` to
begin where the last run ended, and ``if ckpt.step(step): break`` at the end of each step; ``ckpt.close()`` after it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import torch

from penstock.worker import contract, stalls
from penstock.worker.checkpoint import folder, saving
from penstock.worker.checkpoint.apart import promote_apart, prune_apart
from penstock.worker.checkpoint.errors import CheckpointError, Damaged, FolderInUse, OtherModel, SaveFailed
from penstock.worker.checkpoint.imported import is_imported, without_twins
from penstock.worker.checkpoint.layout import Layout, make_layout
from penstock.worker.checkpoint.loading import Filling, compare, fill
from penstock.worker.checkpoint.manifest import Manifest
from penstock.worker.checkpoint.memory import available, cores, short_of_memory, stand_back
from penstock.worker.checkpoint.nodes import Nodes, here
from penstock.worker.checkpoint.options import Figures, Options
from penstock.worker.checkpoint.pacing import Throttle, interval
from penstock.worker.checkpoint.parts import (
    Captured,
    Part,
    Position,
    Target,
    part_of,
    random_state,
    set_random_state,
)
from penstock.worker.checkpoint.ranks import Ranks
from penstock.worker.checkpoint.staging import Staging, streamed
from penstock.worker.checkpoint.tensors import Placed, written_here
from penstock.worker.checkpoint.tiers import candidates, fetch, newest_first, place
from penstock.worker.checkpoint.upkeep import Shelf
from penstock.worker.checkpoint.writing import Pace, Source, spoilt
from penstock.worker.report import tell

_COPIERS = 8  # threads of the copy: more do not make memory faster
_UNTOLD = 200  # words to the job's page that wait for the next step; of more, the newest
STOPPED = 143  # 128 + SIGTERM: the exit code of a script that goes on after it was told to stop

_USUAL: Final = Options()


class Checkpointer:
    """Saves and loads ``parts`` (model=, optimizer=, scheduler=, anything with a state_dict) in ``directory``.

    ``directory`` is the job's (PENSTOCK_CKPT_DIR) where none is given. ``every``: a number of steps, a duration
    ("10m"), or "auto" for the interval that loses least (Young and Daly) given Options.mtbf. ``loader`` is the data
    position, each rank's own. Where torch.distributed is in use, every rank makes one, after init_process_group.
    """

    def __init__(
        self,
        directory: str | None = None,
        *,
        keep: int = 3,
        every: int | str = "10m",
        loader: Any = None,
        options: Options = _USUAL,
        **parts: Any,
    ) -> None:
        where = directory or contract.checkpoint_dir()
        if where is None:
            raise CheckpointError("no folder for checkpoints", hint="Give directory=, or set PENSTOCK_CKPT_DIR.")
        if keep < 1:
            raise CheckpointError("keep must be at least 1: the last checkpoint is never removed")
        self.directory = os.path.abspath(where)
        self.options = options
        self.figures = Figures()
        self._contract = contract.current()
        modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
        self._parts = [part_of(name, part, modules) for name, part in parts.items() if part is not None]
        self._position = Position("loader", loader) if loader is not None else None
        self._on_gpu = any(p.is_cuda for m in modules.values() for p in m.parameters())
        self._ranks = Ranks()
        self._every_steps, self._interval = interval(every)
        self._auto = every == "auto"
        if self._auto and options.mtbf is None:
            raise CheckpointError('every="auto" needs Options(mtbf=...): the mean time between failures, in seconds')
        self._shelf = Shelf(self.directory, keep, options.keep_every, options.read_back)
        owner = {"job": self._contract.job_id, "attempt": self._contract.attempt}
        self._lock = folder.Lock(self.directory, owner)
        self._locked = False
        self._tiers = [place(path, options.tier_keep, options.tier_bytes_per_s, owner) for path in options.tiers]
        self._promoter = ThreadPoolExecutor(1, "penstock-promote", stand_back, (options.niceness,))
        self._promotion: Future[None] | None = None
        self._nodes: Nodes | None = None
        if options.node_local or options.neighbour:
            self._nodes = Nodes(self._ranks, self.directory, options.commit_timeout, neighbour=options.neighbour)
        self._leads = self._nodes.leads if self._nodes is not None else self._ranks.rank == 0
        self._series = self._open()
        self._number = 0
        self._thread = ThreadPoolExecutor(1, "penstock-checkpoint", stand_back, (options.niceness,))
        self._throttle = Throttle()
        self._flight: Future[None] | None = None
        self._layout: Layout | None = None
        self._staging: Future[Staging] | None = None
        self._last_began = time.monotonic()
        self._last_saved = -1
        self._next = 0
        self._newest = ""
        self._asked_at = 0.0
        self._stopping = False
        self._untold: deque[dict[str, Any]] = deque(maxlen=_UNTOLD)  # of threads, for the loop's own to tell
        contract.should_stop()
        self._tell_policy(keep)

    # -------------------------------------------------------------------------------------------------------- load

    def load(self) -> int:
        """Load the newest checkpoint that is whole into the parts; answers the step to go on with, 0 for a fresh start.

        Every byte is verified; a damaged checkpoint is told, and the one before it is taken. Raises Damaged when there
        are checkpoints and none is whole, and OtherModel when one is whole but of another model: the parts may then be
        partly overwritten, and must not be trained on.
        """
        began, reasons = time.monotonic(), []
        for found in self._there():
            entry, fault = self._near(found)
            fault = fault or self._try(entry)
            if not fault:
                self._last_saved = entry.step
                if os.path.dirname(entry.path) == self.directory:
                    self._shelf.verified.add(entry.id)
                self._say(f"step {entry.step} loaded, every byte verified ({entry.path})")
                self._note("loaded", entry, place=os.path.dirname(found.path), took_s=time.monotonic() - began)
                self._tell()
                return self._next
            reasons.append(fault)
            self._note("unusable", entry, place=os.path.dirname(found.path), reason=fault)
            if os.path.dirname(entry.path) == self.directory:
                self._shelf.damaged[entry.id] = fault
            what = "could not be brought here and is" if "://" in entry.path else "is damaged and"
            self._say(f"step {entry.step} {what} not used: {fault}")
        if reasons:
            raise Damaged(f"none of the {len(reasons)} checkpoints in {self.directory} is whole; newest: {reasons[0]}")
        self._note("fresh")
        self._tell()
        return 0

    def _there(self) -> list[folder.Entry]:
        """What rank 0 finds in all places, newest first. Raises CheckpointError where only a silent place may know."""
        found: list[tuple[str, int, str]] = []
        silent: list[str] = []
        ours = self._nodes.entries() if self._nodes is not None else []
        if self._ranks.rank == 0:
            there, silent = candidates(self.directory, self._tiers)
            there = newest_first([*there, *ours], self.directory)
            found = [(self._place_of(entry), entry.step, entry.id) for entry in there]
            for fault in silent if found else ():
                self._say(f"not asked for its checkpoints: {fault}")
        found, silent = self._ranks.first((found, silent))
        if silent and not found:
            raise CheckpointError(
                f"no checkpoint in {self.directory}, and a tier does not say whether it has one: {silent[0]}",
                hint="Start again when it answers, or without it in Options(tiers=...) to begin afresh.",
            )
        return [
            folder.Entry(place or os.path.join(self.directory, f"{step}-{name}"), step, name)
            for place, step, name in found
        ]

    def _place_of(self, entry: folder.Entry) -> str:
        """Its path for every rank; empty for what lies in the folder, which other nodes may call otherwise."""
        return "" if os.path.dirname(entry.path) == self.directory else entry.path

    def _near(self, entry: folder.Entry) -> tuple[folder.Entry, str]:
        """A checkpoint that lies in a store is brought into the folder, by rank 0; and why it could not be."""
        if self._nodes is not None and os.path.dirname(entry.path) == self.directory:
            return entry, self._nodes.bring(entry, self._wanted)
        if "://" not in entry.path:
            return entry, ""
        path, fault = entry.path, ""
        if self._leads:
            try:
                path = fetch(entry, self._tiers, self.directory).path
            except (OSError, CheckpointError) as error:
                fault = str(error)
        if self._nodes is not None:
            faults = [said for said in self._ranks.all(fault) if said]
            path = os.path.join(self.directory, f"{entry.step}-{entry.id}")
            return folder.Entry(path, entry.step, entry.id), faults[0] if faults else ""
        path, fault = self._ranks.first((path, fault))
        return folder.Entry(path, entry.step, entry.id), fault

    def _wanted(self, manifest: Manifest) -> set[str]:
        """The files that this rank's part of the training lies in. Raises OtherModel."""
        plan = Filling(manifest)
        for item in self._target(manifest).placed:
            plan.add(item.box, item.local)
        return set(plan.wants)

    def _target(self, manifest: Manifest) -> Target:
        """Where a checkpoint's tensors go. Raises OtherModel."""
        target = Target()
        parts = self._parts if not is_imported(manifest) else self._brought(manifest)
        for part in parts:
            part.target(manifest, target)
        if is_imported(manifest):
            target.placed = without_twins(manifest, target.placed)
        compare(manifest, target.placed, [part.name for part in parts])
        return target

    def _try(self, entry: folder.Entry) -> str:
        """Load one checkpoint; the reason of any rank that found it damaged. All ranks come to the same answer."""
        error: CheckpointError | None = None
        target = Target()
        manifest: Manifest | None = None
        try:
            manifest = folder.checked_manifest(entry)
            target = self._target(manifest)
            there = manifest if self._nodes is None else here(manifest, entry.path)
            fill(entry.path, there, target.placed, self._ranks.rank, self._ranks.world_size)
        except CheckpointError as found:
            error = found
        told = self._ranks.all((type(error).__name__, error.message) if error else None)
        worst = [fault for fault in told if fault is not None and fault[0] != "Damaged"]
        if error is not None and not isinstance(error, Damaged):
            raise error
        if worst:
            raise OtherModel(f"on another rank: {worst[0][1]}")
        damaged = [fault[1] for fault in told if fault is not None]
        if damaged:
            return damaged[0]
        assert manifest is not None
        for finish in target.finish:
            finish()
        self._restore_own(manifest)
        self._next = int(manifest.origin.get("next", entry.step + 1))
        return ""

    def _brought(self, manifest: Manifest) -> list[Part]:
        """The parts that an import has; a model without its optimizer is a usual beginning, and told."""
        new = [part.name for part in self._parts if part.name not in manifest.state]
        if len(new) == len(self._parts):
            raise OtherModel(f"what was imported has none of {new}; it has {sorted(manifest.state)}")
        if new:
            self._say(f"imported from {manifest.origin['imported']}, which has no {' and no '.join(new)}: begun afresh")
        return [part for part in self._parts if part.name in manifest.state]

    def _restore_own(self, manifest: Manifest) -> None:
        rank, world_size = self._ranks.rank, self._ranks.world_size
        if self._position is not None and not is_imported(manifest):
            said = [row.get("loader") for row in manifest.ranks]
            if any(row is None for row in said):
                raise OtherModel(f"the checkpoint of step {manifest.step} has no data position")
            self._position.restore(said, rank, world_size)
        if rank < len(manifest.ranks) and not is_imported(manifest):
            set_random_state(manifest.ranks[rank]["random"])

    # -------------------------------------------------------------------------------------------------------- save

    def step(self, step: int) -> bool:
        """Call it after each step: saves when it is time, or on request. True: stop here, all is saved (SIGTERM)."""
        if self._stopping:
            raise SystemExit(STOPPED)
        self._throttle.step(self.busy)
        self._settle(strict=self.options.on_failure == "raise")
        if self._staging is None:
            self._prepare()
        now = time.monotonic()
        asked, stop, due = self._ranks.any_of((self._asked(now), contract.should_stop(), self._due(now)))
        by_count = self._every_steps is not None and (step + 1) % self._every_steps == 0
        if asked or stop or due or by_count:
            self._save(step, "stopping" if stop else "asked" if asked else "due")
        if self._untold:
            self._tell()
        if stop:
            self._stopping = True
            self.wait()
        self._throttle.go_on()
        return stop

    def save(self, step: int) -> None:
        """Save now: returns when the state is staged. Raises SaveFailed if the save before this one came to nothing."""
        self._settle(strict=True, block=True)
        self._save(step, "script")
        self._throttle.go_on()

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._flight is not None and not self._flight.done()

    def wait(self) -> None:
        """Until the save in flight is committed. Raises SaveFailed."""
        self._settle(strict=True, block=True)

    def close(self) -> None:
        """Wait for what is in flight and let the folder go. Raises SaveFailed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown(wait=True)
            self._promoter.shutdown(wait=True)
            for tier in self._tiers:
                tier.close()
            if self._nodes is not None:
                self._nodes.close()
            self._ranks.close()
            self._lock.release()
            self._tell()
            if self._staging is not None and self._staging.done() and not self._staging.exception():
                self._staging.result().close()

    def _save(self, step: int, why: str) -> None:
        began, at = time.monotonic(), time.time()
        self._settle(strict=False, block=True)
        captured, mine, layout = self._capture()
        shared = captured.state if self._ranks.rank == 0 else {}
        own: dict[str, Any] = {"random": random_state()}
        if self._position is not None:
            own["loader"] = self._position.capture()
        self._throttle.begin(self._throttle.patience(self._every_steps, self._interval))
        ticket = self._ticket(step)
        header = layout.header(saving.notes_of(ticket))
        tensors = [item.local for item in mine]
        staging = self._stage(layout)
        self.figures.step, self.figures.size, self.figures.id = step, layout.size, ticket.id
        if staging is None:
            source = streamed(layout, tensors, header)
            self._flight = self._thread.submit(self._write, ticket, source, layout, (own, shared), began)
            self._settle(strict=False, block=True)
        else:
            source = staging.source()
            try:
                with torch.no_grad():
                    staging.copy(tensors, header)
            except BaseException as error:
                source = spoilt(layout.size, error)
                raise
            finally:
                self._flight = self._thread.submit(self._write, ticket, source, layout, (own, shared), began)
        self.figures.stall_s = time.monotonic() - began
        stalls.waited["checkpoint"] += self.figures.stall_s
        size = {"bytes": layout.size, "interval_s": self._interval if self._every_steps is None else None}
        stalled = {"began": at, "stall_s": self.figures.stall_s, "why": why}
        self._note("saving", ticket, **stalled, **size)
        self._last_began, self._last_saved = time.monotonic(), step

    def _ticket(self, step: int) -> saving.Ticket:
        self._number += 1
        return saving.Ticket(
            directory=self.directory,
            id=folder.save_id(self._series, self._number),
            step=step,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            timeout=self.options.commit_timeout,
            pace=Pace(self.options.niceness, self.options.bytes_per_s, self._throttle),
            origin={"job": self._contract.job_id, "attempt": self._contract.attempt, "torch": torch.__version__},
        )

    def _write(
        self,
        ticket: saving.Ticket,
        source: Source,
        layout: Layout,
        states: tuple[Mapping[str, Any], Mapping[str, Any]],
        began: float,
    ) -> None:
        """In the background: this rank's part, and on rank 0 the commit and what follows it."""
        if self._nodes is not None:
            self._write_apart(self._nodes, ticket, source, layout, states, began)
            return
        try:
            if ticket.rank == 0:
                self._take_lock()
            saving.begin(ticket)
            part = saving.write_part(ticket, source, layout, *states)
            if ticket.rank == 0:
                size = saving.conclude(ticket, part)[1].size
                durable = {"durable_s": time.monotonic() - began, "bytes": size, "ranks": ticket.world_size}
                self._note("saved", ticket, at=time.time(), **durable)
            else:
                saving.await_commit(ticket)
        except BaseException as error:
            saving.give_up(ticket, error)
            raise
        self.figures.durable_s = time.monotonic() - began
        self.figures.saves += 1
        if ticket.rank == 0:
            self._shelf.committed(ticket.id)
            self._thread.submit(self._prune)
            if self._tiers and (self._promotion is None or self._promotion.done()):
                self._promotion = self._promoter.submit(self._promote)

    def _write_apart(
        self,
        nodes: Nodes,
        ticket: saving.Ticket,
        source: Any,
        layout: Layout,
        states: tuple[Mapping[str, Any], Mapping[str, Any]],
        began: float,
    ) -> None:
        """The same where each node has a folder of its own: every rank takes part in the commit, and in what follows."""
        nodes.agree(lambda: self._take_lock() if self._leads else None)
        entry, manifest = nodes.save(ticket, source, layout, *states)
        self.figures.durable_s = time.monotonic() - began
        self.figures.saves += 1
        if ticket.rank == 0:
            durable = {"durable_s": self.figures.durable_s, "bytes": manifest.size, "ranks": ticket.world_size}
            self._note("saved", ticket, at=time.time(), **durable)
        self._newest = entry.id
        self._thread.submit(prune_apart, nodes, self._shelf, entry, self._say)
        if self._tiers:
            self._promoter.submit(promote_apart, nodes, self._tiers, entry, lambda: self._newest, self._say)

    def _promote(self) -> None:
        """The newest one to every tier, until there is no newer: those that were overtaken are left out."""
        done = ""
        while (newest := folder.entries(self.directory)[-1:]) and newest[0].id != done:
            done = newest[0].id
            for tier in self._tiers:
                began = time.monotonic()
                try:
                    if tier.promote(newest[0]):
                        self._note("copied", newest[0], place=tier.directory, took_s=time.monotonic() - began)
                except (OSError, CheckpointError) as error:
                    self._note("uncopied", newest[0], place=tier.directory, reason=str(error))
                    self._say(f"step {newest[0].step} was not copied to {tier.directory}: {error}")

    def _prune(self) -> None:
        whole, broken = set(self._shelf.verified), set(self._shelf.damaged)
        try:
            gone = self._shelf.prune()
            verified = sorted(self._shelf.verified - whole)
            for state, ids in (("verified", verified), ("removed", [entry.id for entry in gone])):
                if ids:
                    self._note(state, ids=ids)
            for id_ in self._shelf.damaged.keys() - broken:
                self._note("damaged", ids=[id_], reason=self._shelf.damaged[id_])
        except OSError as error:
            self._say(f"old checkpoints could not be removed: {error}")

    def _settle(self, *, strict: bool, block: bool = False) -> None:
        """Look at the save in flight: forget one that is done, tell or raise one that failed."""
        if self._flight is None or not (block or self._flight.done()):
            return
        self._throttle.hurry()
        flight, self._flight = self._flight, None
        error = flight.exception()
        if error is None:
            if self._auto and self.options.mtbf is not None:
                self._interval = young_daly(self.figures.stall_s, self.options.mtbf)
            return
        self.figures.failures += 1
        reason = f"the save of step {self.figures.step} failed: {error}"
        self._note("failed", step=self.figures.step, id=self.figures.id, reason=str(error))
        self._tell()
        if strict or not isinstance(error, OSError | SaveFailed):
            raise SaveFailed(reason) from error
        self._say(f"{reason}; training goes on, the last committed checkpoint is intact")

    def _note(self, state: str, what: folder.Entry | saving.Ticket | None = None, **fields: Any) -> None:
        """For the job's page: what became of a checkpoint."""
        if self._ranks.rank == 0:
            which = {} if what is None else {"step": what.step, "id": what.id}
            self._untold.append({"state": state, "at": time.time(), **which, **fields})

    def _tell(self) -> None:
        """From the loop's own thread: the pipe has one writer a rank."""
        while self._untold:
            tell("checkpoint", self._untold.popleft())

    def _tell_policy(self, keep: int) -> None:
        timed = self._every_steps is None
        self._note(
            "policy",
            directory=self.directory,
            every_steps=self._every_steps,
            interval_s=self._interval if timed else None,
            auto=self._auto,
            mtbf_s=self.options.mtbf,
            keep=keep,
            tiers=[tier.directory for tier in self._tiers],
        )

    # ------------------------------------------------------------------------------------------------------ set-up

    def _open(self) -> str:
        """Take the folder, clear what a dead owner left, and agree on this run's ids."""
        fault = ""
        if self._leads:
            try:
                self._take_lock()
            except FolderInUse as error:
                fault = error.message
            except OSError as error:
                self._say(f"{self.directory} cannot be written ({error}); saves will fail until it can")
        if self._ranks.rank == 0:
            fault = fault or self._take_tiers()
        if faults := [said for said in self._ranks.all(fault) if said]:
            for tier in self._tiers:
                tier.close()
            self._lock.release()
            raise FolderInUse(faults[0])
        ours = self._nodes.entries() if self._nodes is not None else []
        series = ""
        if self._ranks.rank == 0:
            series = folder.new_series([*candidates(self.directory, self._tiers)[0], *ours])
        series = self._ranks.first(series)
        if self._locked:
            folder.clear(self.directory, series)
        return series

    def _take_tiers(self) -> str:
        """Who else is at work in one of them; a tier that cannot be reached now is taken before the first copy."""
        for tier in self._tiers:
            try:
                tier.take()
            except FolderInUse as error:
                return error.message
            except OSError as error:
                self._say(f"{tier.directory} does not answer ({error}); copies are tried after each save")
        return ""

    def _take_lock(self) -> None:
        if not self._locked:
            os.makedirs(self.directory, exist_ok=True)
            self._lock.take()
            self._locked = True

    def _capture(self) -> tuple[Captured, list[Placed], Layout]:
        captured = Captured()
        for part in self._parts:
            part.capture(captured)
        mine = written_here(captured.placed, self._ranks.rank, self._ranks.world_size)
        mine.sort(key=lambda item: -item.local.element_size())
        boxes = tuple(item.box for item in mine)
        if self._layout is None or self._layout.boxes != boxes:
            self._layout = make_layout(saving.shard_name(self._ranks.rank), boxes)
        return captured, mine, self._layout

    def _prepare(self) -> None:
        """After the first step, when the optimizer has its state: refuse what cannot be saved, and make the buffer."""
        _, _, layout = self._capture()
        self._request(layout)

    def _request(self, layout: Layout) -> None:
        """Have the buffer made in the background, if there is memory for it."""
        self._staging = None
        ranks_here = max(1, min(self._ranks.world_size, self._contract.local_world_size))
        short = short_of_memory(layout.size, ranks_here, self.options.reserve, available())
        if self.options.asynchronous and not short:
            self._staging = self._thread.submit(
                Staging, layout, self._on_gpu, max(1, min(_COPIERS, cores() // ranks_here))
            )
        elif short:
            self._say(f"no asynchronous saves: {short}; each save is written while the loop waits")
            self.options = replace(self.options, asynchronous=False)

    def _stage(self, layout: Layout) -> Staging | None:
        if not self.options.asynchronous:
            return None
        if self._staging is not None and not self._staging.result().fits(layout):
            self._staging.result().close()
            self._staging = None
        if self._staging is None:
            self._request(layout)
        return self._staging.result() if self._staging is not None else None

    def _asked(self, now: float) -> bool:
        """Whether someone put ``save-now`` into the folder. Looked at once a second, by rank 0."""
        if self._ranks.rank != 0 or now - self._asked_at < 1:
            return False
        self._asked_at = now
        try:
            os.unlink(os.path.join(self.directory, folder.SAVE_NOW))
        except OSError:  # not there, or not ours to remove
            return False
        return True

    def _due(self, now: float) -> bool:
        return self._ranks.rank == 0 and self._flight is None and now - self._last_began >= self._interval

    def _say(self, text: str) -> None:
        sys.stderr.write(f"penstock: checkpoint: rank {self._ranks.rank}: {text}\n")


def young_daly(cost: float, mtbf: float) -> float:
    """Seconds between saves that lose least: sqrt(2 cost mtbf), which holds while a save costs little beside mtbf."""
    return max(1.0, math.sqrt(2 * max(cost, 1e-3) * mtbf))
