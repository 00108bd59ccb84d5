"""Services' part of the loop: load, plan, write, publish, then end what is in no route any more. Serial per service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy.engine import Connection

from penstock.base.errors import InvalidInput
from penstock.base.reasons import Reason
from penstock.base.resource import Actor, Ref
from penstock.jobs import submit
from penstock.jobs.room import Room
from penstock.jobs.state import Phase
from penstock.reconcile.loop import Loop
from penstock.serving import allowance, jobs, past, plan, rolling, routing, scaling, versions
from penstock.serving.gateway.spec import Gateway
from penstock.serving.orders import Function, Orders
from penstock.serving.place import KIND, Place, report_of
from penstock.serving.state import Counts, Replica, ReplicaPhase, Role
from penstock.serving.traffic import Traffic
from penstock.serving.versions import Held
from penstock.store.events import EventRow
from penstock.store.store import Tx

log = logging.getLogger("penstock.serving")
EVERY_S = 10.0  # a look though nothing was heard
COUNT_S = 1.0
DRAWN_S = past.EVERY_S  # where it is for the console alone
ALLOWED_S = 5.0  # that what quota leaves a service is not asked again
ANYWHERE = "0.0.0.0"  # noqa: S104 - where replicas on other machines listen: their gateway is elsewhere


@dataclass(slots=True)
class Done:
    """What one look wrote, and what is left to do after its commit."""

    cancel: list[str] = field(default_factory=list)  # replicas that drain: their jobs end once the routes are published
    again_s: float = EVERY_S
    gone: bool = False
    watched: bool = False
    replicas: dict[str, int] = field(default_factory=dict)


class ServiceReconciler:
    def __init__(self, room: Room, loop: Loop, fence: Callable[[Tx], int], place: Place) -> None:
        self.room = room
        self.store = room.store
        self.loop = loop
        self.fence = fence
        self.place = place
        self.traffic = Traffic(place, self._woken, self._restarted)
        self.watched: set[str] = set()  # services that are looked at each second, for their traffic
        self._ids: dict[tuple[str, str], str] = {}
        self._service_of: dict[str, str] = {}  # by replica
        self._told: dict[str, object] = {}  # the phase that a replica reported last
        self._addresses: dict[str, str] = {}  # of nodes
        self._allowed: dict[str, tuple[float, int | None]] = {}  # when, and how many replicas quota leaves a service
        self._publishing = asyncio.Lock()
        self._counting = False
        self._dirty = 0
        self._published = -1
        loop.reconcilers |= {"service": self.reconcile, "traffic": self.count}

    # -- what wakes it

    async def take_over(self) -> None:
        """Look at every service: after a start, and after leadership came back."""
        self._published = -1
        there = await self.store.read(versions.ids)
        for service_id in there:
            self.loop.enqueue("service", service_id)
        if not there:  # the last one went while no server was there: what it needed goes too
            await self._publish()

    def heard(self, events: list[EventRow]) -> None:
        for event in events:
            if event.kind == KIND and event.subject_id:
                self.loop.enqueue("service", event.subject_id)
            elif event.kind == "Job" and (service := self._service_of.get(event.subject_id)) is not None:
                self.loop.enqueue("service", service)

    def progressed(self, job_id: str) -> None:
        """Only a change of phase is worth a look."""
        service = self._service_of.get(job_id)
        if service is None:
            return
        told = report_of(self.room.progress, job_id).get("serving_phase")
        if self._told.get(job_id) != told:
            self._told[job_id] = told
            self.loop.enqueue("service", service)

    def _woken(self, project: str, name: str) -> None:
        service = self._ids.get((project, name))
        if service is not None:
            self.loop.enqueue("service", service)

    async def _restarted(self, words: str) -> None:
        ref = Ref("Gateway", "gateway")
        await self.store.write(lambda tx: tx.emit(ref, Reason.GatewayRestarted, words, actor="system"))

    async def count(self, _key: object) -> float | None:
        """Once a second while somebody's traffic decides something, else as often as it is drawn."""
        self._counting = bool(self.watched) or self.traffic.carries
        if not self._counting:
            return None
        await self.traffic.count(self.store.clock())
        for service_id in self.watched:
            self.loop.enqueue("service", service_id)
        return COUNT_S if self.watched else DRAWN_S

    async def close(self) -> None:
        await self.traffic.close()

    # -- one look

    async def reconcile(self, service_id: object) -> float | None:
        key = str(service_id)
        await self._resolve(key)
        await self._allow(key)
        done = await self.store.write(lambda tx: self._look(tx, key))
        for job_id in [job for job, owner in self._service_of.items() if owner == key and job not in done.replicas]:
            self._service_of.pop(job_id)
            self._told.pop(job_id, None)
        self._service_of |= dict.fromkeys(done.replicas, key)
        self._watch(key, watched=done.watched)
        self._dirty += 1
        await self._publish()
        if done.cancel:
            await self.store.write(lambda tx: self._cancel(tx, done.cancel))
        if self.traffic.carries and not self._counting:
            self._counting = True
            self.loop.enqueue("traffic", "all")
        if done.gone:
            self._allowed.pop(key, None)
            return None
        return done.again_s

    async def _allow(self, service_id: str) -> None:
        """Ask what quota leaves it, on a reader's snapshot: that costs a view of all that runs."""
        now = self.store.clock()
        if now - self._allowed.get(service_id, (0.0, None))[0] < ALLOWED_S:
            return

        def work(conn: Connection) -> int | None:
            held = versions.held(conn, service_id)
            scales = held is not None and held.spec.autoscaling is not None
            return allowance.most(conn, held, self.room.memory, now) if held is not None and scales else None

        self._allowed[service_id] = (now, await self.store.read(work))

    def _watch(self, service_id: str, *, watched: bool) -> None:
        if watched and service_id not in self.watched:
            self.watched.add(service_id)
            self.loop.enqueue("traffic", "all")
        elif not watched:
            self.watched.discard(service_id)

    def _look(self, tx: Tx, service_id: str) -> Done:
        """All of it in one transaction: what is planned is what is written."""
        self.fence(tx)
        held = versions.held(tx.conn, service_id)
        if held is None:
            return Done(gone=True)
        self._ids[held.row.project, held.row.name] = service_id
        held = self._observe(tx, held)
        if held.spec.autoscaling is not None and held.row.deleted_at is None:
            held = scaling.scale(
                tx, held, self.traffic, self.room.progress, self._allowed.get(service_id, (0.0, None))[1]
            )
        wants = rolling.wants(tx, held, self.traffic, self.room.progress)
        held = versions.held(tx.conn, service_id) or held  # a rollout that ended has changed roles
        snapshot = plan.Snapshot(
            tuple(map(versions.version_of, held.versions)),
            tuple(map(versions.replica_of, held.replicas)),
            wants,
            held.row.deleted_at is not None,
        )
        made = plan.plan(snapshot, tx.now)
        done = Done(again_s=min(made.again_s, EVERY_S))
        for action in made.actions:
            self._apply(tx, held, action, done)
        self._weigh(tx, held, made.weights or {})
        after = versions.held(tx.conn, service_id)
        if after is None:
            return Done(gone=True)
        if held.row.deleted_at is not None and not after.replicas:
            versions.forget(tx, held.row)
            return Done(gone=True)
        self._say(tx, after)
        done.watched = after.spec.autoscaling is not None or after.rollout is not None
        done.replicas = {one.id: one.version for one in after.replicas}
        ready = Counter(one.version for one in after.replicas if one.phase == ReplicaPhase.READY)
        self.traffic.history.replicas(after.row.project, after.row.name, ready)
        return done

    def _observe(self, tx: Tx, held: Held) -> Held:
        """Take in what the replicas' jobs and reports say."""
        changed = False
        lost: dict[int, plan.Version] = {}
        for row in held.replicas:
            job = submit.by_id(tx.conn, row.id)
            report = report_of(self.room.progress, row.id)
            seen = jobs.seen_of(job, report, self._addresses.get(jobs.node_of(job), "") if job is not None else "")
            before = versions.replica_of(row)
            now = plan.observe(before, seen, tx.now)
            if now == before:
                continue
            changed = True
            if now.phase is ReplicaPhase.GONE:
                self._lost(tx, held, before, seen, lost)
                continue
            versions.keep_replica(tx, now, int(report.get("metrics_port") or 0))
            if now.phase is ReplicaPhase.READY:
                self._ready(tx, held, now)
        return (versions.held(tx.conn, held.row.id) or held) if changed else held

    def _lost(self, tx: Tx, held: Held, before: Replica, seen: plan.Seen, lost: dict[int, plan.Version]) -> None:
        """Its job is over. Unasked, that is a loss, and the version waits longer each time before another."""
        versions.drop_replica(tx, before.id)
        if before.phase is ReplicaPhase.DRAINING:
            return
        row = next((one for one in held.versions if one.number == before.version), None)
        refused = jobs.refused(submit.by_id(tx.conn, before.id))
        reason = Reason.ModelRefused if refused else Reason.ReplicaLost
        if row is not None:
            version = lost.get(row.number) or versions.version_of(row)
            after = lost[row.number] = plan.after_loss(version, before, tx.now, refused=refused)
            message = f"{before.name}: {seen.message}"
            told = {"failures": after.failures, "next_at": after.next_at, "reason": reason, "message": message}
            versions.set_version(tx, held.row.id, row.number, **told)
            versions.set_service(tx, held.row.id, reason=reason, message=f"version {row.number}: {message}")
        data = {"version": before.version, "job": before.name, "phase": before.phase}
        tx.emit(versions.ref(held.row), reason, f"{before.name}: {seen.message}", actor="system", data=data)

    def _ready(self, tx: Tx, held: Held, now: Replica) -> None:
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in now.stages.items())
        data = {"version": now.version, "job": now.name, "stages": dict(now.stages)}
        message = f"{now.name} of version {now.version}" + (f": {stages}" if stages else "")
        tx.emit(versions.ref(held.row), Reason.ReplicaReady, message, actor="system", data=data)

    def _apply(self, tx: Tx, held: Held, action: plan.Action, done: Done) -> None:
        if isinstance(action, plan.Start):
            self._start(tx, held, action, done)
        elif isinstance(action, plan.Drain):
            row = next(one for one in held.replicas if one.id == action.replica)
            versions.keep_replica(
                tx, replace(versions.replica_of(row), phase=ReplicaPhase.DRAINING, since=tx.now), row.metrics_port
            )
            done.cancel.append(action.replica)
        elif isinstance(action, plan.Cancel):
            done.cancel.append(action.replica)
        else:
            versions.set_version(
                tx, held.row.id, action.version, role=Role.RETIRED, weight=0, mirror=0, retired_at=tx.now
            )

    def _start(self, tx: Tx, held: Held, action: plan.Start, done: Done) -> None:
        """A job more. One that cannot be made (a quota's budget is spent, say) is tried again later."""
        row = held.row
        version = next(one for one in held.versions if one.number == action.version)
        spec = versions.spec_of(held, version)
        own = spec.engine is None or spec.engine == self.room.engines.own.name
        wanted = jobs.Wanted(
            row.name,
            version.number,
            spec,
            versions.waived(tx.conn, row.project),
            self.place.python if own else "python",
            "127.0.0.1" if own else ANYWHERE,
            tx.now,
            self.place.otlp,
        )
        new = submit.NewJob(
            row.project,
            jobs.job_name(row.name, version.number, tx.now),
            version.user,
            jobs.job_spec(wanted),
            version.unix_user,
            jobs.labels(row.name, version.number),
        )
        try:
            made = self.room.create(tx, Actor(version.user, "", {}, version.unix_user), new)
        except InvalidInput as error:
            words = "; ".join(problem.message for problem in error.details) or error.message
            wait = plan.BACKOFF_LIMIT_S
            versions.set_version(tx, row.id, version.number, message=words, next_at=tx.now + wait)
            done.again_s = min(done.again_s, wait)
            return
        versions.add_replica(tx, row.id, version.number, made.id, made.name)
        done.replicas[made.id] = version.number

    def _weigh(self, tx: Tx, held: Held, weights: Mapping[int, tuple[int, int]]) -> None:
        for row in held.versions:
            weight, mirror = weights.get(row.number, (0, 0))
            if (row.weight, row.mirror) != (weight, mirror) and row.retired_at is None:
                versions.set_version(tx, held.row.id, row.number, weight=weight, mirror=mirror)

    def _say(self, tx: Tx, held: Held) -> None:
        """Why the service is as it is."""
        waiting = [
            job for one in held.replicas if (job := submit.by_id(tx.conn, one.id)) and job.phase == Phase.PENDING
        ]
        reason, message = routing.condition(held, waiting, self.traffic.problem(held.row.project, held.row.name))
        if (held.row.reason, held.row.message) != (reason, message) and held.row.deleted_at is None:
            versions.set_service(tx, held.row.id, reason=reason, message=message)

    def _cancel(self, tx: Tx, replicas: list[str]) -> None:
        self.fence(tx)
        for job_id in replicas:
            job = submit.by_id(tx.conn, job_id)
            if job is not None:
                submit.cancel(tx, job, actor="system", why="its service takes it away")

    # -- the gateway

    async def _publish(self) -> None:
        """Tell the gateway how things are now; who waits meanwhile is told of with the next."""
        async with self._publishing:
            dirty = self._dirty
            if self._published >= dirty:
                return
            before = self._problems()
            try:
                await self.traffic.publish(*await self.store.read(self.gateway))
            finally:
                for service_id in [one for one, what in self._problems().items() if what != before.get(one, "")]:
                    self.loop.enqueue("service", service_id)  # its status tells of it
            self._published = dirty

    def _problems(self) -> dict[str, str]:
        return {service_id: self.traffic.problem(*key) for key, service_id in self._ids.items()}

    def gateway(self, conn: Connection) -> tuple[Gateway, dict[tuple[str, str], Orders]]:
        """All routes, and what the activator is told, from the rows."""
        found = [versions.hold(conn, row) for row in versions.listing(conn, None)]
        sides = self.traffic.activator.address, self.traffic.comparator.address
        services = tuple(routing.service(one, versions.key_rows(conn, one.row.id), *sides) for one in found)
        place = self.place
        told = Gateway(place.host, place.port, services, place.tls_cert, place.tls_key)
        told = replace(told, otlp=place.otlp, access_log=os.path.abspath(f"{place.folder}/gateway/access.log"))
        return told, {(one.row.project, one.row.name): routing.orders(one, self._judge(one)) for one in found}

    def _judge(self, held: Held) -> Function | None:
        """A service's own function lies with its model, in the candidate's work folder, and runs as the candidate does."""
        target, version = held.spec.rollout.compare.function, routing.in_shadow(held)
        if target is None or version is None:
            return None
        mine = [one.id for one in held.replicas if one.version == version.number]
        folder = os.path.join(self.place.jobs, mine[0], "work") if mine else "/nonexistent"
        user = None
        if version.unix_user is not None:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(version.unix_user)
                user = (entry.pw_uid, entry.pw_gid)
        return Function(target, folder, self.place.python, user)

    async def fresh_counts(self) -> Mapping[tuple[str, str, int], Counts]:
        """What the gateway has counted, now; empty where it does not answer."""
        return await self.traffic.count(self.store.clock())

    # -- where nodes are

    async def _resolve(self, service_id: str) -> None:
        """The addresses of the nodes that this service's replicas run on; Envoy takes numbers."""

        def nodes(conn: Connection) -> list[tuple[str, str | None]]:
            held = versions.held(conn, service_id)
            rows = [submit.by_id(conn, one.id) for one in held.replicas] if held is not None else []
            return [(jobs.node_of(row), row.engine) for row in rows if row is not None]

        for node, engine in await self.store.read(nodes):
            if node and node not in self._addresses:
                found = "127.0.0.1" if engine is None else await self._lookup(node, engine)
                if found:
                    self._addresses[node] = found

    async def _lookup(self, node: str, engine_name: str) -> str:
        """As the engine calls its host, else by the node's name; empty where that leads nowhere for now."""
        engine = self.room.engines.find(engine_name)
        offers = engine.nodes() if engine is not None else ()
        host = next((one.address for one in offers if one.name == node), "")
        host = host or node.removeprefix(str(getattr(engine, "node_prefix", "")))
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            log.warning("node %s (%s) has no address here: %s", node, host, error)
            return ""
        return str(found[0][4][0])
