"""Looks at a job's ranks, and ends them, through sessions inside its allocation: the same on every engine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from penstock.base.errors import PenstockError
from penstock.base.text import one_line
from penstock.engines.spec import Engine, SessionRequest
from penstock.training import flight
from penstock.training.state import Flight, Frame, Look
from penstock.training.waiting import Sample

LOOK_S = 30.0  # for one node's answer
AT_ONCE = 16  # sessions
ANSWER_BYTES = 8 << 20
BETWEEN_S = 0.5
LEFTOVER_S = 1.0  # what a launcher has to end the other ranks by itself
_GROWN = ("cpu_s", "run_delay_s", "throttled_s", "io_wait_s", "read_bytes", "write_bytes")
_MARK = b"\npenstock-probe "
# Any Python there is, without the user's site packages and start-up files.
_PYTHON = """
for p in python3 python /usr/bin/python3; do
  if command -v "$p" >/dev/null 2>&1; then exec "$p" -I -S -c "$1" "$2"; fi
done
echo "there is no Python"
exit 127
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A running attempt, as its ranks are reached. ``nodes`` in the order of node ranks, ``procs`` ranks on each."""

    engine: Engine
    attempt_id: str
    run_dir: str
    nodes: tuple[str, ...]
    procs: int

    @property
    def world(self) -> int:
        return len(self.nodes) * self.procs

    def node_of(self, rank: int) -> str:
        return self.nodes[rank // self.procs] if 0 <= rank < self.world else ""


@dataclass(frozen=True, slots=True)
class Seen:
    looks: tuple[Look, ...]
    flight: Flight
    silent: Mapping[str, str]  # nodes that gave no answer, and why


async def look(place: Place, *, with_flight: bool = True, between_s: float = BETWEEN_S) -> Seen:
    """Every rank twice, ``between_s`` apart. Nodes that are one machine answer for each other, and are not asked again."""
    asked = {
        "op": "look", "attempt": place.attempt_id, "between_s": between_s, "flight": with_flight, "spies": _spies(),
    }  # fmt: skip
    looks: dict[int, Look] = {}
    dumps: dict[int, Mapping[str, flight.Begun]] = {}
    silent: dict[str, str] = {}
    for nodes in (place.nodes[:1], place.nodes[1:]):
        left = [node for node in nodes if any(r not in looks for r in range(place.world) if place.node_of(r) == node)]
        for node, answer in await _ask_all(place, dict.fromkeys(left, asked)):
            if isinstance(answer, str):
                silent[node] = answer
                continue
            for told in answer.get("ranks") or ():
                if (one := _look(told, place)) is not None:
                    looks[one.rank] = one
                    if isinstance(told.get("flight"), Mapping):
                        dumps[one.rank] = flight.reduce(told["flight"])
    return Seen(tuple(looks[rank] for rank in sorted(looks)), flight.gather(dumps.items()), silent)


async def sample(place: Place, count: int, for_s: float) -> dict[int, list[Sample]]:
    """Every rank at ``count`` moments within ``for_s``; those that could be seen."""
    orders = {
        node: {
            "op": "sample", "attempt": place.attempt_id, "count": count, "for_s": for_s, "spies": _spies(),
            "ranks": [rank for rank in range(place.world) if place.node_of(rank) == node],
        }
        for node in place.nodes
    }  # fmt: skip
    found: dict[int, list[Sample]] = {}
    for node, answer in await _ask_all(place, orders):
        told = answer.get("ranks") if isinstance(answer, dict) else None
        for rank, samples in told.items() if isinstance(told, Mapping) else ():
            if str(rank).isdigit() and place.node_of(int(rank)) == node:
                found[int(rank)] = _samples(samples, count)
    return found


def _samples(told: object, most: int) -> list[Sample]:
    """From the job's own user: what is none is left out."""
    found = []
    for each in told[:most] if isinstance(told, list) else ():
        try:
            state, frames = each
            found.append(Sample(str(state)[:1], tuple(_frame(frame) for frame in frames[:8])))
        except (TypeError, ValueError):
            continue
    return found


def _frame(told: Sequence[Any]) -> Frame:
    name, file, line = told
    return Frame(one_line(str(name)), one_line(str(file), 500), int(line))


async def end(place: Place, looks: Sequence[Look], first: Iterable[int]) -> int:
    """SIGKILL to the ranks named ``first``, then to whatever of the others is left; how many processes were ended."""
    named = set(first)
    orders = {}
    for node in {look.node for look in looks}:
        here = [look for look in looks if look.node == node]
        orders[node] = {
            "op": "end",
            "first": [(look.pid, look.start) for look in here if look.rank in named],
            "all": [(look.pid, look.start) for look in here],
            "wait_s": LEFTOVER_S,
        }
    answers = await _ask_all(place, orders)
    return sum(len(answer.get("ended") or ()) for _, answer in answers if not isinstance(answer, str))


async def _ask_all(place: Place, orders: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any] | str]]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(node: str, asked: Mapping[str, Any]) -> tuple[str, dict[str, Any] | str]:
        async with gate:
            try:
                return node, await _ask(place, node, asked)
            except TimeoutError:
                return node, f"{node} did not answer in time"
            except (PenstockError, OSError) as error:
                return node, f"{node}: {one_line(str(error))}"

    return list(await asyncio.gather(*(one(node, asked) for node, asked in orders.items())))


async def _ask(place: Place, node: str, asked: Mapping[str, Any]) -> dict[str, Any] | str:
    words = ("/bin/sh", "-c", _PYTHON, "sh", _program(), json.dumps(asked))
    async with asyncio.timeout(LOOK_S + asked.get("for_s", 0.0)):
        session = await place.engine.session(place.attempt_id, place.run_dir, SessionRequest(words, node=node))
        try:
            await session.close_input()
            said = b"\n"
            while (data := await session.receive()) is not None and len(said) < ANSWER_BYTES:
                said += data
        finally:
            await session.close()
    _, found, text = said.rpartition(_MARK)
    try:
        answer = json.loads(text.partition(b"\n")[0]) if found else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return f"{node}: {one_line(said.decode('utf-8', 'replace'))[:300] or 'it said nothing'}"
    return answer


@cache
def _program() -> str:
    """probe.py, with the text of what it imports in the import's place."""
    probe, dumps = (Path(__file__).with_name(name).read_text() for name in ("probe.py", "dumps.py"))
    return probe.replace(
        "from penstock.training.dumps import load\n", dumps.replace("from __future__ import annotations\n", "")
    )


@cache
def _spies() -> list[str]:
    """Where py-spy may lie: what Penstock itself brings, which nodes that share files can run too."""
    return [os.path.join(os.path.dirname(sys.executable), "py-spy")]


def _look(told: object, place: Place) -> Look | None:
    """From the job's own user, so believed only so far: a rank of this job, of bounded words."""
    if not isinstance(told, Mapping):
        return None
    try:
        rank = int(told["rank"])
        node = place.node_of(rank)
        frames = tuple(_frame(frame) for frame in list(told["frames"])[:60])
        one = Look(
            rank, node, int(told["pid"]), int(told["start"]), str(told["state"])[:1], one_line(str(told["wait"]))[:60],
            float(told["cpu"]), int(told["io"]), frames, bool(told["moved"]), one_line(str(told["why_no_stack"]))[:200],
            float(told["over_s"]), {name: float(told["grown"][name]) for name in _GROWN if name in told["grown"]},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None
    return one if node and one.pid > 1 else None
