"""One finding under its rule: what it asks for, and why; or why it cannot be relied on. Pure.

An answer says what is wanted for this node alone. What the fleet can afford is ``plan.py``'s question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from penstock.base.quantities import format_duration
from penstock.health.rule import RECOVERY, SXID, XID, Answer, Policy, Rule
from penstock.health.state import ADVICE, RANK, Key, NodeHealth, Seen, Sighting, Verb
from penstock.telemetry.spec import Finding

DRIVER_S = 5.0  # an Xid that comes so much later than the driver's recommendation is another matter
_FATAL = re.compile(r"\b(non[-_ ]?)?fatal\b", re.IGNORECASE)
# What the driver writes behind Xid 154, from the most to the least: "... changed from 0x0 (None) to 0x2 (Node Reboot Required)".
_RECOVERY = (
    ("node reboot", Answer(Verb.DRAIN, Verb.REBOOT)),
    ("drain and reset", Answer(Verb.DRAIN, Verb.RESET_GPU)),
    ("gpu reset", Answer(Verb.DRAIN, Verb.RESET_GPU)),
    ("drain p2p", Answer(Verb.CORDON, Verb.RESET_GPU)),
    ("none", Answer()),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``doubt``: why it is not to be acted on. ``waits``: what it asks for once a repeat, or time, has come."""

    finding: Finding
    rule: Rule | None
    answer: Answer
    reason: str
    doubt: str = ""
    waits: bool = False

    @property
    def key(self) -> Key:
        return self.finding.key

    @property
    def wants(self) -> int:
        return RANK[self.answer.do]

    @property
    def shadow(self) -> bool:
        return self.rule is not None and self.rule.shadow


@dataclass(frozen=True, slots=True)
class View:
    """What a finding's answer depends on beside its node: on which devices each Xid was seen, and with whose jobs."""

    now: float
    devices: dict[tuple[str, str, str], frozenset[tuple[str, str]]]  # rule, code, project -> (node, device)

    @classmethod
    def of(cls, nodes: Iterable[NodeHealth], policy: Policy, now: float) -> View:
        found: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
        for node in nodes:
            for finding in node.findings:
                rule = policy.of(finding.rule, finding.code)
                if rule is None or rule.repeat is None or not rule.repeat.many:
                    continue
                for project in {_project(job) for one in _lately(node, finding, rule, now) for job in one.jobs}:
                    found.setdefault((finding.rule, finding.code, project), set()).add((node.name, finding.device))
        return cls(now, {key: frozenset(devices) for key, devices in found.items()})


def verdicts(node: NodeHealth, policy: Policy, view: View) -> list[Verdict]:
    """Of all findings of a node that are so now, those that ask for most first; the order says nothing else."""
    driver = _driver(node)
    found = [
        judge(one, node, policy, view, driver.get(one.device))
        for one in node.findings
        if lives(one, node, policy, view.now)
    ]
    return sorted(found, key=_order)


def _order(one: Verdict) -> tuple[int, int, float, Key]:
    return (-one.wants, -ADVICE[one.answer.advise], one.finding.first_at, one.key)


def lives(finding: Finding, node: NodeHealth, policy: Policy, now: float) -> bool:
    """Whether it is so still."""
    end = ended_at(finding, node, policy)
    return finding.active and (end is None or now < end)


def ended_at(finding: Finding, node: NodeHealth, policy: Policy) -> float | None:
    """When it ended, or ends by itself: one that comes and is over (an Xid of an application) counts for as long as its rule
    says. None: it is so until that is told.
    """
    seen, rule = node.of(finding), policy.of(finding.rule, finding.code)
    if not finding.active:
        return seen.ended_at if seen.ended_at is not None else finding.at
    return max(last(seen), finding.at) + rule.lasts_s if rule is not None and rule.lasts_s > 0 else None


def heard(finding: Finding, seen: Seen) -> float:
    """Up to when it is known to have been so."""
    return max(finding.at, last(seen), seen.heard_at)


def last(seen: Seen) -> float:
    return max((one.at for one in seen.sightings), default=seen.since)


def judge(finding: Finding, node: NodeHealth, policy: Policy, view: View, driver: Finding | None) -> Verdict:
    """``driver``: the newest Xid 154 of the same device."""
    rule = policy.of(finding.rule, finding.code)
    if rule is None:
        name = f"{finding.rule} {finding.code}".strip()
        return Verdict(
            finding, None, Answer(), f"{name} is in no rule: it is only looked at", doubt="unknown to the policy"
        )
    made = _wanted(finding, node, rule, view, driver)
    doubt = _doubt(finding, node, rule, policy, view.now)
    return replace(made, doubt=doubt) if doubt else made


def _doubt(finding: Finding, node: NodeHealth, rule: Rule, policy: Policy, now: float) -> str:
    """Why it is not believed, or not acted on; empty where it is."""
    seen, trust = node.of(finding), policy.trust
    if seen.acked_by:
        return f"acknowledged by {seen.acked_by}"
    problem = node.doubts.get(finding.source) or node.doubts.get("")
    if problem:
        return f"its source {finding.source or 'clock'} has a problem: {problem}"
    if finding.at > now + trust.clock_s:
        return f"its time lies {format_duration(round(finding.at - now))} ahead: the node's clock is wrong"
    if seen.late_s > trust.stale_s:
        return f"it was told {format_duration(round(seen.late_s))} after it was so"
    if not rule.sticky and rule.lasts_s <= 0 and now - heard(finding, seen) > trust.stale_s:
        return f"nothing was heard of it for {format_duration(round(now - heard(finding, seen)))}"
    return ""


def _wanted(finding: Finding, node: NodeHealth, rule: Rule, view: View, driver: Finding | None) -> Verdict:
    seen = node.of(finding)
    said = _driver_says(finding, driver)
    if said is not None:
        answer, words = said
        return Verdict(finding, rule, answer, f"{rule.name}: the driver itself asks for {words!r}")
    if rule.fatal is not None and _is_fatal(finding):
        return Verdict(finding, rule, rule.fatal, f"{_named(rule)}: its line says that it is fatal")
    if rule.repeat is not None:
        repeated = _repeated(finding, node, rule, view)
        if repeated is not None:
            return repeated
    came = sum(one.count for one in _within(seen.sightings, view.now, rule.within_s))
    if rule.after > 1 and came < rule.after:
        words = f"{_named(rule)}: {came} of {rule.after} within {format_duration(rule.within_s)}"
        return Verdict(finding, rule, Answer(), words, waits=True)
    until = view.now if rule.sticky else min(view.now, heard(finding, seen))
    lasted = max(0.0, until - max(seen.since, finding.first_at))
    if lasted < rule.holds_s:
        words = f"{_named(rule)}: so for {format_duration(round(lasted))} of {format_duration(rule.holds_s)}"
        return Verdict(finding, rule, Answer(), words, waits=True)
    return Verdict(finding, rule, rule.answer, _named(rule) + (f" ({rule.cause})" if rule.cause else ""))


def _repeated(finding: Finding, node: NodeHealth, rule: Rule, view: View) -> Verdict | None:
    """What its coming again changes; None where it has not come often enough."""
    repeat = rule.repeat
    if repeat is None:
        return None
    lately = _lately(node, finding, rule, view.now)
    jobs = {job.partition("#")[0] for one in lately for job in one.jobs}
    for project in sorted({_project(job) for job in jobs}):
        devices = len(view.devices.get((finding.rule, finding.code, project), ()))
        if repeat.many and devices >= repeat.many:
            words = f"{_named(rule)} on {devices} devices with jobs of {project}: the application, not this device"
            return Verdict(finding, rule, rule.answer, words)
    came = sum(one.count for one in lately)
    if came < repeat.after or len(jobs) < repeat.jobs:
        return None
    words = f"{_named(rule)}: {came} times within {format_duration(repeat.within_s)} on one device"
    if repeat.jobs:
        words += f", with {len(jobs)} different jobs: the hardware"
    return Verdict(finding, rule, repeat.answer, words)


def _driver(node: NodeHealth) -> dict[str, Finding]:
    """By device, the newest word of the driver's."""
    found: dict[str, Finding] = {}
    for one in node.findings:
        if (
            one.rule == XID
            and one.code == RECOVERY
            and one.active
            and (one.device not in found or found[one.device].at < one.at)
        ):
            found[one.device] = one
    return found


def _driver_says(finding: Finding, driver: Finding | None) -> tuple[Answer, str] | None:
    if driver is None or finding.rule != XID or finding.at > driver.at + DRIVER_S:
        return None
    return recovery(driver)


def recovery(finding: Finding) -> tuple[Answer, str] | None:
    """What an Xid 154 recommends; None where it cannot be read."""
    text = str(finding.facts.get("recovery", "")) or " ".join(finding.evidence[-1:]) or finding.message
    text = text.rpartition(" to ")[2].lower().replace("_", " ").replace("-", " ")
    return next(((answer, words) for words, answer in _RECOVERY if words in text), None)


def _is_fatal(finding: Finding) -> bool:
    told = str(finding.facts.get("fatality", "")) or " ".join((*finding.evidence, finding.message))
    return any(not found.group(1) for found in _FATAL.finditer(told))


def _within(sightings: Sequence[Sighting], now: float, span: float) -> list[Sighting]:
    return [one for one in sightings if span <= 0 or now - one.at < span]


def _lately(node: NodeHealth, finding: Finding, rule: Rule, now: float) -> list[Sighting]:
    span = rule.repeat.within_s if rule.repeat is not None else 0.0
    return _within(node.of(finding).sightings, now, span)


def _project(job: str) -> str:
    return job.partition("/")[0]


def _named(rule: Rule) -> str:
    return f"{rule.name} {rule.title}".strip() if rule.rule in {XID, SXID} else rule.name
