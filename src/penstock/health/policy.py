"""The policy as it is written, to rules: tables of Xids and SXids (CSV), rules (YAML), and what a site says otherwise. Pure.

A site's file changes single fields of single rules; what it does not name stays. A rule that it makes anew is only tried out
(shadow) until the file says ``shadow: false``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import parse_duration
from penstock.base.text import one_line
from penstock.documents import bounded, read, show, summary, validate
from penstock.health.orders import named
from penstock.health.rule import SXID, XID, Answer, Checks, Limit, Often, Policy, Repeat, Rule, Scope, Trust
from penstock.health.state import OUT, Verb

TABLES = {XID: "xid", SXID: "sxid"}  # a table's rule, and its section in a file
_SOURCES = ("nvidia", "gpud", "others")


def _share(value: object) -> float:
    """``10%`` -> 0.1."""
    text = str(value).strip()
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise ValueError(f"{one_line(text, 40)!r} is no share: write 10%")
    return found


Duration = Annotated[float, BeforeValidator(parse_duration)]
Share = Annotated[float, BeforeValidator(_share)]
Do = Literal["observe", "restart-job", "cordon", "drain"]
Advise = Literal["none", "reset-gpu", "reboot", "replace"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Budget(_Part):
    share: Share | None = None
    least: int | None = Field(default=None, ge=0, le=100_000)


class _Limit(_Budget):
    within: Duration | None = None


class _Often(_Part):
    times: int | None = Field(default=None, ge=1, le=1000)
    within: Duration | None = None


class _Trust(_Part):
    stale: Duration | None = None
    clock: Duration | None = None


class _Checks(_Part):
    run: tuple[Annotated[str, AfterValidator(named)], ...] | None = None
    first: bool | None = None
    between: Duration | None = None


class _Repeat(_Part):
    after: int = Field(ge=1, le=10_000)
    within: Duration
    jobs: int = Field(default=0, ge=0, le=1000)
    many: int = Field(default=0, ge=0, le=100_000)
    do: Do
    advise: Advise = "none"


class _Row(_Part):
    """What may be said of a rule."""

    title: str | None = Field(default=None, max_length=100)
    cause: str | None = Field(default=None, max_length=500)
    why: str | None = Field(default=None, max_length=500)
    scope: Scope | None = None
    do: Do | None = None
    advise: Advise | None = None
    after: int | None = Field(default=None, ge=1, le=10_000)
    within: Duration | None = None
    holds: Duration | None = None
    lasts: Duration | None = None
    sticky: bool | None = None
    quiet: Duration | None = None
    check: bool | None = None
    shadow: bool | None = None
    shared: Literal["heat", "power", "network", "none"] | None = None
    repeat: _Repeat | None = None


class _File(_Part):
    version: str | None = Field(default=None, max_length=40)
    budget: _Budget = _Budget()
    breaker: _Limit = _Limit()
    common: _Limit = _Limit()
    domain: _Limit = _Limit()
    trust: _Trust = _Trust()
    checks: _Checks = _Checks()
    lemon: _Often = _Often()
    escalate: _Often = _Often()
    restart_after: Duration | None = None
    xid: dict[str, _Row] = Field(default_factory=dict)
    sxid: dict[str, _Row] = Field(default_factory=dict)
    rules: dict[str, _Row] = Field(default_factory=dict)


def shipped(xids: str, sxids: str, rules: str) -> Policy:
    """From the texts of the files in ``data/``."""
    table = {**_table(XID, xids), **_table(SXID, sxids)}
    return _over(Policy("", table), _parse(rules, "the shipped policy"), tried_out=False)


def overridden(policy: Policy, text: str, name: str) -> Policy:
    """With what a site says otherwise. Raises InvalidInput with all that is wrong with the file, by line."""
    made = _over(policy, _parse(text, name), tried_out=True)
    return made if made.version != policy.version else replace(made, version=f"{policy.version} with {name}")


def _table(rule: str, text: str) -> dict[tuple[str, str], Rule]:
    return {(rule, row["code"]): _from_row(rule, row) for row in csv.DictReader(io.StringIO(text))}


def _from_row(rule: str, row: Mapping[str, str]) -> Rule:
    fatal = row["fatal"].split()
    app = row["scope"] == Scope.APP or row["do"] == Verb.OBSERVE
    return Rule(
        rule,
        row["code"],
        row["name"],
        row["cause"],
        Scope(row["scope"]),
        _answer(row["do"], row["advise"] or "none"),
        _answer(fatal[0], fatal[1]) if fatal else None,
        lasts_s=0.0 if fatal or not app else 3600.0,
        sticky=not app or bool(fatal),
        shadow=row["shadow"] == "yes",
        follow_up=row["follow_up"],
        sources={source: row[source] for source in _SOURCES if row[source]},
    )


def _answer(do: str, advise: str) -> Answer:
    return Answer(Verb(do), None if advise == "none" else Verb(advise))


def _parse(text: str, name: str) -> tuple[_File, Mapping[tuple[str | int, ...], int]]:
    documents, problems = read(text)
    value, lines = next((each for each in documents if each is not None), ({}, {}))
    if len(documents) > 1:
        problems.append(Problem("", "one document is read, and here are several"))
    value = _with_text_keys(value)
    made, wrong = validate(_File, value, lines)
    problems += wrong
    if isinstance(value, dict):
        problems += _senseless(value, lines)
    if problems:
        problems.sort(key=lambda one: one.line or 0)
        raise InvalidInput(summary(problems, name), details=bounded(problems))
    assert made is not None
    return made, lines


def _with_text_keys(value: Any) -> Any:
    """``79:`` is a number to YAML, and a name here."""
    if not isinstance(value, dict):
        return value if value is not None else {}
    return {
        key: {str(code): row for code, row in part.items()}
        if key in {*TABLES.values(), "rules"} and isinstance(part, dict)
        else part
        for key, part in value.items()
    }


def _senseless(value: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int]) -> Iterator[Problem]:
    """What the fields' types cannot say: of names, and of fields that need each other."""
    for section in (*TABLES.values(), "rules"):
        part = value.get(section)
        for name, row in part.items() if isinstance(part, dict) else ():
            path: tuple[str | int, ...] = (section, name)
            if section != "rules" and not name.isdecimal():
                yield Problem(show(path), "must be a number", lines.get(path))
            elif section == "rules" and not (name.isidentifier() and name[:1].isupper()):
                yield Problem(show(path), "must be a rule's name, such as LinkFlap", lines.get(path))
            elif section == "rules" and name in TABLES:
                yield Problem(show(path), f"has its own section: write {TABLES[name]}", lines.get(path))
            if isinstance(row, dict) and "after" in row and "within" not in row:
                path = (section, name, "after")
                yield Problem(show(path), "needs `within`: so often in which time?", lines.get(path))


def _over(policy: Policy, parsed: tuple[_File, object], *, tried_out: bool) -> Policy:
    file = parsed[0]
    rules = dict(policy.rules)
    sections = {**TABLES, "": "rules"}
    for table, section in sections.items():
        for name, row in getattr(file, section).items():
            key = (table, name) if table else (name, "")
            rules[key] = _changed(rules.get(key) or Rule(key[0], key[1], sticky=bool(table), shadow=tried_out), row)
    return replace(
        policy,
        version=file.version or policy.version,
        rules=rules,
        budget=_limit(policy.budget, file.budget),
        breaker=_limit(policy.breaker, file.breaker),
        common=_limit(policy.common, file.common),
        domain=_limit(policy.domain, file.domain),
        trust=Trust(_or(file.trust.stale, policy.trust.stale_s), _or(file.trust.clock, policy.trust.clock_s)),
        lemon=_often(policy.lemon, file.lemon),
        escalate=_often(policy.escalate, file.escalate),
        checks=_checks(policy.checks, file.checks),
        restart_after_s=_or(file.restart_after, policy.restart_after_s),
    )


def _or(said: float | None, otherwise: float) -> float:
    return otherwise if said is None else said


def _limit(limit: Limit, said: _Budget) -> Limit:
    within = said.within if isinstance(said, _Limit) else None
    least = limit.least if said.least is None else said.least
    return Limit(_or(said.share, limit.share), least, _or(within, limit.within_s))


def _checks(checks: Checks, said: _Checks) -> Checks:
    return Checks(
        checks.run if said.run is None else said.run,
        checks.first if said.first is None else said.first,
        _or(said.between, checks.between_s),
    )


def _often(often: Often, said: _Often) -> Often:
    return Often(often.times if said.times is None else said.times, _or(said.within, often.within_s))


_FIELDS = {"title": "title", "cause": "cause", "scope": "scope", "after": "after", "within": "within_s", "holds": "holds_s", "lasts": "lasts_s", "sticky": "sticky", "quiet": "quiet_s", "check": "check", "shadow": "shadow", "shared": "shared"}  # fmt: skip


def _changed(before: Rule, row: _Row) -> Rule:
    """Field by field; other words on what to do take a table's own repeats and fatal lines with them, unless they are said anew."""
    said = {field: value for name, field in _FIELDS.items() if (value := getattr(row, name)) is not None}
    do = Verb(row.do or before.answer.do)
    kept = (before.answer.advise or "none") if do in OUT else "none"
    made = replace(before, answer=_answer(do, row.advise or kept), **said)
    made = replace(made, shared="" if made.shared == "none" else made.shared)
    if row.do is not None and row.repeat is None:
        made = replace(made, repeat=None, fatal=None)
        if made.rule in TABLES and made.answer.do in OUT and row.lasts is None:
            made = replace(made, lasts_s=0.0, sticky=True)  # what is over in an hour takes no node out
    if row.repeat is not None:
        one = row.repeat
        repeat = Repeat(one.after, one.within, _answer(one.do, one.advise), one.jobs, one.many)
        made = replace(made, repeat=repeat)
    if row.why:
        made = replace(made, sources={**made.sources, "site": row.why})
    return made
