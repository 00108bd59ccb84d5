"""Flight Recorder dumps, as PyTorch writes them (pickles), to what a planner reads. Pure, and nothing in them is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def reduce(dump: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """Of each communicator: the newest collective's number, and when it was begun."""
    last: dict[str, tuple[int, float]] = {}
    for entry in dump.get("entries") or ():
        if not isinstance(entry, Mapping) or entry.get("is_p2p"):
            continue
        group, number, begun = entry.get("process_group"), entry.get("collective_seq_id"), entry.get("time_created_ns")
        if not isinstance(number, int) or not isinstance(begun, int | float):
            continue
        name = "/".join(map(str, group)) if isinstance(group, list | tuple) else str(group)
        if name not in last or number > last[name][0]:
            last[name] = (number, begun / 1e9)
    return last


def gather(ranks: Iterable[tuple[int, Mapping[str, tuple[int, float]]]]) -> Flight:
    """All ranks' reduced dumps together."""
    heard: set[int] = set()
    last: dict[str, dict[int, int]] = {}
    begun: dict[str, dict[int, float]] = {}
    for rank, groups in ranks:
        heard.add(rank)
        for name, (number, at) in groups.items():
            last.setdefault(name, {})[rank] = number
            begun.setdefault(name, {})[rank] = at
    return Flight(frozenset(heard), tuple(Group(name, last[name], begun[name]) for name in sorted(last)))
