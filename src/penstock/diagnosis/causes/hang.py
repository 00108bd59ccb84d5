"""Trainings that stand still: who does not come to the collective that the others wait in, and why."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from penstock.diagnosis.causes.rule import Found, Proof, job, named, ranks, said
from penstock.diagnosis.features import Features, View, gauge, middle
from penstock.diagnosis.state import Culprit, Happened, Rank

_COLLECTIVES = frozenset(
    {"all_reduce", "barrier", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor",
     "all_to_all", "reduce", "gather", "scatter", "recv", "send", "_engine_run_backward", "synchronize"}
)  # fmt: skip
_WAITED_IN = ("distributed_c10d.py", "penstock/worker/watch.py", " (watch.py")  # what a plain ``wait`` must be of
_SILENT = 4.0  # intervals of its counters: everything in the process stands still
_AGAIN = 0.2  # of the segments sent are sent again: what is sent does not arrive
_TOLD = "RankHung"


def hangs(features: Features) -> Iterator[Found]:
    hang = _hang(features)
    if hang is None:
        return
    odd = _another(features)
    views = [view for view in features.ranks if view.rank in (odd or _blamed(features, hang))]
    at = ranks(view.rank for view in views) or job(features)
    words = said(hang.message)
    if not views:
        yield from _nobody(features, words)
        return
    stack = [f"rank {view.rank} is in {view.source.stack[0]}" for view in views if view.source.stack]
    stuck = [view for view in views if view.source.state == "D"]
    dumb = [view for view in views if view.source.state not in {"T", "t", "D", "gone", "Z"} and _silent(features, view)]
    another = bool(odd) or hang.facts.get("clue") == "another collective"
    if stuck:
        words = (
            f"{named(v.rank for v in stuck)} is stuck in the kernel (state D), as who waits for a file server is",
            *words,
        )
        yield Found(
            "nfs_hang",
            Proof.COUNTER,
            0.6,
            ranks(v.rank for v in stuck),
            words,
            said("" if _nfs(features) else "no kernel line names a file server"),
        )
    if dumb:
        quiet = "its process is alive, and nothing in it gets on: its own counters are silent too"
        yield Found("gil_lock", Proof.FACT, 0.5, ranks(v.rank for v in dumb), said(quiet, *stack, *words))
    if another:
        calls = f"{named(odd)} has called {_call(views[0].source)}, which the others have not" if odd else ""
        yield Found("collective_mismatch", Proof.FACT, 0.5, at, said(calls, *words, *stack))
    yield Found(
        "collective_hang",
        Proof.FACT,
        0.3,
        at,
        said(*words, _behind(features, views), *stack),
        said(
            "it is in another collective than its peers, rather than late" if another else "",
            "everything in its process stands still: it is held up, not late" if dumb else "",
            "it is stuck in the kernel" if stuck else "",
        ),
    )


def _hang(features: Features) -> Happened | None:
    """The last one that was found and did not end by itself."""
    last = None
    for event in features.evidence.happened:
        if event.what in {_TOLD, "Hung"} and (event.facts or last is None):
            last = event
        elif event.what == "HangEnded":
            last = None
    return last


def _blamed(features: Features, hang: Happened) -> set[int]:
    told = {rank for rank in hang.facts.get("ranks") or () if isinstance(rank, int)}
    if told:
        return told
    known = {
        view.rank: view.source.last_collective for view in features.ranks if view.source.last_collective is not None
    }
    if len(known) == len(features.ranks) > 1 and min(known.values()) < max(known.values()):
        return {rank for rank, number in known.items() if number == min(known.values())}
    apart = {view.rank for view in features.ranks if view.source.stack and not waits(view.source)}
    return apart if 0 < len(apart) < len(features.ranks) else set()


def waits(rank: Rank) -> bool:
    """Whether it is in a collective, or where ranks wait for one."""
    for frame in rank.stack[:8]:
        name, _, place = frame.partition(" (")
        if name in _COLLECTIVES or (name == "wait" and any(file in f" ({place}" for file in _WAITED_IN)):
            return True
    return False


def _call(rank: Rank) -> str:
    """The collective that it has called, by torch's name; a backward pass waits for its gradients' all_reduce."""
    for frame in rank.stack[:12]:
        name, _, place = frame.partition(" (")
        if "distributed_c10d.py" in place and name in _COLLECTIVES:
            return name
        if name == "_engine_run_backward":
            return "all_reduce"
    return ""


def _another(features: Features) -> set[int]:
    """Those few ranks that are in another collective than the others, where every rank is in one."""
    calls = {view.rank: _call(view.source) for view in features.ranks}
    counts = Counter(calls.values()).most_common()
    if len(counts) < 2 or "" in calls.values():
        return set()
    if counts[0][1] == counts[1][1]:  # as many in one as in the other: the gradients' is the usual one
        return (
            {rank for rank, call in calls.items() if call != "all_reduce"}
            if len(counts) == 2 and "all_reduce" in calls.values()
            else set()
        )
    return {rank for rank, call in calls.items() if call != counts[0][0]}


def _behind(features: Features, views: Sequence[View]) -> str:
    known = [view.source.last_collective for view in features.ranks if view.source.last_collective is not None]
    own = [view.source.last_collective for view in views if view.source.last_collective is not None]
    if not known or not own or min(own) >= max(known):
        return ""
    return f"its last collective is number {min(own)}, the others have begun number {max(known)}"


def _silent(features: Features, view: View) -> bool:
    """Its counters stopped when it did; those of its peers went on."""
    own = [reading.at for reading in view.source.counters]
    others = [other.source.counters[-1].at for other in features.ranks if other is not view and other.source.counters]
    gaps = middle(new - old for old, new in itertools.pairwise(own))
    return bool(own and others and gaps) and max(others) - max(own) >= _SILENT * (gaps or 1.0)


def _nfs(features: Features) -> bool:
    return any("nfs: server" in line.text for node in features.evidence.nodes for line in node.kernel)


def _nobody(features: Features, words: tuple[str, ...]) -> Iterator[Found]:
    """All are in the collective and none gets on: what they send does not arrive."""
    lost = {view.rank: _again(view) for view in features.ranks}
    worst = [rank for rank, part in lost.items() if part >= _AGAIN]
    if worst:
        told = f"{named(worst)} sends the same again and again, and it does not arrive; small packets do"
        yield Found("mtu_mismatch", Proof.TIMING, 0.5, _only(features, worst), (told, *words))
        yield Found(
            "ib_link_down", Proof.TIMING, 0.2, _only(features, worst), (told, *words), ("no link says that it is down",)
        )
    else:
        told = "every rank is in the collective and none gets on: the way between them is cut"
        yield Found("ib_link_down", Proof.TIMING, 0.3, job(features), (told, *words), ("no link says that it is down",))
    yield Found("collective_hang", Proof.TIMING, 0.1, job(features), words, ("no rank can be named that did not come",))


def _only(features: Features, worst: Sequence[int]) -> tuple[Culprit, ...]:
    return ranks(worst) if len(worst) < len(features.ranks) else job(features)


def _again(view: View) -> float:
    """Of what it sent in the last third of its counters, how much was sent again."""
    sent, again = gauge(view.source.counters, "segments_out"), gauge(view.source.counters, "retransmits")
    tail = max(2, len(sent) // 3)
    if len(sent) < 3 or len(again) != len(sent):
        return 0.0
    out = sent[-1][1] - sent[-tail][1]
    return (again[-1][1] - again[-tail][1]) / out if out >= 3 else 0.0


RULES = (hangs,)
