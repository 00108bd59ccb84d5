"""An incident as the ledger tells it: what was wrong, whom it hit, how it was seen, what was done, and when. Pure.

Nobody writes it: it is the events of one node, and of the jobs that met what was found there, put in order. Its fields are those
of incident reviews as the field keeps them (impact, detection, trigger, cause, actions with who owes them). What the ledger
does not say is told as not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.base.quantities import format_duration, format_time
from penstock.base.reasons import Reason
from penstock.base.text import one_line

BEFORE_S = 1800.0  # what was found so shortly before may have to do with it
_NODE, _JOB, _DOMAIN = "Node", "Job", "Domain"
_OPENS = frozenset({Reason.FindingRaised, Reason.Cordoned, Reason.Drained, Reason.Lost})
_CLOSES = frozenset({Reason.Uncordoned, Reason.Restored})
_STOPPED = frozenset({Reason.NodeDrained, Reason.NodeLost, Reason.NodeAvoided, Reason.Hung, Reason.AttemptEnded})
_ADVICE = {
    "reset-gpu": "reset the GPU",
    "reboot": "reboot the node",
    "replace": "open a case with the vendor, with `penstock health evidence`",
}
OWNER = "who administers the node"


@dataclass(frozen=True, slots=True)
class Fact:
    """One event of the ledger."""

    seq: int
    at: float
    actor: str
    kind: str
    subject: str  # a node's name, or project/name of a job
    reason: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """A job that was interrupted. ``back_at``: when it ran again; None: it has not, or it had ended."""

    job: str
    stopped_at: float
    back_at: float | None
    how: str


@dataclass(frozen=True, slots=True)
class Owed:
    what: str
    owner: str
    since: float
    done_at: float | None = None


@dataclass(frozen=True, slots=True)
class Incident:
    node: str
    began: float  # what was wrong was first so, by the node's clock where that was told
    detected: float  # the ledger's first word of it
    acted: float | None  # the first thing that was done
    ended: float | None  # back in service; None: it lasts
    trigger: str
    cause: str
    hits: tuple[Hit, ...]
    contributing: tuple[str, ...]
    owed: tuple[Owed, ...]
    held: tuple[str, ...]  # what was not done, and why
    facts: tuple[Fact, ...]

    @property
    def lasts_s(self) -> float | None:
        return None if self.ended is None else self.ended - self.began


def incidents(node: str, facts: Iterable[Fact]) -> list[Incident]:
    """Of one node, oldest first, from its own events and those of jobs, in the order of the ledger."""
    ordered = sorted(facts, key=lambda fact: fact.seq)
    found, open_ = list[list[Fact]](), list[Fact]()
    for fact in (one for one in ordered if one.kind == _NODE and one.subject == node):
        if not open_ and fact.reason not in _OPENS:
            continue
        open_.append(fact)
        if fact.reason in _CLOSES or (fact.reason == Reason.FindingEnded and _all_ended(open_) and not _out(open_)):
            found.append(open_)
            open_ = []
    if open_:
        found.append(open_)
    return [_incident(node, own, ordered) for own in found]


def _out(facts: Sequence[Fact]) -> bool:
    return any(fact.reason in {Reason.Cordoned, Reason.Drained, Reason.Lost} for fact in facts)


def _all_ended(facts: Sequence[Fact]) -> bool:
    lasting = set()
    for fact in facts:
        key = _key(fact)
        if fact.reason == Reason.FindingRaised:
            lasting.add(key)
        elif fact.reason == Reason.FindingEnded:
            lasting.discard(key)
    return not lasting


def _key(fact: Fact) -> tuple[str, str, str]:
    found = fact.data.get("finding") or {}
    return str(found.get("rule", "")), str(found.get("code", "")), str(found.get("device", ""))


def _incident(node: str, own: Sequence[Fact], ledger: Sequence[Fact]) -> Incident:
    first = own[0]
    ended = own[-1].at if own[-1].reason in {*_CLOSES, Reason.FindingEnded} and _closed(own) else None
    acts = [fact for fact in own if fact.reason in {Reason.HealthActed, Reason.Cordoned, Reason.Drained}]
    hits = _hits(own, ledger, ended)
    jobs = {hit.job for hit in hits}
    later = ended if ended is not None else float("inf")
    shown = [
        *own,
        *(fact for fact in ledger if fact.kind == _JOB and fact.subject in jobs and first.at <= fact.at <= later),
        *_around(node, first, ledger, later),
    ]
    return Incident(
        node,
        _began(first),
        first.at,
        acts[0].at if acts else None,
        ended,
        one_line(first.message, 300),
        _cause(own, ledger, jobs),
        hits,
        tuple(_contributing(node, first, own, ledger)),
        tuple(_owed(own, ended)),
        tuple(
            f"{fact.subject}: {one_line(fact.message, 300)}" if fact.kind == _DOMAIN else one_line(fact.message, 300)
            for fact in (*own, *_around(node, first, ledger, later))
            if fact.reason == Reason.HealthHeld or (fact.kind == _DOMAIN and fact.reason == Reason.FindingRaised)
        ),
        tuple(sorted(shown, key=lambda fact: fact.seq)),
    )


def _around(node: str, first: Fact, ledger: Sequence[Fact], later: float) -> list[Fact]:
    """What its rack had meanwhile, or another domain that it is in."""
    return [
        fact
        for fact in ledger
        if fact.kind == _DOMAIN and node in fact.data.get("nodes", ()) and first.at <= fact.at <= later
    ]


def _closed(own: Sequence[Fact]) -> bool:
    return own[-1].reason in _CLOSES or (_all_ended(own) and not _out(own))


def _began(first: Fact) -> float:
    """By the finding's own time, where that is sane: not after it was told, and not days before."""
    told = (first.data.get("finding") or {}).get("first_at")
    sane = isinstance(told, int | float) and first.at - 86_400 <= told <= first.at
    return float(told) if sane and told is not None else first.at


def _hits(own: Sequence[Fact], ledger: Sequence[Fact], ended: float | None) -> tuple[Hit, ...]:
    met = {job.split("#")[0] for fact in own for job in (*fact.data.get("jobs", ()), *fact.data.get("restarted", ()))}
    since, until = own[0].at, ended if ended is not None else float("inf")
    found = []
    for job in sorted(met):
        mine = [fact for fact in ledger if fact.kind == _JOB and fact.subject == job and fact.at >= since]
        stop = next((fact for fact in mine if fact.reason in _STOPPED and fact.at <= until), None)
        if stop is not None:
            back = next((fact.at for fact in mine if fact.seq > stop.seq and fact.reason == Reason.Started), None)
            found.append(Hit(job, stop.at, back, one_line(stop.message, 200)))
    return tuple(found)


def _cause(own: Sequence[Fact], ledger: Sequence[Fact], jobs: set[str]) -> str:
    """What a diagnosis said of one of its jobs, or the policy's words of what was acted on."""
    for fact in ledger:
        verdict = fact.data.get("verdict")
        if fact.kind == _JOB and fact.subject in jobs and isinstance(verdict, str) and fact.at >= own[0].at - BEFORE_S:
            return f"{verdict}, by the diagnosis of {fact.subject}: {one_line(fact.message, 200)}"
    acted = next((fact for fact in own if fact.reason == Reason.HealthActed), None)
    return one_line(acted.message, 300) if acted is not None else "not established"


def _contributing(node: str, first: Fact, own: Sequence[Fact], ledger: Sequence[Fact]) -> list[str]:
    inside = {fact.seq for fact in own}
    trigger = _key(first)
    near = [
        fact
        for fact in ledger
        if fact.kind == _NODE
        and fact.subject == node
        and fact.reason == Reason.FindingRaised
        and first.at - BEFORE_S <= fact.at
        and (fact.seq in inside or fact.at <= first.at)
        and _key(fact) != trigger
    ]
    return list(dict.fromkeys(one_line(fact.message, 200) for fact in near))


def _owed(own: Sequence[Fact], ended: float | None) -> list[Owed]:
    found = {}
    for fact in own:
        for word in (fact.data.get("advise"), fact.data.get("verb")):
            if fact.reason == Reason.HealthActed and word in _ADVICE and word not in found:
                found[word] = Owed(_ADVICE[word], OWNER, fact.at, ended)
    return list(found.values())


# ------------------------------------------------------------------------------------------------------- as Markdown


def markdown(one: Incident) -> str:
    """As a page for a wiki or a ticket."""
    lines = [
        f"# Incident: {one.node}, {format_time(one.began)}",
        "",
        f"- **Impact:** {_impact(one)}",
        f"- **Detection:** {_detection(one)}",
        f"- **Trigger:** {_text(one.trigger)}",
        f"- **Cause:** {_text(one.cause)}",
        f"- **Contributing:** {'; '.join(map(_text, one.contributing)) or 'nothing else was found on the node'}",
    ]
    if one.hits:
        lines += ["", "| job | stopped | ran again after | why |", "|---|---|---|---|"]
        lines += [
            f"| {_text(hit.job)} | {format_time(hit.stopped_at)} | {_after(hit)} | {_text(hit.how)} |"
            for hit in one.hits
        ]
    if one.owed or one.held:
        lines += ["", "## Actions", ""]
        lines += [
            f"- [{'x' if owed.done_at else ' '}] {_text(owed.what)} ({owed.owner}, since {format_time(owed.since)})"
            for owed in one.owed
        ]
        lines += [f"- {_text(words)}" for words in one.held]
    lines += ["", "## Timeline", "", "| time | source | who | what | event |", "|---|---|---|---|---|"]
    lines += [
        f"| {format_time(fact.at)} | {fact.kind} {_text(fact.subject)} | {_text(fact.actor)} "
        f"| {fact.reason}: {_text(one_line(fact.message, 300))} | {fact.seq} |"
        for fact in one.facts
    ]
    return "\n".join([*lines, "", "From the ledger: `penstock events` shows each event with its evidence.", ""])


def _impact(one: Incident) -> str:
    lasted = one.lasts_s
    out = "still out of service" if lasted is None else f"{format_duration(round(lasted))} from begin to end"
    if not one.hits:
        return f"no job was interrupted; {out}"
    times = [hit.back_at - hit.stopped_at for hit in one.hits if hit.back_at is not None]
    words = f"{len(one.hits)} job{'s' if len(one.hits) > 1 else ''} interrupted"
    words += f", {format_duration(round(sum(times), 1))} in all until they ran again" if times else ""
    waits = len(one.hits) - len(times)
    return f"{words}{f', {waits} did not run again' if waits else ''}; {out}"


def _detection(one: Incident) -> str:
    words = f"{format_time(one.detected)}, {format_duration(round(one.detected - one.began, 1))} after it began"
    return words + (
        f"; acted on {format_duration(round(one.acted - one.detected, 1))} later"
        if one.acted is not None
        else "; nothing was done"
    )


def _after(hit: Hit) -> str:
    return "not yet" if hit.back_at is None else format_duration(round(hit.back_at - hit.stopped_at, 1))


def _text(text: str) -> str:
    """Nobody's words break the table or become markup."""
    for sign in "\\`*_{}[]<>#|":
        text = text.replace(sign, "\\" + sign)
    return text
