"""A job's failures and the nodes that it avoids, in its row: what ``crashes.py`` decides by, and what follows from it.

``avoid`` is for whoever finds a node at fault, within a transaction.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Collection
from typing import Any

from sqlalchemy.engine import Row

from penstock.base.reasons import Reason
from penstock.engines.spec import Failure, Observation
from penstock.fleet import inventory
from penstock.jobs import avoided, crashes, submit
from penstock.jobs.avoided import Avoided
from penstock.jobs.crashes import BadNode, Loop
from penstock.jobs.spec import JobSpec
from penstock.store import events
from penstock.store.store import Tx

AVOIDED_S = 6 * 3600.0  # then it may have been mended
_OWN = frozenset({Reason.Failed, Reason.OutOfMemory})  # ends that the ranks brought about


def avoid(tx: Tx, row: Row[Any], node: str, why: str, *, lost: bool = False) -> bool:
    """Keep a job's next attempts off a node; whether it was not so already. What runs goes on."""
    row = submit.by_id(tx.conn, row.id) or row
    known = avoided.load(row.avoided, tx.now)
    before = next((one for one in known if one.node == node), None)
    if before is not None and (lost or not before.lost):
        again = lost and before.lost  # lost twice: it is not in order
        if not again:
            return False
        why, lost = f"{why}, and before: {before.why}", False
    new = Avoided(node, why, tx.now, tx.now + AVOIDED_S, lost)
    _store(tx, row, [*(one for one in known if one.node != node), new])
    tx.emit(submit.ref(row), Reason.NodeAvoided, new.words(), actor="system", data={"node": node, "until": new.until})
    return before is None


def forget(tx: Tx, row: Row[Any], nodes: Collection[str], why: str) -> None:
    """They may be used again before their time."""
    known = avoided.load(row.avoided, tx.now)
    names = [one.node for one in known if one.node in nodes]
    _store(tx, row, [one for one in known if one.node not in nodes])
    if names:
        words = f"node{'s' if len(names) > 1 else ''} {', '.join(names)} may be used again: {why}"
        tx.emit(submit.ref(row), Reason.NodeForgiven, words, actor="system", data={"nodes": names})


def _store(tx: Tx, row: Row[Any], known: Collection[Avoided]) -> None:
    submit.update(tx, row.id, avoided=avoided.dump(known) if known else None)


def take_in(
    tx: Tx, row: Row[Any], attempt: Row[Any], seen: Observation, *, ended_at: float | None
) -> Loop | BadNode | None:
    """Remember the failures that an observation tells of; whose fault the newest is, if it is new. ``ended_at``: of an
    attempt that is over.
    """
    known = crashes.load(json.loads(row.failures)) if row.failures else ()
    told = seen.failures
    restarts = max(seen.restarts, attempt.restarts)
    if ended_at is not None and seen.reason in _OWN and all(one.restart != restarts for one in told):
        told = (*told, _unexplained(attempt, seen, restarts, ended_at))
    new = crashes.taken_in(known, attempt.number, told, _hangs(tx, row, attempt.number) if told else {})
    if new == known:
        return None
    submit.update(tx, row.id, failures=json.dumps(crashes.dump(new)))
    return crashes.verdict(new, JobSpec.model_validate_json(row.spec).crash_loop)


def _hangs(tx: Tx, row: Row[Any], attempt: int) -> dict[float, str]:
    """When ranks of the attempt were ended because they hung, and what was said of it."""
    told = events.page(
        tx.conn, kind="Job", subject_id=row.id, reason=Reason.RankHung, newest_first=True, limit=crashes.KEPT
    )
    mine = [event for event in told if event.data.get("attempt") == attempt and event.data.get("restarted")]
    return {event.at: event.message.partition("; its ranks are started")[0] for event in mine}


def _unexplained(attempt: Row[Any], seen: Observation, restarts: int, ended_at: float) -> Failure:
    """Of an engine that tells ends of ranks at the most: the first of them that no other rank's end brought about."""
    began = attempt.started_at or seen.started_at or ended_at
    nodes = [group["node"] for group in json.loads(attempt.groups)]
    step = (seen.progress or {}).get("step")
    bad = [one for one in seen.ranks if one.ended_at is not None and one.exit_code != 0 and one.restarts == restarts]
    root = min(bad, key=lambda one: (one.signal == signal.SIGTERM, one.ended_at), default=None)
    node = root.node if root is not None else nodes[0] if len(nodes) == 1 else ""
    end = (seen.exit_code, seen.signal) if root is None else (root.exit_code, root.signal)
    rank = None if root is None else root.rank
    return Failure(restarts, rank, node, *end, step, ended_at, max(ended_at - began, 0.0))


def loop_of(row: Row[Any]) -> str:
    """What is said of a job whose newest failures are its script's fault."""
    known = crashes.load(json.loads(row.failures)) if row.failures else ()
    found = crashes.verdict(known, JobSpec.model_validate_json(row.spec).crash_loop)
    return found.message if isinstance(found, Loop) else ""


def others_enough(tx: Tx, row: Row[Any], engine: str | None = None) -> bool:
    """Whether there are as many nodes that take work, and that the job does not avoid, as it needs: else moving is in vain.
    ``engine``: of that one alone.
    """
    row = submit.by_id(tx.conn, row.id) or row
    off = {one.node for one in avoided.load(row.avoided, tx.now)}
    nodes = [one for one in inventory.all_nodes(tx.conn) if engine in (None, one.engine) and one.name not in off]
    spec = JobSpec.model_validate_json(row.spec)
    return sum(not inventory.closed_because(one) for one in nodes) >= spec.least


def lost_nodes(tx: Tx, attempt: Row[Any], message: str) -> list[str]:
    """Of an attempt that ended since a node was lost: those that its engine names, or else those that are not there."""
    nodes = {group["node"] for group in json.loads(attempt.groups)}
    said = nodes.intersection(word.strip(",.;:") for word in message.split())
    ready = {one.name for one in inventory.some_nodes(tx.conn, nodes) if one.ready}
    return sorted(said if len(said) == 1 else nodes - ready)
