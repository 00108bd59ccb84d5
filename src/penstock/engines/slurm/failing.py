"""Which rank brought the ranks down, at which step, and what it wrote last, of each life of an attempt: from its run folder.

A life is from a start of all ranks to their end; the launcher begins the next one in place. Each rank's end has a line that
says how long its log and its reports were by then, so that no clock has to tell what was written in which life. All of it
is the job's user's own, and believed of that job alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.base.reasons import Reason
from penstock.engines.local.ending import Failure as Cause
from penstock.engines.local.ending import root_cause
from penstock.engines.local.failing import tail_of
from penstock.engines.slurm import apart, reading
from penstock.engines.slurm.attempts import Attempt
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.engines.slurm.files import Files, Want
from penstock.engines.slurm.logs import reports
from penstock.engines.slurm.restarts import Start, starts
from penstock.engines.slurm.spec import SlurmConfig, Transport
from penstock.engines.spec import Failure, Observation, RankExit, Stage

TOLD = 8  # failures, the newest
_AT_ONCE, _MOST = 8, 64  # ends of which this is read: of so many more at one look it is not
_BY_THEMSELVES = frozenset({Reason.Failed, Reason.OutOfMemory})
_MOST_LIVES = 1000  # of a run
_MOST_RANKS = 512  # whose ends and reports are read
_LINES_BYTES = 1 << 16
_TAIL_BYTES = 8192
_REPORTS_BYTES = 1 << 16
_SKEW_S = 5.0  # between a node's clock and its controller's
_SIZE = re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Exit:
    """A rank's end. ``log`` and ``reports``: bytes that it had written by then, where that was told."""

    rank: RankExit
    log: int | None = None
    reports: int | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """``index`` is of the attempt; ``restart`` of its run."""

    index: int
    restart: int
    began: float
    over: bool
    exits: tuple[Exit, ...] = ()

    def cause(self) -> Exit | None:
        bad = [one for one in self.exits if one.rank.exit_code != 0 and one.rank.ended_at is not None]
        causes = [Cause("", one.rank.exit_code, one.rank.signal, one.rank.ended_at or 0.0) for one in bad]
        root = root_cause(causes)
        return None if root is None else bad[causes.index(root)]


def lives(begun: Sequence[Start], ends: Mapping[int, Sequence[Exit]], began: float, *, requeues: int) -> list[Life]:
    """Those of the run after so many ``requeues``; of the last one it is not known here whether it is over."""
    before = max((one.total for one in begun if one.requeues < requeues), default=0)
    mine = {one.restart: one for one in begun if one.requeues == requeues}
    exits = [exit_ for rank in ends.values() for exit_ in rank]
    last = min(max([0, *mine, *(exit_.rank.restarts for exit_ in exits)]), _MOST_LIVES)
    found: list[Life] = []
    for number in range(last + 1):
        at = mine[number].at if number in mine else found[-1].began if found else began
        here = tuple(exit_ for exit_ in exits if exit_.rank.restarts == number)
        found.append(Life(requeues + before + number, number, at, number < last, here))
    return found


async def read(files: Files, world: int, began: float, requeues: int, prefix: str) -> tuple[list[Start], list[Life]]:
    """What the run folder tells of the current run. Raises Unreachable."""
    ranks = range(min(world, _MOST_RANKS))
    names = ["restarts", *(f"ranks/{rank}" for rank in ranks)]
    said = [data.decode("utf-8", "replace") for data in await files.read([Want(n, 0, _LINES_BYTES) for n in names])]
    begun = starts(said[0])
    requeues = max([requeues, *(one.requeues for one in begun)])
    ends = {rank: _exits(text, rank, prefix) for rank, text in zip(ranks, said[1:], strict=True)}
    return begun, lives(begun, ends, began, requeues=requeues)


async def failures(files: Files, known: Sequence[Life], *, over: bool) -> tuple[Failure, ...]:
    """Of the newest lives that failed. ``over``: the last one has failed too. Raises Unreachable."""
    ended = [(n, life) for n, life in enumerate(known) if life.over or over][-TOLD:]
    found = []
    for n, life in ended:
        root = life.cause()
        if root is None:
            continue
        earlier = {} if n == 0 else _sizes(known[n - 1])
        steps = [await _reached(files, one, earlier, life.began) for one in life.exits]
        told = root.rank
        at = told.ended_at or life.began
        found.append(
            Failure(
                life.index, told.rank, told.node, told.exit_code, told.signal,
                max((step for step in steps if step is not None), default=None),
                at, round(max(at - life.began, 0.0), 3), await _last_words(files, root, earlier),
            )
        )  # fmt: skip
    return tuple(found)


def _sizes(life: Life) -> dict[int, Exit]:
    return {one.rank.rank: one for one in life.exits}


def _exits(text: str, rank: int, prefix: str) -> list[Exit]:
    found = (_exit(line.split(" "), rank, prefix) for line in text.splitlines())
    return [one for one in found if one is not None]


def _exit(words: Sequence[str], rank: int, prefix: str) -> Exit | None:
    if len(words) < 5 or not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", words[3]) or not words[4].isdecimal():
        return None
    number = int(words[2]) if words[2].isdecimal() and len(words[2]) < 4 else 0
    code = int(words[1]) if words[1].isdecimal() and len(words[1]) < 4 and not number else None
    sizes = [*(int(word) if _SIZE.fullmatch(word) else None for word in words[5:7]), None, None]
    ended = RankExit(rank, prefix + words[0], code, number or None, int(words[4][:7]), float(words[3]))
    return Exit(ended, sizes[0], sizes[1])


async def _reached(files: Files, one: Exit, earlier: Mapping[int, Exit], began: float) -> int | None:
    """The highest step that a rank reported in a life."""
    rank = one.rank.rank
    known = earlier.get(rank)
    data = await _piece(files, f"progress/{rank}", known.reports if known else 0, one.reports, _REPORTS_BYTES)
    now = one.rank.ended_at or began
    since = began - _SKEW_S if one.reports is None else 0.0  # of a run before a requeue
    told = [report for report in reports(data, rank, now) if report["at"] >= since]
    return max((report["step"] for report in told if report["step"] is not None), default=None)


async def _last_words(files: Files, one: Exit, earlier: Mapping[int, Exit]) -> tuple[str, ...]:
    known = earlier.get(one.rank.rank)
    data = await _piece(files, f"logs/{one.rank.rank}.out", known.log if known else 0, one.log, _TAIL_BYTES)
    return tuple(tail_of(data.decode("utf-8", "replace")))


async def _piece(files: Files, name: str, begin: int | None, end: int | None, most: int) -> bytes:
    """Of a file from ``begin`` to ``end`` (None: as it is now) the last ``most`` bytes."""
    if end is None:
        found = await files.look()
        end = found[name].size if name in found else 0
    begin = max(begin or 0, end - most)
    if end <= begin:
        return b""
    return (await files.read([Want(name, begin, end - begin)]))[0]


class Failing:
    """``took`` and ``ended`` add to an observation what the run folder tells of lives that are over."""

    def __init__(self, config: SlurmConfig, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def took(self, attempt: Attempt, seen: Observation) -> Observation:
        """Of one that runs, and whose ranks were started again in place."""
        try:
            return await self._told(attempt, seen, over=False)
        except (Unreachable, Refused, OSError, LookupError):
            attempt.again = True  # at a later look
            return seen

    async def all_ended(self, ends: Sequence[tuple[Attempt, Observation]]) -> list[tuple[Attempt, Observation]]:
        """Of those that are over; what cannot be read goes untold."""

        async def one(attempt: Attempt, seen: Observation) -> tuple[Attempt, Observation]:
            over = seen.reason in _BY_THEMSELVES
            wanted = attempt.retried and (over or (attempt.asked.shimmed and seen.restarts > 0))
            if not wanted or seen.stage is not Stage.EXITED:
                return attempt, seen
            async with self._gate:
                try:
                    return attempt, await self._told(attempt, seen, over=over)
                except (Unreachable, Refused, OSError, LookupError):
                    return attempt, seen

        read = await asyncio.gather(*(one(*end) for end in ends[:_MOST]))
        return [*read, *ends[_MOST:]]

    async def _told(self, attempt: Attempt, seen: Observation, *, over: bool) -> Observation:
        asked, began = attempt.asked, seen.started_at or 0.0
        world = asked.procs * len(asked.groups)
        files = await self._files(attempt)
        try:
            if asked.shimmed:
                begun, known = await read(files, world, began, attempt.requeues, asked.prefix)
            else:
                exits = tuple(Exit(rank) for rank in seen.ranks if rank.ended_at is not None)
                begun, known = [], [Life(seen.restarts, 0, began, over, exits)]
            found = await failures(files, known, over=over)
        finally:
            await files.close()
        new = [one for one in begun if one.total > attempt.in_place]
        attempt.in_place = max([attempt.in_place, *(one.total for one in begun)])
        attempt.requeues = max([attempt.requeues, *(one.requeues for one in begun)])
        happened = _happened(new, found, last=known[-1].index if over and world > 1 else None)
        restarts = max(seen.restarts, attempt.requeues + attempt.in_place)
        return replace(seen, restarts=restarts, failures=found, happened=tuple(happened))

    async def _files(self, attempt: Attempt) -> Files:
        if self._config.shared:
            return await reading.shared(attempt, self._transport)()
        return apart.ApartFiles(attempt.run_dir, lambda: None)


def _happened(new: Iterable[Start], found: Sequence[Failure], last: int | None) -> list[Mapping[str, Any]]:
    """Restarts in place, each after the end that brought it about; and of the ``last`` life its end alone."""
    by_life = {one.restart: one for one in found}
    told: list[Mapping[str, Any]] = []
    for one in new:
        if (failed := by_life.get(one.index - 1)) is not None:
            told.append(_exited(failed))
        words = f"all ranks were started again (restart {one.index} in place)"
        told.append({"reason": Reason.RankRestarted, "message": words, "restart": one.index, "at": one.at})
    return [*told, _exited(by_life[last])] if last in by_life else told


def _exited(one: Failure) -> Mapping[str, Any]:
    message = str(Cause(f"rank {one.rank}", one.exit_code, one.signal, one.at))
    where = {"rank": one.rank, "exit_code": one.exit_code, "signal": one.signal, "node": one.node}
    return {"reason": Reason.RankExited, "message": message, "at": one.at, **where}
