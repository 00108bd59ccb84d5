"""Flight Recorder dumps, as PyTorch writes them (pickles), to what a planner reads. Pure, and nothing in them is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.base.text import one_line
from penstock.training import dumps
from penstock.training.state import Flight, Group


def load(data: bytes) -> Mapping[str, Any]:
    """Raises ValueError for what is no dump."""
    try:
        found = dumps.load(data)
    except ValueError as error:
        raise ValueError(f"this is no Flight Recorder dump: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("entries"), list):
        raise ValueError("this is no Flight Recorder dump: it has no entries")  # noqa: TRY004 - what is wrong is its content
    return found


Begun = tuple[int, float, str]  # a collective's number, when it was begun, what it is


def reduce(dump: Mapping[str, Any]) -> dict[str, Begun]:
    """Of each communicator its newest collective."""
    last: dict[str, Begun] = {}
    for entry in dump.get("entries") or ():
        if not isinstance(entry, Mapping) or entry.get("is_p2p"):
            continue
        group, number, begun = entry.get("process_group"), entry.get("collective_seq_id"), entry.get("time_created_ns")
        if not isinstance(number, int) or not isinstance(begun, int | float):
            continue
        name = "/".join(map(str, group)) if isinstance(group, list | tuple) else str(group)
        if name not in last or number > last[name][0]:
            last[name] = (number, begun / 1e9, one_line(str(entry.get("profiling_name") or ""), 60))
    return last


def gather(ranks: Iterable[tuple[int, Mapping[str, Begun]]]) -> Flight:
    """All ranks' reduced dumps together."""
    heard: set[int] = set()
    last: dict[str, dict[int, int]] = {}
    begun: dict[str, dict[int, float]] = {}
    called: dict[str, dict[int, str]] = {}
    for rank, groups in ranks:
        heard.add(rank)
        for name, (number, at, what) in groups.items():
            last.setdefault(name, {})[rank] = number
            begun.setdefault(name, {})[rank] = at
            called.setdefault(name, {})[rank] = what
    return Flight(frozenset(heard), tuple(Group(name, last[name], begun[name], called[name]) for name in sorted(last)))
