"""Nodes that fail in a replay: drawn, or from a file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from heapq import merge
from itertools import count
from operator import attrgetter
from random import Random

from penstock.base.errors import InvalidInput, Problem
from penstock.capacity.replay import Failure

_LATEST_S = 1000 * 365.25 * 86400.0


def by_mtbf(nodes: int, mtbf_s: float, repair_s: float, rng: Random) -> Iterator[Failure]:
    """Exponential time between failures of each node, each repaired in ``repair_s``; in the order of time, without end.
    Drawn node by node, so one more node leaves the others' failures as they are.
    """
    base = rng.getrandbits(64)
    return merge(*(_of_node(node, mtbf_s, repair_s, base) for node in range(nodes)), key=attrgetter("at"))


def _of_node(node: int, mtbf_s: float, repair_s: float, base: int) -> Iterator[Failure]:
    at = 0.0
    for number in count():
        at += Random(f"{base}/{node}/{number}").expovariate(1 / mtbf_s)  # one kept for each node would be 2.5 kB
        yield Failure(node, at, at + repair_s)
        at += repair_s


def from_file(text: str, nodes: int) -> Iterator[Failure]:
    """CSV with columns ``node`` (0 is the first), ``at_s`` and ``until_s``, seconds after the first submission."""
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in ("node", "at_s", "until_s") if name not in (reader.fieldnames or ())]
    problems = [Problem(name, "this column is missing", 1) for name in missing]
    found = []
    for row in reader if not missing else ():
        try:
            failure = Failure(int(row["node"]), float(row["at_s"]), float(row["until_s"]))
        except (TypeError, ValueError):
            problems.append(Problem("", "not a node number and two times", reader.line_num))
            continue
        if not 0 <= failure.node < nodes:
            problems.append(Problem("node", f"there is no node {failure.node} of {nodes}", reader.line_num))
        elif not 0 <= failure.at <= failure.until:
            problems.append(Problem("until_s", "ends before it begins, or begins before 0", reader.line_num))
        elif failure.until > _LATEST_S:
            problems.append(
                Problem("until_s", "is more than a thousand years after the first submission", reader.line_num)
            )
        else:
            found.append(failure)
    if problems:
        raise InvalidInput("the failure file cannot be used", details=problems)
    yield from sorted(found, key=attrgetter("at"))
