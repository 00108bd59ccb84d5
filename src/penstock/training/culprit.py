"""Which rank holds the others up, from how each of them looks. Pure; ``unknown`` is an answer.

The clues in their order: a rank that is stopped, or in the kernel's uninterruptible sleep; one whose process is gone; one
that has done fewer collectives than its peers; one that has begun another one than most; one whose stack is elsewhere while the others wait in a collective; one that
has reported fewer steps. Each is believed only where it leaves somebody who waits: all ranks together are no culprit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from penstock.training.state import NO_FRAMES, Clue, Culprit, Evidence, Flight, Frame, Group, Look

BUSY_CORES = 0.5
STEPPING_CORES = 0.02
BUSY_BYTES = 256 << 10
_INNERMOST = 8  # frames in which a wait is looked for
_WAITS_IN = ("/torch/distributed/", "/torch/nn/parallel/", "/deepspeed/comm/", "/mpi4py/", "/horovod/")
_WAITS_BY = frozenset({"_engine_run_backward", "synchronize", "all_reduce", "barrier", "all_gather", "broadcast"})
_THROUGH = ("/torch/_ops.py", "/torch/utils/", "/torch/_dynamo/", "/torch/_compile.py")
_ASLEEP = ("hrtimer_nanosleep", "do_nanosleep", "clock_nanosleep")
_NAMED = 4


def waits(look: Look) -> bool:
    """Whether its stack is in a collective, or where ranks wait for one: the end of a backward pass, a synchronisation."""
    near = look.frames[:_INNERMOST]
    return any(any(part in frame.file for part in _WAITS_IN) or frame.name in _WAITS_BY for frame in near)


def held(frames: Sequence[Frame]) -> bool:
    """Whether a rank is at this moment within a collective's call, and not in what such a module has called in its turn."""
    inner = next((frame for frame in frames if not any(part in frame.file for part in _THROUGH)), None)
    return inner is not None and (any(part in inner.file for part in _WAITS_IN) or inner.name in _WAITS_BY)


def working(look: Look) -> bool:
    """Whether it gets on with something, so that its silence is no hang: files, or a stack that moves, or plain computing."""
    if look.state in "TtDXZ":
        return look.io >= BUSY_BYTES
    if look.why_no_stack == NO_FRAMES:  # its interpreter is on its way out, or in
        return True
    if look.io >= BUSY_BYTES or (look.moved and look.cpu >= STEPPING_CORES):
        return True
    return not waits(look) and look.cpu >= BUSY_CORES


def stirs(look: Look) -> bool:
    """Whether it does anything: enough while it starts, which is files and computing."""
    return look.io > 0 or look.moved or look.cpu >= STEPPING_CORES or working(look)


def find(evidence: Evidence) -> Culprit:
    """Who it is, in words that fit on a line."""
    looks = sorted(evidence.looks, key=lambda look: look.rank)
    for clue in (
        _stopped(looks, evidence.world),
        _gone(looks, evidence),
        _behind(evidence),
        _another(evidence.flight),
        _apart(looks, evidence),
    ):
        if clue is not None:
            return clue
    return _slowest(evidence) or _differ(looks) or Culprit((), Clue.NONE, _unknown(looks, evidence))


def _stopped(looks: Sequence[Look], world: int) -> Culprit | None:
    found = [look for look in looks if look.state in "Tt"]
    if found and (len(found) < len(looks) or world == 1):
        return Culprit(_ranks(found), Clue.STOPPED, f"{_called(found)} stopped by a signal (state T)")
    found = [look for look in looks if look.state == "D" and not look.moved]
    if found and len(found) < len(looks):
        place = f" in {found[0].wait}" if found[0].wait else ""
        words = f"{_called(found)} stuck in the kernel (state D{place})"
        return Culprit(_ranks(found), Clue.STOPPED, words, _nodes(found))
    return None


def _gone(looks: Sequence[Look], evidence: Evidence) -> Culprit | None:
    there = {look.rank for look in looks}
    away = [rank for rank in range(evidence.world) if rank not in there]
    if not looks or not away or evidence.silent:
        return None
    return Culprit(tuple(away), Clue.GONE, f"{_named(away)} no process any more")


def _behind(evidence: Evidence) -> Culprit | None:
    ranks = behind(evidence.flight)
    if not ranks:
        return None
    return Culprit(ranks, Clue.FLIGHT, f"{_named(ranks)} done fewer collectives than its peers (Flight Recorder)")


def _another(flight: Flight) -> Culprit | None:
    """Who has begun another collective than most of its communicator, under one number."""
    for group in flight.groups:
        called = {rank: group.called[rank] for rank in sorted(group.last) if group.called.get(rank)}
        few = _few(list(called), list(called.values()))
        if few is not None and not _late(group):
            ranks, most = few
            words = f"{_is(ranks)} in {called[ranks[0]]}, the others in {most} (Flight Recorder)"
            return Culprit(ranks, Clue.ANOTHER, words)
    return None


def _few(ranks: Sequence[int], places: Sequence[str]) -> tuple[tuple[int, ...], str] | None:
    """Those few that are not where most are, at the most half of all; and where most are."""
    counts = Counter(places).most_common(2)
    if len(counts) < 2 or counts[0][1] == counts[1][1]:
        return None
    few = tuple(rank for rank, place in zip(ranks, places, strict=True) if place != counts[0][0])
    return (few, counts[0][0]) if len(few) * 2 <= len(ranks) else None


def behind(flight: Flight) -> tuple[int, ...]:
    """Ranks that have begun nothing where others have; else those behind in a communicator that wait for nobody themselves."""
    begun = {rank for group in flight.groups for rank in group.last}
    mute = sorted(flight.heard - begun)
    if mute and len(mute) < len(begun):
        return tuple(mute)
    late = {rank for group in flight.groups for rank in _late(group)}
    ahead = {rank for group in flight.groups for rank in group.last if _late(group) and rank not in _late(group)}
    roots = sorted(late - ahead) or sorted(late)
    if not roots or len(roots) * 2 > max(len(begun), 2):
        return ()
    return tuple(roots)


def _late(group: Group) -> frozenset[int]:
    newest = max(group.last.values(), default=0)
    return frozenset(rank for rank, number in group.last.items() if number < newest)


def _apart(looks: Sequence[Look], evidence: Evidence) -> Culprit | None:
    """By stacks; where there are none, by the kernel's word for where they sleep."""
    seen = [look for look in looks if look.frames]
    if evidence.world == 1 and seen:
        return Culprit(_ranks(seen), Clue.APART, f"its one rank is in {where(seen[0].frames)}")
    waiting = [look for look in seen if waits(look)]
    others = [look for look in seen if not waits(look)]
    if waiting and others and len(others) <= max(len(waiting), 1):
        there = f"in {where(others[0].frames)} while {_rest(waiting)} in {where(waiting[0].frames)}"
        return Culprit(_ranks(others), Clue.APART, f"{_called(others)} {there}", _blamed(others, looks))
    if waiting and not others:
        places = [where(look.frames) for look in waiting]
        return _odd(waiting, places, Clue.ANOTHER, "in another collective: in")
    if not seen and len(looks) > 1:
        asleep = [look for look in looks if look.wait in _ASLEEP]
        if asleep and len(asleep) * 2 <= len(looks):
            return Culprit(_ranks(asleep), Clue.APART, f"{_called(asleep)} asleep ({asleep[0].wait}), the others wait")
        places = [f"{look.wait or look.state}" for look in looks]
        return _odd(looks, places, Clue.APART, "elsewhere in the kernel than the others: in")
    return None


def _odd(looks: Sequence[Look], places: Sequence[str], clue: Clue, words: str) -> Culprit | None:
    """Those few who are not where most are."""
    found = _few([look.rank for look in looks], places)
    if found is None:
        return None
    ranks, most = found
    few = [look for look in looks if look.rank in ranks]
    place = places[list(looks).index(few[0])]
    return Culprit(ranks, clue, f"{_called(few)} {words} {place}, {len(looks) - len(few)} others in {most}")


def _differ(looks: Sequence[Look]) -> Culprit | None:
    """As many in one collective as in another: who is wrong nobody can say, but what is."""
    calls = {look.rank: call for look in looks if (call := _call(look.frames))}
    if len(set(calls.values())) < 2 or len(calls) < len(looks):
        return None
    firsts = {call: look for look in reversed(looks) for call in (calls[look.rank],)}
    told = "; ".join(
        f"{_is([rank for rank in calls if calls[rank] == call])} in {where(firsts[call].frames)}"
        for call in list(dict.fromkeys(calls.values()))[:_NAMED]
    )
    return Culprit((), Clue.ANOTHER, f"its ranks are in different collectives: {told}")


def _call(frames: Sequence[Frame]) -> str:
    """The collective that a rank has called, by torch's name."""
    return next((frame.name for frame in frames[:_INNERMOST] if frame.file.endswith("/distributed_c10d.py")), "")


def _slowest(evidence: Evidence) -> Culprit | None:
    steps = evidence.steps
    if len(steps) < evidence.world or evidence.world < 2:
        return None
    newest = max(steps.values())
    late = sorted(rank for rank, step in steps.items() if step < newest)
    if not late or len(late) * 2 > len(steps):
        return None
    return Culprit(tuple(late), Clue.STEPS, f"{_named(late)} come to step {steps[late[0]]}, the others to {newest}")


def _unknown(looks: Sequence[Look], evidence: Evidence) -> str:
    if not looks:
        why = next(iter((evidence.silent or {}).values()), "no process of its ranks was found")
        return f"which rank holds it up is unknown: {why}"
    seen = [look for look in looks if look.frames]
    if not seen:
        return f"which rank holds it up is unknown: no stacks ({looks[0].why_no_stack or 'py-spy was not there'})"
    places = "; ".join(f"rank {look.rank} in {where(look.frames)}" for look in seen[:_NAMED])
    return f"which rank holds it up is unknown: {places}"


def where(frames: Sequence[Frame]) -> str:
    """The innermost line of the user's own code, with what it is in."""
    inner = frames[0]
    own = next((frame for frame in frames if not _foreign(frame)), inner)
    return str(own) if own is inner else f"{inner.name}, called by {own}"


def _foreign(frame: Frame) -> bool:
    return "/site-packages/" in frame.file or "/dist-packages/" in frame.file or "/lib/python" in frame.file


def _blamed(others: Sequence[Look], looks: Sequence[Look]) -> tuple[str, ...]:
    """A node of which every rank (of several) is apart, where other nodes' ranks are not."""
    nodes = {look.node for look in looks}
    if len(nodes) < 2:
        return ()
    apart = {look.rank for look in others}
    full = []
    for node in sorted(nodes):
        here = [look.rank for look in looks if look.node == node]
        if len(here) > 1 and apart.issuperset(here):
            full.append(node)
    return tuple(full) if len(full) < len(nodes) else ()


def _ranks(looks: Iterable[Look]) -> tuple[int, ...]:
    return tuple(look.rank for look in looks)


def _nodes(looks: Iterable[Look]) -> tuple[str, ...]:
    return tuple(sorted({look.node for look in looks}))


def _called(looks: Sequence[Look]) -> str:
    """``rank 3 on node-1 is``, ``ranks 3, 4 are``."""
    if len(looks) == 1:
        return f"rank {looks[0].rank} on {looks[0].node} is"
    return f"ranks {_listed(_ranks(looks))} are"


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {_listed(ranks)} have"


def _is(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {_listed(ranks)} are"


def _rest(waiting: Sequence[Look]) -> str:
    return f"rank {waiting[0].rank} waits" if len(waiting) == 1 else f"{len(waiting)} others wait"


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:_NAMED])) + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")
