"""Accounts, associations and QoS as slurmdbd has them, and sacctmgr's words to change them. Pure.

What sacctmgr shows is read into entities with plain fields, each of one spelling: limits as whole numbers (memory in
MiB, time in seconds), "" where there is none. What is wanted has the same form, so that both can be compared field by
field (scheduling/drift.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from penstock.base.errors import InvalidInput
from penstock.engines.slurm.errors import Refused

ROOT = "root"  # the account above all
MADE_BY = "penstock"  # the organization of accounts that Penstock made: for people who look with sacctmgr
# Names reach sacctmgr as parts of its words, where commas, blanks, quotes and = mean something.
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
_LIMIT = "limit "  # the field of one TRES: "limit gres/gpu"
_MIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3, "": 1}
_ADD = {"fairshare": "1", "parent": ROOT}  # what sacctmgr sets by itself

ASSOCIATIONS = (
    "sacctmgr",
    "-nP",
    "show",
    "assoc",
    "format=Cluster,Account,ParentName,User,Partition,Share,GrpTRES,MaxWall,QOS",
)
QOS = ("sacctmgr", "-nP", "show", "qos", "format=Name,Priority,Preempt")
TRES = ("sacctmgr", "-nP", "show", "tres", "format=Type,Name")
CONFIG = ("scontrol", "show", "config")


class Kind(StrEnum):
    QOS = "qos"
    ACCOUNT = "account"
    USER = "user"  # the association of a user with an account


@dataclass(frozen=True, slots=True, order=True)
class Key:
    kind: Kind
    name: str
    account: str = ""  # of a user's association

    def __str__(self) -> str:
        return f"user {self.name} in account {self.account}" if self.kind is Kind.USER else f"{self.kind} {self.name}"


Fields = Mapping[str, str]


class Action(StrEnum):
    ADD = "add"
    SET = "set"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    action: Action
    key: Key
    fields: Fields = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Accounting:
    """One cluster's accounting, and what of the site's settings bears on it."""

    cluster: str
    entities: Mapping[Key, Fields]
    tres: frozenset[str] = frozenset()  # cpu, mem, gres/gpu, gres/gpu:a100
    enforce: frozenset[str] = frozenset()  # AccountingStorageEnforce
    priority: str = ""  # PriorityType
    preempt: str = ""  # PreemptType

    def children(self, account: str) -> list[Key]:
        """What stands directly under an account."""
        return [
            key
            for key, fields in self.entities.items()
            if (key.kind is Kind.USER and key.account == account)
            or (key.kind is Kind.ACCOUNT and fields.get("parent") == account)
        ]


def limit(tres: str) -> str:
    return _LIMIT + tres


def read(config: str, associations: str, qos: str, tres: str) -> Accounting:
    """What the four commands above said. Raises Refused where that cannot be understood."""
    settings = dict(_settings(config))
    cluster = settings.get("ClusterName", "")
    entities = dict(_qos(qos))
    for row in _rows(associations, 9):
        if row[0] == cluster:
            key, fields = _association(row)
            entities[key] = fields
    return Accounting(
        cluster,
        entities,
        frozenset(f"{kind}/{name}" if name else kind for kind, name in _rows(tres, 2)),
        frozenset(settings.get("AccountingStorageEnforce", "").lower().split(",")) - {"", "none"},
        settings.get("PriorityType", ""),
        settings.get("PreemptType", ""),
    )


def _settings(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name.strip(), value.strip()


def _rows(text: str, columns: int) -> Iterable[list[str]]:
    for line in text.splitlines():
        row = line.split("|")
        if len(row) != columns:
            raise Refused(
                f"sacctmgr answered a line of {len(row)} columns where {columns} were asked for: {line[:200]!r}"
            )
        yield row


def _qos(text: str) -> Iterable[tuple[Key, Fields]]:
    for name, priority, preempt in _rows(text, 3):
        yield (
            Key(Kind.QOS, name),
            _given({"priority": "" if priority == "0" else priority, "preempt": _sorted(preempt)}),
        )


def _association(row: Sequence[str]) -> tuple[Key, Fields]:
    _, account, parent, user, partition, share, limits, wall, qos = row
    if (
        user
    ):  # a limit of a user's association may be its account's, which sacctmgr shows here too: only shares are its own
        name = f"{user}@{partition}" if partition else user
        return Key(Kind.USER, name, account), _given({"fairshare": share})
    fields = {"parent": parent, "fairshare": share, "max_wall": _seconds(wall), "qos": _sorted(qos)}
    return Key(Kind.ACCOUNT, account), _given({**fields, **_limits(limits)})


def _given(fields: Mapping[str, str]) -> Fields:
    return {name: value for name, value in fields.items() if value}


def _sorted(names: str) -> str:
    return ",".join(sorted(filter(None, names.split(","))))


def _limits(text: str) -> dict[str, str]:
    found = {}
    for one in filter(None, text.split(",")):
        name, _, value = one.rpartition("=")
        found[limit(name)] = _mib(value) if name == "mem" else value
    return found


def _mib(text: str) -> str:
    match = re.fullmatch(r"([\d.]+)([KMGTP]?)B?", text)
    if match is None:
        raise Refused(f"sacctmgr answered {text!r} for an amount of memory")
    return str(int(float(match[1]) * _MIB[match[2]]))


def _seconds(text: str) -> str:
    """``1-02:00:00`` -> seconds."""
    if not text:
        return ""
    days, _, rest = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in rest.split(":"))
    return str(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


# -- changes


def command(change: Change, cluster: str) -> tuple[str, ...]:
    """sacctmgr's words for a change. Raises InvalidInput for names that could be read as more than a name."""
    key = change.key
    for name in filter(None, (key.name, key.account, cluster)):
        checked(name)
    if change.action is Action.DELETE:
        return ("sacctmgr", "-i", "delete", key.kind, "where", f"name={key.name}", *_where(key, cluster))
    if change.action is Action.SET:
        said = _said(change.fields)
        return ("sacctmgr", "-i", "modify", key.kind, "where", f"name={key.name}", *_where(key, cluster), "set", *said)
    fields = {name: value for name, value in change.fields.items() if value}
    added = ("sacctmgr", "-i", "add", key.kind, f"name={key.name}", *_where(key, cluster))
    return (*added, *_described(key), *_said(fields))


def _where(key: Key, cluster: str) -> tuple[str, ...]:
    if key.kind is Kind.QOS:
        return ()
    return (f"cluster={cluster}", *((f"account={key.account}",) if key.kind is Kind.USER else ()))


def _described(key: Key) -> tuple[str, ...]:
    if key.kind is Kind.USER:
        return ()
    words = f"description={MADE_BY} {key.name}"
    return (words, f"organization={MADE_BY}") if key.kind is Kind.ACCOUNT else (words,)


def _said(fields: Fields) -> list[str]:
    limits = {name.removeprefix(_LIMIT): value for name, value in fields.items() if name.startswith(_LIMIT)}
    said = [f"GrpTRES={','.join(f'{name}={value or -1}' for name, value in sorted(limits.items()))}"] if limits else []
    for name, value in sorted(fields.items()):
        if name == "qos":
            said += [f"qos+={one}" for one in value.split(",") if one]
        elif name == "max_wall":
            said.append(f"MaxWall={clock(int(value)) if value else -1}")
        elif name == "preempt":
            said.append(f"Preempt={value}")
        elif name == "priority":
            said.append(f"Priority={value or 0}")
        elif name in _ADD:
            said.append(f"{name}={value or _ADD[name]}")
    for one in said:
        if re.fullmatch(r"[A-Za-z]+\+?=[A-Za-z0-9_.,:/=-]*", one) is None:
            raise InvalidInput(f"{one!r} cannot be said to sacctmgr")
    return said


def clock(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def checked(name: str) -> str:
    """Raises InvalidInput."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInput(f"{name!r} cannot be a name in Slurm's accounting")
    return name


def nameable(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
