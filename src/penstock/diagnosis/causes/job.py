"""What the ledger tells of a job: lives that end at the same step, preemption, a node that went, a node that keeps going."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.diagnosis.causes.rule import Found, Proof, job, named, nodes, ranks, said
from penstock.diagnosis.features import Features, View
from penstock.diagnosis.state import Culprit, Happened

_RESTARTS: Final = frozenset({"Restarting", "RankRestarted", "Requeued"})
_LIVES = 3  # that ended alike before it is a loop
_PREEMPTED: Final = frozenset({"Preempted"})
_NODE: Final = frozenset({"NodeLost"})
_KILL: Final = 9


def _facts(event: Happened, *names: str) -> object:
    return next((event.facts[name] for name in names if name in event.facts), None)


def loops(features: Features) -> Iterator[Found]:
    """Restarts without progress: the last of them at the same step, or with the same last words."""
    events = [event for event in features.evidence.happened if event.what in _RESTARTS]
    exits = [event for event in features.evidence.happened if event.what == "RankExited"]
    if len(events) < _LIVES - 1 or any(event.what in _PREEMPTED for event in features.evidence.happened):
        return
    steps = [step for event in events if (step := _facts(event, "step", "last_step", "progress")) is not None]
    same = len(steps) >= 2 and len(set(map(str, steps[-_LIVES:]))) == 1
    codes = {(_facts(event, "rank"), _facts(event, "exit_code"), _facts(event, "signal")) for event in exits[-_LIVES:]}
    alike = len(exits) >= 2 and len(codes) == 1
    if not same and not alike:
        return
    culprit = next(iter(codes))[0] if alike else None
    yield Found(
        "restart_loop",
        Proof.FACT,
        0.2,
        ranks([culprit]) if isinstance(culprit, int) else job(features),
        said(
            f"it was started again {len(events)} times",
            f"and came to step {steps[-1]} each time" if same else "",
            f"rank {culprit} ended in the same way each time" if alike else "",
        ),
    )


def taken(features: Features) -> Iterator[Found]:
    """The scheduler took its place away."""
    events = [event for event in features.evidence.happened if event.what in _PREEMPTED]
    if events:
        yield Found(
            "preempted",
            Proof.FACT,
            0.9,
            job(features),
            said(events[-1].message or "its place was given to another job"),
        )


def gone(features: Features) -> Iterator[Found]:
    """A node that is not heard of any more."""
    events = [event for event in features.evidence.happened if event.what in _NODE]
    names = sorted({str(_facts(event, "node") or "") for event in events} - {""})
    if events:
        culprits = nodes(names) or _where_gone(features)
        yield Found("node_down", Proof.FACT, 0.9, culprits, said(events[-1].message or "a node was lost"))


def vanished(features: Features) -> Iterator[Found]:
    """A rank whose process was ended from outside, without a word of it or of its kernel: as when its host goes."""
    if features.evidence.phase == "Succeeded" or any(e.what in _PREEMPTED | _NODE for e in features.evidence.happened):
        return
    killed = [v for v in features.ranks if v.source.signal == _KILL or v.source.exit_code == 128 + _KILL]
    killed = [
        v
        for v in killed
        if not any(_last_words(line.text) for line in v.source.lines) and not _ended_by_kernel(features, v)
    ]
    if not killed or len(killed) * 2 > max(2, len(features.ranks)):
        return
    where = {view.node for view in killed}
    left = {view.node for view in features.ranks if view not in killed}
    yield Found(
        "node_down",
        Proof.TIMING,
        0.6,
        ranks(view.rank for view in killed),
        said(
            f"{named(v.rank for v in killed)} ended at once (signal 9), without a word in its log",
            "its kernel says nothing of it either: it did not want memory",
        ),
        said("other ranks on its node went on" if where & left - {""} else ""),
    )


def _last_words(text: str) -> bool:
    return "Error" in text or "Traceback" in text or "rror:" in text


def _ended_by_kernel(features: Features, view: View) -> bool:
    node = features.node(view.node)
    if node is None:
        return False
    return any("ut of memory" in line.text for line in node.kernel) or any(
        f.rule == "OutOfMemory" for f in node.findings
    )


def out_of_memory(features: Features) -> Iterator[Found]:
    """Its engine ended it for that."""
    events = [event for event in features.evidence.happened if event.what == "OutOfMemory"]
    if events:
        rank = _facts(events[-1], "rank")
        culprits = ranks([rank]) if isinstance(rank, int) else nodes(v.node for v in features.ranks) or job(features)
        yield Found(
            "host_oom",
            Proof.FACT,
            0.6,
            culprits,
            said(events[-1].message or "it was ended: its memory limit was reached"),
        )


def _where_gone(features: Features) -> tuple[Culprit, ...]:
    """Nodes of which every rank is gone."""
    where = {view.node for view in features.ranks if view.source.state == "gone"}
    where -= {view.node for view in features.ranks if view.source.state != "gone"}
    return nodes(where) or job(features)


def lemons(features: Features) -> Iterator[Found]:
    """A node whose jobs fail more often than others', as its labels or findings tell."""
    for node in features.evidence.nodes:
        for finding in node.findings:
            if "lemon" in finding.rule.lower():
                yield Found(
                    "lemon_node", Proof.COUNTER, 0.5, nodes([node.name]), said(finding.message, *finding.evidence[:2])
                )


RULES = (loops, taken, gone, vanished, out_of_memory, lemons)
