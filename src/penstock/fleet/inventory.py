"""Nodes: taken over from what engines offer; cordon, drain and loss are recorded here and felt by scheduling."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, InvalidInput, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.engines.several import OWN
from penstock.engines.spec import NodeOffer
from penstock.fleet.labels import MOST, effective, problems, words
from penstock.fleet.tables import nodes
from penstock.store.store import Tx

SETTLED_S = 30.0  # how old what people said of a node must be before its engine's word is put over it
MANY = 500  # names in one statement; above it all rows are read
_PLACE = ("name", "engine", "ready", "cordoned", "draining", "closed", "offered_labels", "labels")
_PLACES = select(*(nodes.c[name] for name in _PLACE)).order_by(nodes.c.name)
_ALL = select(nodes).order_by(nodes.c.name)


def ref(name: str) -> Ref:
    return Ref("Node", name, id=name)


def sync(tx: Tx, engine: str, offers: Iterable[NodeOffer], others: Collection[str] = ()) -> list[str]:
    """Make the table agree with what ``engine`` offers now. Nodes of the ``others`` stay, and their names are taken; nodes of
    any other engine (a backup's) are not there. Returns the names of nodes that changed.
    """
    rows = {row.name: row for row in tx.conn.execute(_ALL)}
    taken = {name for name, row in rows.items() if row.engine != engine and row.engine in others}
    known = {name: row for name, row in rows.items() if name not in taken}
    changed = [row.name for row in known.values() if row.engine != engine]
    for name in changed:
        _leave(tx, known.pop(name))
    for offer in offers:
        row = known.pop(offer.name, None)
        if offer.name in taken:
            continue
        if row is None:
            _join(tx, engine, offer)
        elif not _update(tx, row, offer):
            continue
        changed.append(offer.name)
    for row in known.values():
        _leave(tx, row)
        changed.append(row.name)
    return changed


def owners(conn: Connection) -> dict[str, str]:
    """By node, its engine."""
    return dict(conn.execute(select(nodes.c.name, nodes.c.engine)).all())


def left_out(owner: Mapping[str, str], engine: str, offers: Iterable[NodeOffer]) -> dict[str, str]:
    """Which of these nodes another engine has by the same name, and which engine: they cannot be nodes of this one too."""
    return {one.name: owner[one.name] for one in offers if owner.get(one.name, engine) != engine}


def clashes(conn: Connection, engine: str, offers: Iterable[NodeOffer]) -> list[str]:
    """The same, in words."""
    return [
        f"node {name} of engine {engine} is left out: engine {other} has a node of that name"
        for name, other in left_out(owners(conn), engine, offers).items()
    ]


def tell_of_clashes(tx: Tx, engine: str, told: Collection[str]) -> None:
    """For whoever looks why a node is not there."""
    hint = f"; `penstock engines set {engine} --node-prefix {engine}-` sets them apart"
    tx.emit(Ref("Engine", engine, id=engine), Reason.EngineChanged, "; ".join(sorted(told)) + hint, actor="system")


def _leave(tx: Tx, row: Row[Any]) -> None:
    tx.conn.execute(nodes.delete().where(nodes.c.name == row.name))
    tx.emit(ref(row.name), Reason.Lost, f"the {row.engine} engine no longer offers it", actor="system")


def check_engine(conn: Connection, engine: str) -> None:
    """Raises Conflict where the fleet in this database is another server's own: made-up and real jobs never mix."""
    found = set(conn.execute(select(nodes.c.engine).distinct()).scalars()) & OWN - {engine}
    if not found:
        return
    other = found.pop()
    if other == "simulated":
        raise Conflict(
            "this data folder is a simulated fleet's, whose jobs never really ran",
            hint="Start it with --simulate as before, or give this server another folder with --data-dir.",
        )
    raise Conflict(
        f"this data folder holds real jobs, of the {other} engine",
        hint="Give the simulated fleet another folder with --data-dir, or leave out --simulate.",
    )


def _join(tx: Tx, engine: str, offer: NodeOffer) -> None:
    gpus = _gpus(offer)
    tx.conn.execute(
        nodes.insert().values(
            name=offer.name,
            engine=engine,
            cpus=offer.cpus,
            memory=offer.memory,
            gpus=json.dumps(gpus),
            ready=offer.ready,
            cordoned=False,
            draining=False,
            reason=Reason.Joined,
            message=offer.message or offer.closed,
            joined_at=tx.now,
            changed_at=tx.now,
            offered_labels=json.dumps(dict(offer.labels)),
            labels="{}",
            closed=offer.closed,
        )
    )
    if offer.cordoned:
        cordon(tx, offer.name, actor="engine", why="cordoned by Penstock before it joined")
    tx.emit(
        ref(offer.name),
        Reason.Joined,
        f"{offer.cpus:g} CPUs, {len(offer.gpus)} GPUs",
        actor="system",
        data={"cpus": offer.cpus, "memory": offer.memory, "gpus": gpus, "ready": offer.ready},
    )


def _gpus(offer: NodeOffer) -> list[dict[str, Any]]:
    """What is stored of them; ``mig`` only of those that are cut."""
    return [
        {"id": gpu.id, "model": gpu.model, "memory": gpu.memory}
        | ({"mig": [{"id": one.id, "profile": one.profile} for one in gpu.mig]} if gpu.mig else {})
        for gpu in offer.gpus
    ]


def _update(tx: Tx, row: Row[Any], offer: NodeOffer) -> bool:
    """Returns whether anything changed."""
    return _take_over(tx, row, offer) | _agree(tx, row, offer)


def _agree(tx: Tx, row: Row[Any], offer: NodeOffer) -> bool:
    """An engine that schedules itself has the last word on whether Penstock's cordon still holds there."""
    if offer.cordoned is None or offer.cordoned == bool(row.cordoned) or tx.now - row.changed_at < SETTLED_S:
        return False
    if offer.cordoned:
        cordon(tx, row.name, actor="engine", why="cordoned by Penstock before")
    else:
        uncordon(tx, row.name, actor="engine", why="opened again by its site, not by Penstock")
    return True


def _take_over(tx: Tx, row: Row[Any], offer: NodeOffer) -> bool:
    found = _gpus(offer)
    gpus = json.dumps(found)
    offered = json.dumps(dict(offer.labels))
    has = (offer.cpus, offer.memory, gpus, offer.ready, offered, offer.closed)
    if (row.cpus, int(row.memory), row.gpus, bool(row.ready), row.offered_labels, row.closed) == has:
        return False
    reason, message = Reason.Changed, offer.message or offer.closed
    if bool(row.ready) != offer.ready:
        reason = Reason.Restored if offer.ready else Reason.Lost
    elif row.closed and not offer.closed:
        message = f"opened again by its site: it was {row.closed}"
    kept = row.cordoned and reason is Reason.Changed  # what people said of it
    _set(
        tx,
        row.name,
        cpus=offer.cpus,
        memory=offer.memory,
        gpus=gpus,
        ready=offer.ready,
        reason=row.reason if kept else reason,
        message=row.message if kept else message,
        offered_labels=offered,
        closed=offer.closed,
    )
    data = {"cpus": offer.cpus, "memory": offer.memory, "gpus": found, "ready": offer.ready}
    tx.emit(ref(row.name), reason, message, actor="system", data=data)
    return True


def _set(tx: Tx, name: str, **values: Any) -> None:
    tx.conn.execute(nodes.update().where(nodes.c.name == name).values(changed_at=tx.now, **values))


def get(conn: Connection, name: str) -> Row[Any]:
    row = conn.execute(select(nodes).where(nodes.c.name == name)).first()
    if row is None:
        raise NotFound(f"there is no node {name!r}", hint="`penstock nodes` lists them.")
    return row


def cordon(tx: Tx, name: str, *, actor: str, why: str, drain: bool = False) -> None:
    """No new work; with ``drain`` what runs there is told to stop and starts elsewhere (jobs/ hears the event)."""
    row = get(tx.conn, name)
    if row.cordoned and bool(row.draining) >= drain:
        return
    reason = Reason.Drained if drain else Reason.Cordoned
    _set(tx, name, cordoned=True, draining=drain, reason=reason, message=why)
    tx.emit(ref(name), reason, why, actor=actor)


def uncordon(tx: Tx, name: str, *, actor: str, why: str) -> None:
    if get(tx.conn, name).cordoned:
        reopen(tx, name, actor=actor, why=why)


def reopen(tx: Tx, name: str, *, actor: str, why: str) -> None:
    """Uncordon it, though its own site had closed it."""
    _set(tx, name, closed="", cordoned=False, draining=False, reason=Reason.Uncordoned, message=why)
    tx.emit(ref(name), Reason.Uncordoned, why, actor=actor)


def label(tx: Tx, names: Collection[str], changes: Mapping[str, str | None], *, actor: str) -> list[str]:
    """Give all these nodes, or none, labels (None takes one away). Returns those it changed anything of. Raises NotFound,
    InvalidInput.
    """
    wrong = problems(changes)
    if wrong:
        raise InvalidInput("these are no labels", details=wrong)
    rows = {row.name: row for row in some_nodes(tx.conn, names)}
    missing = sorted(set(names) - rows.keys())
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise NotFound(f"there is no node {shown}; nothing was changed", hint="`penstock nodes` lists them.")
    changed = []
    for row in rows.values():
        offered = json.loads(row.offered_labels)
        before = json.loads(row.labels)
        said = {key: value for key, value in {**before, **changes}.items() if offered.get(key) != value}
        after = effective(offered, said)
        if len(after) > MOST:
            raise InvalidInput(f"{row.name} would have {len(after)} labels; {MOST} is the most")
        if after == labels_of(row):
            continue
        _set(tx, row.name, labels=json.dumps(said, sort_keys=True))
        tx.emit(ref(row.name), Reason.Labelled, words(changes), actor=actor, data={"labels": after})
        changed.append(row.name)
    return changed


def labels_of(row: Row[Any]) -> dict[str, str]:
    return effective(json.loads(row.offered_labels), json.loads(row.labels))


def places(conn: Connection) -> list[Row[Any]]:
    """Of every node, whether it may be used, and where it is: without what it has, which is most of a row."""
    return list(conn.execute(_PLACES))


def all_nodes(conn: Connection) -> list[Row[Any]]:
    return list(conn.execute(_ALL))


def gpus_by_node(conn: Connection) -> list[tuple[int, str]]:
    """How many GPUs each node has, and of which model (its first one's)."""
    found = [json.loads(text) for (text,) in conn.execute(select(nodes.c.gpus).order_by(nodes.c.name))]
    return [(len(gpus), str(gpus[0].get("model") or "") if gpus else "") for gpus in found]


def some_nodes(conn: Connection, names: Collection[str]) -> list[Row[Any]]:
    """Those of ``names`` that there are."""
    if len(names) > MANY:
        return [row for row in all_nodes(conn) if row.name in names]
    return list(conn.execute(select(nodes).where(nodes.c.name.in_(sorted(names)))))


def closed_because(row: Row[Any]) -> str:
    """Empty when the node takes new work. What its own site has closed says so in that site's words."""
    if not row.ready:
        return "lost" if row.reason == Reason.Lost else "not ready"
    if row.cordoned:
        return "drained (cordoned)" if row.draining else "cordoned"
    return str(row.closed)
