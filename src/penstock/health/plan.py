"""Which nodes are taken out of service, which return, and what is advised; and what is left undone, and why. Pure.

First every node by itself (``judge.py``); then what the fleet can afford: nothing on doubtful data, nothing that many nodes
have at once, nothing while too many would go, and no more of a pool than its budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from penstock.base.quantities import format_duration
from penstock.health.judge import Verdict, View, ended_at, last, verdicts
from penstock.health.rule import Limit, Policy
from penstock.health.shared import Shared, shared
from penstock.health.state import ADVICE, OUT, RANK, Hold, Key, NodeHealth, Outage, Verb


@dataclass(frozen=True, slots=True)
class Action:
    """``findings``: what it rests on. ``jobs``: the attempts that it moves, or starts again."""

    node: str
    verb: Verb
    reason: str
    findings: tuple[Key, ...]
    jobs: tuple[str, ...] = ()
    advise: Verb | None = None  # what follows once nobody runs there


@dataclass(frozen=True, slots=True)
class Held:
    """Something that was not done."""

    node: str
    verb: Verb
    why: Hold
    reason: str
    findings: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """By node; ``breaker``: why it is open, or empty; ``shared``: what whole racks have."""

    actions: tuple[Action, ...] = ()
    held: tuple[Held, ...] = ()
    breaker: str = ""
    shared: tuple[Shared, ...] = ()

    def lines(self) -> list[str]:
        """For people: one line a decision."""
        done = [f"{one.node}: {one.verb}: {one.reason}" for one in self.actions]
        done += [f"{one.domain}: {one.what}: {one.reason}" for one in self.shared]
        return done + [f"{one.node}: not done: {one.verb}: {one.reason} ({one.why})" for one in self.held]


@dataclass(slots=True)
class _Opinion:
    """One node, before the fleet is looked at. ``asks``: the verdicts to act on, those that ask for most first."""

    node: NodeHealth
    found: list[Verdict]
    asks: list[Verdict] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)

    @property
    def verb(self) -> Verb:
        return self.asks[0].answer.do if self.asks else Verb.OBSERVE

    @property
    def worst(self) -> list[Verdict]:
        """Those that ask for no less than the first."""
        return [one for one in self.asks if one.answer.do == self.verb]

    @property
    def leaves(self) -> bool:
        """It would be one more that is out."""
        return self.verb in OUT and not self.node.cordoned

    @property
    def changes(self) -> bool:
        return self.leaves or (self.verb == Verb.DRAIN and not self.node.draining)


def plan(nodes: Iterable[NodeHealth], policy: Policy, budget: Limit, now: float) -> Plan:
    """Total and deterministic: the order of ``nodes`` says nothing."""
    fleet = sorted(nodes, key=lambda node: node.name)
    view = View.of(fleet, policy, now)
    opinions = [_opinion(node, policy, view) for node in fleet if node.findings or node.cordoned_by_us]
    causes = shared(fleet, ((one.node, one.found) for one in opinions), policy, now)
    _set_aside_shared(opinions, causes)
    _set_aside_common(opinions, policy.common, len(fleet), now)
    breaker = _break(opinions, policy.breaker, len(fleet), now)
    _spend(opinions, Counter(node.pool for node in fleet), budget)
    actions, held = [], []
    for one in opinions:
        made = _act(one, policy, now)
        actions += [made] if isinstance(made, Action) else []
        held += one.held + ([made] if isinstance(made, Held) else [])
    return Plan(tuple(actions), tuple(held), breaker, tuple(causes))


def _opinion(node: NodeHealth, policy: Policy, view: View) -> _Opinion:
    found = verdicts(node, policy, view)
    one = _Opinion(node, found)
    for verdict in found:
        if RANK[verdict.answer.do] == 0:
            continue
        if verdict.doubt:
            one.held.append(_held(node, verdict, Hold.DOUBT, f"{verdict.reason}; {verdict.doubt}"))
        elif verdict.shadow:
            one.held.append(_held(node, verdict, Hold.SHADOW, f"{verdict.reason}; the rule is only tried out"))
        else:
            one.asks.append(verdict)
    return one


def _held(node: NodeHealth, verdict: Verdict, why: Hold, reason: str) -> Held:
    return Held(node.name, verdict.answer.do, why, reason, (verdict.key,))


def _hold(one: _Opinion, why: Hold, reason: str) -> None:
    """What it asks for is not done; what is less than leaving service is done all the same."""
    leaving = [verdict for verdict in one.asks if verdict.answer.do in OUT]
    keys = tuple(verdict.key for verdict in leaving)
    one.held.append(Held(one.node.name, one.verb, why, f"{leaving[0].reason}; {reason}", keys))
    one.asks = [verdict for verdict in one.asks if verdict.answer.do not in OUT]


def _set_aside_shared(opinions: Sequence[_Opinion], causes: Sequence[Shared]) -> None:
    """What its rack has takes no node out; what else is wrong with it does."""
    words = {(name, cause.what): cause.reason for cause in causes for name in cause.nodes}
    for one in opinions:
        if not one.changes:
            continue
        for verdict in tuple(one.asks):
            said = words.get((one.node.name, verdict.rule.shared)) if verdict.rule is not None else None
            if said is not None and verdict.answer.do in OUT:
                one.held.append(_held(one.node, verdict, Hold.SHARED, f"{verdict.reason}; {said}"))
                one.asks.remove(verdict)


def _set_aside_common(opinions: Sequence[_Opinion], common: Limit, size: int, now: float) -> None:
    """The same on many nodes within minutes is the network, the cooling, a driver or us: to drain them all mends nothing."""
    fresh = [
        (one, verdict)
        for one in opinions
        for verdict in one.asks
        if verdict.answer.do in OUT and now - last(one.node.of(verdict.finding)) < common.within_s
    ]
    nodes: dict[tuple[str, str], set[str]] = {}
    for one, verdict in fresh:
        nodes.setdefault((verdict.finding.rule, verdict.finding.code), set()).add(one.node.name)
    limit = common.of(size)
    many = {rule: len(names) for rule, names in nodes.items() if len(names) >= limit}
    for one in opinions:
        mine = [v for v in one.asks if v.answer.do in OUT and (v.finding.rule, v.finding.code) in many]
        if not mine or not one.changes:
            continue
        count = many[mine[0].finding.rule, mine[0].finding.code]
        words = f"{count} nodes have it within {format_duration(common.within_s)}, so it is hardly this node"
        one.held += [_held(one.node, verdict, Hold.COMMON, f"{verdict.reason}; {words}") for verdict in mine]
        one.asks = [verdict for verdict in one.asks if verdict not in mine]


def _break(opinions: Sequence[_Opinion], breaker: Limit, size: int, now: float) -> str:
    """Too many at once: nothing more is taken out, and people are told."""
    leaving = [one for one in opinions if one.leaves]
    lately = sum(
        1 for one in opinions if one.node.out_since is not None and now - one.node.out_since < breaker.within_s
    )
    limit, total = breaker.of(size), len(leaving) + lately
    every = len(leaving) == size > 1
    if not leaving or (total <= limit and not every):
        return ""
    words = (
        f"{total} of {size} nodes would be out within {format_duration(breaker.within_s)}, and at most {limit} may be"
    )
    for one in leaving:
        _hold(one, Hold.BREAKER, words)
    return words


def _spend(opinions: Sequence[_Opinion], size: Counter[str], budget: Limit) -> None:
    """The worst first, then who has waited longest. ``size``: of each pool."""
    out = Counter(one.node.pool for one in opinions if one.node.cordoned_by_us)
    for one in sorted((each for each in opinions if each.leaves), key=_urgency):
        pool, limit = one.node.pool, budget.of(size[one.node.pool])
        if out[pool] < limit:
            out[pool] += 1
        else:
            where = f"of pool {pool}" if pool else "of the fleet"
            _hold(
                one,
                Hold.BUDGET,
                f"{out[pool]} of {size[pool]} nodes {where} are out already, and at most {limit} may be",
            )


def _urgency(one: _Opinion) -> tuple[int, int, float, str]:
    first = one.asks[0]
    return (-first.wants, -ADVICE[first.answer.advise], one.node.of(first.finding).since, one.node.name)


def _act(one: _Opinion, policy: Policy, now: float) -> Action | Held | None:
    node = one.node
    if one.changes:
        advise = _advice(one, policy, now)
        words = one.asks[0].reason + (f"; then {advise}" if advise is not None else "")
        moved = node.jobs if one.verb == Verb.DRAIN else ()
        return Action(node.name, one.verb, words, tuple(v.key for v in one.worst), moved, advise)
    if node.cordoned_by_us:
        return _out(one, policy, now)
    if one.verb == Verb.RESTART_JOB:
        for verdict in one.worst:
            jobs = _left_over(node, verdict, policy, now)
            if jobs:
                return Action(node.name, Verb.RESTART_JOB, verdict.reason, (verdict.key,), jobs)
    if not one.found:
        return None
    return Action(node.name, Verb.OBSERVE, one.found[0].reason, tuple(verdict.key for verdict in one.found))


def _left_over(node: NodeHealth, verdict: Verdict, policy: Policy, now: float) -> tuple[str, ...]:
    """Attempts that met it and still run though they had time to end by themselves."""
    sightings = node.of(verdict.finding).sightings
    met = {job for sighting in sightings if now - sighting.at >= policy.restart_after_s for job in sighting.jobs}
    return tuple(job for job in node.jobs if job in met)


def _advice(one: _Opinion, policy: Policy, now: float) -> Verb | None:
    """What its findings ask for, and more where that was in vain before."""
    advised = max((verdict.answer.advise for verdict in one.asks), key=ADVICE.__getitem__, default=None)
    if advised is None or advised == Verb.REPLACE:
        return advised
    same = {_what(verdict.key) for verdict in one.asks}
    often = [
        each for each in _past(one.node, policy.escalate.within_s, now) if same & {_what(key) for key in each.keys}
    ]
    return Verb.REPLACE if len(often) >= policy.escalate.times or _lemon(one.node, policy, now) else advised


def _what(key: Key) -> tuple[str, str]:
    return key[1:3]


def _past(node: NodeHealth, within_s: float, now: float) -> list[Outage]:
    return [each for each in node.outages if each.ended_at is not None and now - each.ended_at < within_s]


def _lemon(node: NodeHealth, policy: Policy, now: float) -> bool:
    return len(_past(node, policy.lemon.within_s, now)) >= policy.lemon.times


def _out(one: _Opinion, policy: Policy, now: float) -> Action | Held | None:
    """A node that is out by our own doing: what is advised, or whether it returns."""
    node = one.node
    why = tuple(verdict.key for verdict in one.asks if verdict.answer.do in OUT)
    if why:
        advise = _advice(one, policy, now)
        if advise is None or node.jobs:
            return None
        lemon = f"; {_often(node, policy, now)}" if _lemon(node, policy, now) else ""
        return Action(node.name, advise, one.asks[0].reason + lemon, why)
    open_ = [verdict for verdict in one.found if verdict.doubt and RANK[verdict.answer.do] >= RANK[Verb.CORDON]]
    unsure = [verdict for verdict in open_ if not node.of(verdict.finding).acked_by]
    if unsure:
        return _held_back(node, Hold.DOUBT, unsure[0].doubt, [verdict.key for verdict in unsure])
    began = {key for each in node.outages if each.ended_at is None for key in each.keys}
    lasting = [v.key for v in one.found if v.waits and v.key in began and v.rule is not None and v.rule.holds_s > 0]
    if lasting:
        return _held_back(node, Hold.DOUBT, "what it left for is not known to have ended", lasting)
    return _return(one, policy, now)


def _return(one: _Opinion, policy: Policy, now: float) -> Action | Held:
    node = one.node
    began = [each for each in node.outages if each.ended_at is None]
    keys = tuple(dict.fromkeys(chain.from_iterable(each.keys for each in began)))
    rules = [rule for rule in (policy.of(key[1], key[2]) for key in keys) if rule is not None]
    ends = [ended_at(finding, node, policy) for finding in node.findings if finding.key in keys]
    since = max([*(end for end in ends if end is not None and end <= now), node.out_since or 0.0])
    quiet, needed = max((rule.quiet_s for rule in rules), default=0.0), any(rule.check for rule in rules)
    checked = node.checked_at is not None and node.checked_at >= since
    if _lemon(node, policy, now):
        return _held_back(node, Hold.LEMON, f"well again, but {_often(node, policy, now)}: a person decides", keys)
    if not node.ready:
        return _held_back(node, Hold.QUIET, "its engine does not offer it", keys)
    if now - since < quiet:
        words = f"well for {format_duration(max(0, round(now - since)))} of {format_duration(quiet)}"
        return _held_back(node, Hold.QUIET, words, keys)
    if needed and not checked:
        return _held_back(node, Hold.CHECK, "well again; a check is to pass first", keys)
    words = f"nothing is wrong with it since {format_duration(max(0, round(now - since)))}"
    return Action(node.name, Verb.RETURN, words + ("; a check has passed" if checked else ""), keys)


def _held_back(node: NodeHealth, why: Hold, reason: str, keys: Iterable[Key]) -> Held:
    return Held(node.name, Verb.RETURN, why, reason, tuple(keys))


def _often(node: NodeHealth, policy: Policy, now: float) -> str:
    count = len(_past(node, policy.lemon.within_s, now))
    return f"it was out {count} times within {format_duration(policy.lemon.within_s)}"
