"""Services, versions and replicas as rows: made, changed and read, each change inside one transaction and told as an event."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, NotFound
from penstock.base.ids import new_id
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.serving.place import KIND
from penstock.serving.plan import Version
from penstock.serving.spec import TEMPLATE, ServiceSpec
from penstock.serving.state import WHOLE, Replica, ReplicaPhase, Role, RolloutPhase
from penstock.serving.tables import keys, replicas, rollouts, services, versions, waivers
from penstock.store.store import Tx

OVER = (RolloutPhase.PROMOTED.value, RolloutPhase.ROLLED_BACK.value)
BACK = "back"  # asked of a rollout that goes to the version before: at once, with no tests
KEPT = 20  # retired versions and ended rollouts that are shown


@dataclass(frozen=True, slots=True)
class By:
    """Who makes a version: its replicas run as they do."""

    user: str
    unix_user: str | None = None


@dataclass(frozen=True, slots=True)
class NewService:
    project: str
    name: str
    by: By
    labels: Mapping[str, str]
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class Held:
    """A service with all that lives of it."""

    row: Row[Any]
    spec: ServiceSpec
    versions: tuple[Row[Any], ...]  # that are not retired, the oldest first
    replicas: tuple[Row[Any], ...]
    rollout: Row[Any] | None  # that is under way

    @property
    def wanted(self) -> int:
        """Replicas of the whole service, without a version's own."""
        least, most = self.spec.bounds
        if self.row.wanted is None:
            return least
        asked = int(self.row.wanted)
        return asked if self.spec.autoscaling is None else min(max(asked, least), most)

    @property
    def stable(self) -> Row[Any] | None:
        return next((one for one in self.versions if one.role == Role.STABLE), None)


def ref(row: Row[Any]) -> Ref:
    return Ref(KIND, row.name, row.project, row.id)


def template_of(spec: ServiceSpec) -> dict[str, Any]:
    """What a version is: as it was written, without defaults."""
    body = spec.model_dump(mode="json", exclude_defaults=True)
    return {name: body[name] for name in TEMPLATE if name in body}


def spec_of(held: Held, version: Row[Any]) -> ServiceSpec:
    """The service's specification with what that version runs."""
    body = {k: v for k, v in held.spec.model_dump(mode="json", exclude_defaults=True).items() if k not in TEMPLATE}
    return ServiceSpec.model_validate(body | json.loads(version.template))


def digest_of(template: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# -- reading


def find(conn: Connection, project: str, name: str) -> Row[Any]:
    """Raises NotFound."""
    row = conn.execute(select(services).where(services.c.project == project, services.c.name == name)).first()
    if row is None:
        raise NotFound(f"there is no service {name!r} in project {project!r}")
    return row


def ids(conn: Connection) -> list[str]:
    return list(conn.execute(select(services.c.id).order_by(services.c.id)).scalars())


def listing(conn: Connection, projects: Collection[str] | None) -> list[Row[Any]]:
    query = select(services).order_by(services.c.project, services.c.name)
    if projects is not None:
        query = query.where(services.c.project.in_(projects))
    return list(conn.execute(query).all())


def held(conn: Connection, service_id: str) -> Held | None:
    row = conn.execute(select(services).where(services.c.id == service_id)).first()
    return None if row is None else hold(conn, row)


def hold(conn: Connection, row: Row[Any]) -> Held:
    mine = versions.c.service_id == row.id
    living = conn.execute(select(versions).where(mine, versions.c.retired_at.is_(None)).order_by(versions.c.number))
    made = conn.execute(select(replicas).where(replicas.c.service_id == row.id).order_by(replicas.c.id))
    under_way = conn.execute(
        select(rollouts)
        .where(rollouts.c.service_id == row.id, rollouts.c.ended_at.is_(None))
        .order_by(rollouts.c.created_at.desc())
    ).first()
    spec = ServiceSpec.model_validate_json(row.spec)
    return Held(row, spec, tuple(living.all()), tuple(made.all()), under_way)


def all_rollouts(conn: Connection, service_id: str) -> list[Row[Any]]:
    query = select(rollouts).where(rollouts.c.service_id == service_id).order_by(rollouts.c.created_at.desc())
    return list(conn.execute(query.limit(KEPT)).all())


def replica_of(row: Row[Any]) -> Replica:
    return Replica(
        row.id,
        row.name,
        row.version,
        ReplicaPhase(row.phase),
        row.since,
        row.address,
        row.port,
        row.grpc_port,
        json.loads(row.stages),
    )


def version_of(row: Row[Any]) -> Version:
    return Version(row.number, Role(row.role), row.weight, row.mirror, row.failures, row.next_at)


# -- writing


def create(tx: Tx, new: NewService) -> str:
    """The new service's id. Raises Conflict for a name that is taken."""
    taken = select(services.c.deleted_at).where(services.c.project == new.project, services.c.name == new.name)
    found = tx.conn.execute(taken).first()
    if found is not None:
        raise Conflict(
            f"service {new.name!r} exists in project {new.project!r}"
            + ("" if found.deleted_at is None else ": its last replicas drain"),
            hint="Take another --name, or change it with `penstock apply`.",
        )
    service_id = new_id(tx.now, os.urandom(10))
    tx.conn.execute(
        insert(services).values(
            id=service_id,
            project=new.project,
            name=new.name,
            user=new.by.user,
            labels=json.dumps(dict(new.labels)),
            generation=1,
            spec=new.spec.model_dump_json(exclude_defaults=True),
            wanted=None,
            scaling="{}",
            demand_at=None,
            reason=Reason.Created,
            message="its first replica starts",
            created_at=tx.now,
            updated_at=tx.now,
        )
    )
    tx.emit(
        Ref(KIND, new.name, new.project, service_id), Reason.Created, "made", actor=new.by.user, data={"generation": 1}
    )
    _add_version(tx, service_id, 1, new.spec, Role.STABLE, new.by)
    return service_id


def _add_version(tx: Tx, service_id: str, number: int, spec: ServiceSpec, role: Role, by: By) -> None:
    template = template_of(spec)
    tx.conn.execute(
        insert(versions).values(
            service_id=service_id,
            number=number,
            template=json.dumps(template),
            digest=digest_of(template),
            user=by.user,
            unix_user=by.unix_user,
            role=role,
            weight=WHOLE if role is Role.STABLE else 0,
            mirror=0,
            failures=0,
            next_at=None,
            reason="",
            message="",
            created_at=tx.now,
            retired_at=None,
        )
    )


def changes(old: ServiceSpec, new: ServiceSpec) -> list[str]:
    """Names of the top-level fields that differ."""
    return [name for name in ServiceSpec.model_fields if getattr(old, name) != getattr(new, name)]


def change(
    tx: Tx,
    row: Row[Any],
    spec: ServiceSpec,
    by: By,
    *,
    generation: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """Give it another specification: "unchanged" or "update". Another template makes a version, which is rolled out.

    Raises Conflict where ``generation`` is not the present one.
    """
    if row.deleted_at is not None:
        raise Conflict(f"service {row.name!r} is being deleted")
    if generation is not None and generation != row.generation:
        raise Conflict(f"service {row.name!r} is at generation {row.generation}, not {generation}")
    before = hold(tx.conn, row)
    differ = changes(before.spec, spec)
    relabelled = labels is not None and json.dumps(dict(labels)) != row.labels
    if not differ and not relabelled:
        return "unchanged"
    values: dict[str, Any] = {"spec": spec.model_dump_json(exclude_defaults=True), "generation": row.generation + 1}
    if {"replicas", "autoscaling"} & set(differ):
        values["wanted"] = None
    if labels is not None:
        values["labels"] = json.dumps(dict(labels))
    tx.conn.execute(update(services).where(services.c.id == row.id).values(**values, updated_at=tx.now))
    tx.emit(
        ref(row),
        Reason.Updated,
        f"generation {row.generation + 1}: {', '.join(differ) or 'labels'}",
        actor=by.user,
        data={"generation": row.generation + 1, "changed": differ},
    )
    if set(differ) & set(TEMPLATE):
        _roll_out(tx, before, spec, by)
    return "update"


def _roll_out(tx: Tx, before: Held, spec: ServiceSpec, by: By) -> None:
    """A candidate takes the place of one that was under way; what is the stable version's again ends that rollout."""
    row, stable = before.row, before.stable
    digest = digest_of(template_of(spec))
    if before.rollout is not None:
        end_rollout(tx, row, before.rollout, RolloutPhase.ROLLED_BACK, "another version took its place", actor=by.user)
    if stable is None or stable.digest == digest:
        return
    number = 1 + (
        tx.conn.execute(select(func.max(versions.c.number)).where(versions.c.service_id == row.id)).scalar() or 0
    )
    never_served = before.rollout is None and not any(one.phase == ReplicaPhase.READY for one in before.replicas)
    if never_served and row.wanted != 0 and before.wanted:
        # Nothing serves: there is no traffic to be careful of, and the version that never came up is in the way.
        _retire_role(tx, row.id, stable.number)
        _add_version(tx, row.id, number, spec, Role.STABLE, by)
        message = f"version {number} takes the place of {stable.number}, which never served"
        tx.emit(ref(row), Reason.VersionCreated, message, actor=by.user)
        return
    _add_version(tx, row.id, number, spec, Role.CANDIDATE, by)
    tx.emit(ref(row), Reason.VersionCreated, f"version {number}", actor=by.user, data={"version": number})
    begin_rollout(tx, row, stable.number, number, actor=by.user)


def _retire_role(tx: Tx, service_id: str, number: int) -> None:
    set_version(tx, service_id, number, role=Role.RETIRED)


def begin_rollout(tx: Tx, row: Row[Any], stable: int, candidate: int, *, actor: str) -> None:
    tx.conn.execute(
        insert(rollouts).values(
            id=new_id(tx.now, os.urandom(10)),
            service_id=row.id,
            stable=stable,
            candidate=candidate,
            phase=RolloutPhase.PREPARING,
            step=0,
            since=tx.now,
            memory="{}",
            evidence="[]",
            asked="",
            asked_by="",
            message="the candidate's replicas start",
            created_at=tx.now,
            ended_at=None,
        )
    )
    data = {"stable": stable, "candidate": candidate}
    tx.emit(ref(row), Reason.RolloutStarted, f"version {candidate} in the place of {stable}", actor=actor, data=data)


def end_rollout(
    tx: Tx, row: Row[Any], rollout: Row[Any], phase: RolloutPhase, message: str, *, actor: str = "system"
) -> None:
    """Promoted: the candidate is the stable one. Rolled back: it is retired, and its template leaves the specification."""
    won = phase is RolloutPhase.PROMOTED
    stays, goes = (rollout.candidate, rollout.stable) if won else (rollout.stable, rollout.candidate)
    set_version(tx, row.id, goes, role=Role.RETIRED)
    set_version(tx, row.id, stays, role=Role.STABLE)
    tx.conn.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout.id)
        .values(phase=phase, message=message, ended_at=tx.now, asked="", asked_by="")
    )
    reason = Reason.Promoted if won else Reason.RolledBack
    data = {"stable": rollout.stable, "candidate": rollout.candidate, "rollout": rollout.id}
    tx.emit(ref(row), reason, f"version {rollout.candidate}: {message}", actor=actor, data=data)


def ask(tx: Tx, row: Row[Any], what: str, *, actor: str) -> None:
    """Promote or roll back, as a person says; where nothing is under way, back is the version before. Raises Conflict."""
    before = hold(tx.conn, row)
    if before.rollout is not None:
        if what == "rollback" and before.rollout.candidate < before.rollout.stable:
            raise Conflict(f"{row.name!r} goes back to version {before.rollout.candidate} already")
        tx.conn.execute(update(rollouts).where(rollouts.c.id == before.rollout.id).values(asked=what, asked_by=actor))
        tx.emit(ref(row), Reason.Updated, f"{what} was asked for", actor=actor, data={"asked": what})
        return
    if what != "rollback":
        raise Conflict(f"no rollout of {row.name!r} is under way", hint="`penstock rollout status` shows the last one.")
    last = next((one for one in all_rollouts(tx.conn, row.id) if one.phase == RolloutPhase.PROMOTED), None)
    stable = before.stable
    if last is None or stable is None or last.candidate != stable.number:
        raise Conflict(f"{row.name!r} has no earlier version to go back to")
    if last.stable > last.candidate:  # a second word, said in haste, must not bring back what was thrown out
        raise Conflict(
            f"{row.name!r} was rolled back from version {last.stable} to {last.candidate} already",
            hint="To go elsewhere, `penstock apply` the specification that you want.",
        )
    _return_to(tx, before, last.stable, actor)


def _return_to(tx: Tx, before: Held, number: int, actor: str) -> None:
    """The version before serves again, as it was: it is rolled out at once, whatever the strategy."""
    row = before.row
    old = tx.conn.execute(select(versions).where(versions.c.service_id == row.id, versions.c.number == number)).first()
    stable = before.stable
    if old is None or stable is None:
        raise Conflict(f"version {number} of {row.name!r} is not known any more")
    set_version(tx, row.id, number, role=Role.CANDIDATE, retired_at=None, failures=0, next_at=None)
    tx.conn.execute(
        update(services)
        .where(services.c.id == row.id)
        .values(
            spec=spec_of(before, old).model_dump_json(exclude_defaults=True),
            generation=row.generation + 1,
            updated_at=tx.now,
        )
    )
    begin_rollout(tx, row, stable.number, number, actor=actor)
    under_way = hold(tx.conn, row).rollout
    if under_way is not None:
        tx.conn.execute(update(rollouts).where(rollouts.c.id == under_way.id).values(asked=BACK, asked_by=actor))


def scale(tx: Tx, row: Row[Any], count: int, *, actor: str) -> None:
    """A person's word. Raises Conflict where the autoscaler decides."""
    spec = ServiceSpec.model_validate_json(row.spec)
    if spec.autoscaling is not None:
        raise Conflict(
            f"{row.name!r} scales by itself, between {spec.autoscaling.min} and {spec.autoscaling.max}",
            hint="Change `autoscaling` in its specification with `penstock apply`.",
        )
    changed = spec.model_copy(update={"replicas": count})
    tx.conn.execute(
        update(services)
        .where(services.c.id == row.id)
        .values(
            spec=changed.model_dump_json(exclude_defaults=True),
            generation=row.generation + 1,
            wanted=None,
            updated_at=tx.now,
        )
    )
    tx.emit(ref(row), Reason.Scaled, f"to {count}", actor=actor, data={"to": count})


def remove(tx: Tx, row: Row[Any], *, actor: str) -> None:
    """Its replicas drain; the row goes with the last of them."""
    if row.deleted_at is None:
        set_service(tx, row.id, deleted_at=tx.now, reason=Reason.Deleted, message="its replicas drain")
        tx.emit(ref(row), Reason.Deleted, "its replicas drain", actor=actor)


def forget(tx: Tx, row: Row[Any]) -> None:
    for table in (versions, replicas, rollouts, keys):
        tx.conn.execute(delete(table).where(table.c.service_id == row.id))
    tx.conn.execute(delete(services).where(services.c.id == row.id))


def set_service(tx: Tx, service_id: str, **values: Any) -> None:
    tx.conn.execute(update(services).where(services.c.id == service_id).values(**values))


def set_version(tx: Tx, service_id: str, number: int, **values: Any) -> None:
    mine = (versions.c.service_id == service_id) & (versions.c.number == number)
    tx.conn.execute(update(versions).where(mine).values(**values))


def set_rollout(tx: Tx, rollout_id: str, **values: Any) -> None:
    tx.conn.execute(update(rollouts).where(rollouts.c.id == rollout_id).values(**values))


def add_replica(tx: Tx, service_id: str, version: int, job_id: str, name: str) -> None:
    tx.conn.execute(
        insert(replicas).values(
            id=job_id,
            service_id=service_id,
            version=version,
            name=name,
            phase=ReplicaPhase.STARTING,
            since=tx.now,
            address="",
            port=0,
            grpc_port=0,
            metrics_port=0,
            stages="{}",
        )
    )


def keep_replica(tx: Tx, one: Replica, metrics_port: int = 0) -> None:
    tx.conn.execute(
        update(replicas)
        .where(replicas.c.id == one.id)
        .values(
            phase=one.phase,
            since=one.since,
            address=one.address,
            port=one.port,
            grpc_port=one.grpc_port,
            metrics_port=metrics_port,
            stages=json.dumps(dict(one.stages)),
        )
    )


def drop_replica(tx: Tx, replica_id: str) -> None:
    tx.conn.execute(delete(replicas).where(replicas.c.id == replica_id))


# -- keys, and who may serve pickles


def add_key(tx: Tx, row: Row[Any], name: str, digest: str, *, actor: str) -> str:
    """Raises Conflict for a name that is taken."""
    if any(one.name == name for one in key_rows(tx.conn, row.id)):
        raise Conflict(f"service {row.name!r} has a key {name!r}")
    key_id = new_id(tx.now, os.urandom(10))
    tx.conn.execute(
        insert(keys).values(id=key_id, service_id=row.id, name=name, digest=digest, user=actor, created_at=tx.now)
    )
    tx.emit(ref(row), Reason.TokenCreated, f"key {name}", actor=actor)
    return key_id


def remove_key(tx: Tx, row: Row[Any], name: str, *, actor: str) -> None:
    """Raises NotFound."""
    found = next((one for one in key_rows(tx.conn, row.id) if one.name == name), None)
    if found is None:
        raise NotFound(f"service {row.name!r} has no key {name!r}")
    tx.conn.execute(delete(keys).where(keys.c.id == found.id))
    tx.emit(ref(row), Reason.TokenRevoked, f"key {name}", actor=actor)


def key_rows(conn: Connection, service_id: str) -> list[Row[Any]]:
    return list(conn.execute(select(keys).where(keys.c.service_id == service_id).order_by(keys.c.id)).all())


def waived(conn: Connection, project: str) -> bool:
    return conn.execute(select(waivers.c.project).where(waivers.c.project == project)).first() is not None


def waive(tx: Tx, project: str, *, actor: str, allowed: bool) -> None:
    tx.conn.execute(delete(waivers).where(waivers.c.project == project))
    if allowed:
        tx.conn.execute(insert(waivers).values(project=project, user=actor, created_at=tx.now))
    words = "pickles may be served" if allowed else "pickles are refused"
    tx.emit(Ref("Project", project, project), Reason.Updated, words, actor=actor)
