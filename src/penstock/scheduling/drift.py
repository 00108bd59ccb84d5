"""What to change in a Slurm's accounting, from three sides: what is wanted, what is there, and what we last set. Pure.

Only a field that still says what we set is changed. One that somebody else has changed since is drift: it is shown, and
left unless it is to be overwritten. What we did not make is never changed or deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.engines.slurm.accounts import Accounting, Action, Change, Fields, Key, Kind
from penstock.scheduling.compiler import Wanted

_ORDER = {Kind.QOS: 0, Kind.ACCOUNT: 1, Kind.USER: 2}
_USUAL = {"fairshare": "1", "parent": "root"}  # what Slurm has where nothing was said


@dataclass(frozen=True, slots=True)
class Made:
    """What we last set. ``pending``: we were about to, and may have been interrupted."""

    fields: Fields
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Drift:
    """``ours``: what we set; "gone" in ``field``: the whole entity was deleted by hand."""

    key: Key
    field: str
    ours: str
    found: str
    wanted: str

    def __str__(self) -> str:
        if self.field == GONE:
            return f"{self.key} was deleted by hand"
        said = {"": "nothing"}
        ours, found, wanted = (said.get(one, one) for one in (self.ours, self.found, self.wanted))
        also = "" if self.wanted == self.ours else f"; the queue file wants {wanted}"
        return f"{self.key}: {self.field} is {found}, changed by hand from {ours}{also}"


GONE = "gone"


@dataclass(slots=True)
class Plan:
    changes: list[Change] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # not ours, or not to be deleted: in words
    forget: list[Key] = field(default_factory=list)  # ours, and gone as it should be
    settled: dict[Key, Fields] = field(default_factory=dict)  # ours, and as wanted: what is now known to be set


def plan(wanted: Wanted, there: Accounting, made: Mapping[Key, Made], *, overwrite: bool = False) -> Plan:
    """Parents before children, deletions last and the other way round."""
    found = Plan()
    closed: dict[str, str] = {}  # accounts under which nothing is made, and what is said of it
    for key in _in_order(wanted):
        above = key.account or wanted.entities[key].get("parent", "")
        has, ours = there.entities.get(key), made.get(key)
        if above in closed:
            if key.kind is Kind.ACCOUNT:
                closed[key.name] = closed[above]
                found.left += [f"{key}: not made, {closed[above]}"] if closed[above] else []
        elif has is not None and ours is None:
            if key.kind is not Kind.USER:  # a user whom somebody let in already is well
                found.left.append(f"{key}: is there already, and Penstock did not make it: left as it is")
                closed |= {key.name: "the account above it is not ours"} if key.kind is Kind.ACCOUNT else {}
        elif has is None:
            if not _absent(found, wanted, key, ours, overwrite=overwrite) and key.kind is Kind.ACCOUNT:
                closed[key.name] = ""  # said of it by itself
        elif ours is not None:
            _compare(found, wanted, key, has, ours, overwrite=overwrite)
    _deletions(found, wanted, there, made)
    return found


def _in_order(wanted: Wanted) -> list[Key]:
    depth: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in depth:
            fields = wanted.entities.get(Key(Kind.ACCOUNT, name))
            depth[name] = 0 if fields is None else level(fields["parent"]) + 1
        return depth[name]

    def rank(key: Key) -> tuple[int, int, Key]:
        return _ORDER[key.kind], level(key.name) if key.kind is Kind.ACCOUNT else 0, key

    found = sorted(wanted.entities, key=rank)
    evicts = [key for key in found if key.kind is Kind.QOS and wanted.entities[key].get("preempt")]
    return [key for key in found if key not in evicts and key.kind is Kind.QOS] + [
        *evicts,
        *(key for key in found if key.kind is not Kind.QOS),
    ]


def _absent(found: Plan, wanted: Wanted, key: Key, ours: Made | None, *, overwrite: bool) -> bool:
    """Whether it is to be made."""
    if ours is not None and not ours.pending:
        found.drift.append(Drift(key, GONE, "", "", ""))
        if not overwrite:
            return False
    found.changes.append(Change(Action.ADD, key, wanted.entities[key], wanted.why[key]))
    return True


def _compare(found: Plan, wanted: Wanted, key: Key, has: Fields, ours: Made, *, overwrite: bool) -> None:
    want = wanted.entities[key]
    changed: dict[str, str] = {}
    words = []
    for name in sorted(want.keys() | ours.fields.keys()):
        usual = _USUAL.get(name, "")
        wants, had, now = want.get(name, usual), ours.fields.get(name, usual), has.get(name, usual)
        if _same(name, now, wants):
            continue
        by_hand = not ours.pending and not _same(name, now, had)
        if by_hand:
            found.drift.append(Drift(key, name, had, now, wants))
        if not by_hand or overwrite:
            changed[name] = wants
            words.append(f"{name}: {now or 'nothing'} -> {wants or 'nothing'}")
    if changed:
        found.changes.append(Change(Action.SET, key, changed, f"{wanted.why[key]}; {', '.join(words)}"))
    elif not any(one.key == key for one in found.drift):
        found.settled[key] = want


def _same(name: str, now: str, other: str) -> bool:
    """Of an account's QoS ours must be among them: others are the site's."""
    if name == "qos":
        return set(filter(None, other.split(","))) <= set(now.split(","))
    return now == other


def _deletions(found: Plan, wanted: Wanted, there: Accounting, made: Mapping[Key, Made]) -> None:
    going = [key for key in made if key not in wanted.entities]
    for key in sorted(going, key=lambda one: (-_ORDER[one.kind], -_level(there, one), one)):
        if key not in there.entities:
            found.forget.append(key)
            continue
        if key.kind is Kind.ACCOUNT:  # who is given another parent is gone from here by then
            gone = {one.key for one in found.changes if one.action is Action.DELETE or "parent" in one.fields}
            stays = [child for child in there.children(key.name) if child not in gone]
            if stays:
                names = ", ".join(str(one) for one in stays[:3]) + (" and others" if len(stays) > 3 else "")
                found.left.append(f"{key}: not deleted, {names} would go with it")
                continue
        found.changes.append(Change(Action.DELETE, key, why="the queue file has it no more"))


def _level(there: Accounting, key: Key) -> int:
    """How deep an account stands."""
    level, name = 0, key.name if key.kind is Kind.ACCOUNT else ""
    while name and level < len(there.entities):
        name = there.entities.get(Key(Kind.ACCOUNT, name), {}).get("parent", "")
        level += 1
    return level
