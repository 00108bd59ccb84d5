"""Inference services over HTTP: made, changed, scaled, rolled out and back, and who may call them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput, NotFound, Problem
from penstock.base.ids import check_name
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint
from penstock.serving import jobs, models, versions, view
from penstock.serving.past import Recent
from penstock.serving.place import KIND
from penstock.serving.spec import MAX_REPLICAS, ServiceDocument, ServiceSpec
from penstock.store.store import Tx
from penstock.tenancy.plan import decide, visible

if TYPE_CHECKING:
    from penstock.serving.room import Serving

SERVICES = "/api/v1/projects/{project}/services"
SERVICE = SERVICES + "/{name}"
MAX_SPEC_BYTES = 1 << 20
_KEY_BYTES = 24
RECENT_S = 60.0  # that a service's figures are of


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateService(_Model):
    name: str = Field(max_length=200)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    spec: ServiceSpec

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        problem = check_name(value)
        if problem is not None:
            raise ValueError(problem.message)
        return value


class ReplaceService(_Model):
    spec: ServiceSpec
    labels: dict[str, str] | None = Field(default=None, max_length=64)
    generation: int | None = Field(default=None, ge=1)


class Scale(_Model):
    replicas: int = Field(ge=0, le=MAX_REPLICAS)


class NewKey(_Model):
    name: str = Field(min_length=1, max_length=63)


class Pickles(_Model):
    allowed: bool


class ListQuery(_Model):
    project: str | None = Field(default=None, max_length=100)


def endpoints(serving: Serving) -> Sequence[Endpoint]:
    routes = _Routes(serving)
    read, write = "services.read", "services.write"
    return (
        Endpoint("GET", "/api/v1/services", read, routes.listing, "List inference services", query=ListQuery),
        Endpoint(
            "POST",
            SERVICES,
            write,
            routes.create,
            "Serve a model",
            body=CreateService,
            status=201,
            max_body=MAX_SPEC_BYTES,
        ),
        Endpoint("GET", SERVICE, read, routes.get, "Read a service"),
        Endpoint(
            "PUT", SERVICE, write, routes.replace, "Change a service", body=ReplaceService, max_body=MAX_SPEC_BYTES
        ),
        Endpoint("DELETE", SERVICE, write, routes.delete, "Delete a service; its replicas drain", status=202),
        Endpoint("POST", SERVICE + "/scale", write, routes.scale, "Set how many replicas it has", body=Scale),
        Endpoint("GET", SERVICE + "/rollouts", read, routes.rollouts, "A service's rollouts, the newest first"),
        Endpoint("POST", SERVICE + "/promote", write, routes.promote, "Promote the candidate now"),
        Endpoint("POST", SERVICE + "/rollback", write, routes.rollback, "Go back to the version before"),
        Endpoint("GET", SERVICE + "/traffic", read, routes.traffic, "What the gateway counted, by version"),
        Endpoint("GET", SERVICE + "/history", read, routes.history, "Its traffic of the last half hour, by version"),
        Endpoint("GET", SERVICE + "/keys", read, routes.keys, "A service's API keys, without the keys"),
        Endpoint("POST", SERVICE + "/keys", write, routes.add_key, "Make an API key", body=NewKey, status=201),
        Endpoint("DELETE", SERVICE + "/keys/{key}", write, routes.remove_key, "Delete an API key", status=204),
        Endpoint(
            "PUT",
            "/api/v1/projects/{project}/serving/pickles",
            "projects.write",
            routes.pickles,
            "Allow pickled models in a project, or no more",
            body=Pickles,
        ),
    )


class _Routes:
    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.room = serving.room
        self.store = serving.room.store

    def shown(self, conn: Connection, project: str, name: str) -> dict[str, Any]:
        row = versions.find(conn, project, name)
        return self.told(conn, row)

    def told(self, conn: Connection, row: Row[Any]) -> dict[str, Any]:
        body = view.resource(versions.hold(conn, row), self.serving.url, self.room.progress)
        body["status"]["traffic"] = view.recent(self.recent(row))
        return body

    def recent(self, row: Row[Any]) -> Recent | None:
        control = self.serving.loaded
        if control is None:
            return None
        return control.traffic.history.recent(row.project, row.name, self.store.clock() - RECENT_S)

    def check(self, tx: Tx, actor: Actor, document: ServiceDocument, unfit: Sequence[Problem]) -> None:
        """Raises InvalidInput."""
        problems = [*check(self.serving, tx.conn, actor, document, "spec"), *unfit]
        if problems:
            raise InvalidInput("the service cannot run here", details=problems)

    async def listing(self, call: Call) -> dict[str, Any]:
        query: ListQuery = call.query
        projects = visible(call.actor)
        if query.project is not None:
            projects = frozenset({query.project}) if projects is None else projects & {query.project}

        def work(conn: Connection) -> list[dict[str, Any]]:
            rows = versions.listing(conn, projects)
            return [self.told(conn, row) for row in rows]

        return {"items": await self.store.read(work), "next_cursor": None}

    async def get(self, call: Call) -> dict[str, Any]:
        return await self.store.read(lambda conn: self.shown(conn, call.path["project"], call.path["name"]))

    async def create(self, call: Call) -> dict[str, Any]:
        body: CreateService = call.body
        project = call.path["project"]
        document = ServiceDocument(name=body.name, project=project, labels=body.labels, spec=body.spec)
        unfit = await models.problems(self.serving, call.actor, document, "spec")

        def work(tx: Tx) -> dict[str, Any]:
            self.check(tx, call.actor, document, unfit)
            make(self.serving, tx, call.actor, document)
            return self.shown(tx.conn, project, body.name)

        return await self.store.write(work)

    async def replace(self, call: Call) -> dict[str, Any]:
        body: ReplaceService = call.body
        project, name = call.path["project"], call.path["name"]
        document = ServiceDocument(name=name, project=project, spec=body.spec)
        unfit = await models.problems(self.serving, call.actor, document, "spec")

        def work(tx: Tx) -> dict[str, Any]:
            row = versions.find(tx.conn, project, name)
            self.check(tx, call.actor, document, unfit)
            by = _by(self.serving, call.actor)
            versions.change(tx, row, body.spec, by, generation=body.generation, labels=body.labels)
            return self.shown(tx.conn, project, name)

        return await self.store.write(work)

    async def delete(self, call: Call) -> dict[str, Any]:
        return await self._do(call, lambda tx, row: versions.remove(tx, row, actor=call.actor.user))

    async def scale(self, call: Call) -> dict[str, Any]:
        count: int = call.body.replicas
        return await self._do(call, lambda tx, row: versions.scale(tx, row, count, actor=call.actor.user))

    async def promote(self, call: Call) -> dict[str, Any]:
        return await self._do(call, lambda tx, row: versions.ask(tx, row, "promote", actor=call.actor.user))

    async def rollback(self, call: Call) -> dict[str, Any]:
        return await self._do(call, lambda tx, row: versions.ask(tx, row, "rollback", actor=call.actor.user))

    async def _do(self, call: Call, what: Any) -> dict[str, Any]:
        project, name = call.path["project"], call.path["name"]

        def work(tx: Tx) -> dict[str, Any]:
            what(tx, versions.find(tx.conn, project, name))
            return self.shown(tx.conn, project, name)

        return await self.store.write(work)

    async def rollouts(self, call: Call) -> dict[str, Any]:
        project, name = call.path["project"], call.path["name"]
        items = await self.store.read(lambda conn: view.history(conn, versions.find(conn, project, name)))
        control = self.serving.loaded
        if items and control is not None:
            found = control.traffic.shadowed(project, name, items[0]["candidate"])
            items[0]["shadow"] = view.shadow(found) if found is not None else None
        return {"items": items, "next_cursor": None}

    async def traffic(self, call: Call) -> dict[str, Any]:
        row = await self.store.read(lambda conn: versions.find(conn, call.path["project"], call.path["name"]))
        control = self.serving.loaded
        counts = await control.fresh_counts() if control is not None else {}
        mine = {v: c for (project, name, v), c in counts.items() if (project, name) == (row.project, row.name)}
        return {"items": [{"version": number, **view.traffic(mine[number])} for number in sorted(mine)]}

    async def history(self, call: Call) -> dict[str, Any]:
        row = await self.store.read(lambda conn: versions.find(conn, call.path["project"], call.path["name"]))
        control = self.serving.loaded
        return view.drawn(control.traffic.history.of(row.project, row.name) if control is not None else {})

    async def keys(self, call: Call) -> dict[str, Any]:
        def work(conn: Connection) -> list[dict[str, Any]]:
            row = versions.find(conn, call.path["project"], call.path["name"])
            return view.keys(versions.key_rows(conn, row.id))

        return {"items": await self.store.read(work), "next_cursor": None}

    async def add_key(self, call: Call) -> dict[str, Any]:
        name: str = call.body.name
        secret = "pk-" + secrets.token_urlsafe(_KEY_BYTES)
        digest = hashlib.sha256(secret.encode()).hexdigest()

        def work(tx: Tx) -> bool:
            row = versions.find(tx.conn, call.path["project"], call.path["name"])
            versions.add_key(tx, row, name, digest, actor=call.actor.user)
            return ServiceSpec.model_validate_json(row.spec).exposed.api_keys

        return {"name": name, "key": secret, "asked_for": await self.store.write(work)}

    async def remove_key(self, call: Call) -> None:
        def work(tx: Tx) -> None:
            row = versions.find(tx.conn, call.path["project"], call.path["name"])
            versions.remove_key(tx, row, call.path["key"], actor=call.actor.user)

        await self.store.write(work)

    async def pickles(self, call: Call) -> dict[str, Any]:
        project, allowed = call.path["project"], bool(call.body.allowed)

        def work(tx: Tx) -> None:
            self.room.require_project(tx.conn, project)
            versions.waive(tx, project, actor=call.actor.user, allowed=allowed)

        await self.store.write(work)
        return {"project": project, "allowed": allowed}


# -- also what `apply` does


def check(serving: Serving, conn: Connection, actor: Actor, document: ServiceDocument, path: str) -> list[Problem]:
    """What only this server can say: the same of its replicas as of any job."""
    spec = document.spec
    project = document.project or "default"
    problems = serving.room.check(conn, actor, project, jobs.as_job(document.name, spec), path)
    if spec.model is not None and spec.snapshot is None and not spec.model.startswith("/"):
        problems.append(Problem(f"{path}.model", "was not carried along: give an absolute path that the nodes have"))
    if spec.snapshot is not None and spec.model is not None and _leaves(spec.model):
        problems.append(Problem(f"{path}.model", "must stay within what is carried along"))
    weights = [step.weight for step in spec.rollout.steps]
    problems += [
        Problem(f"{path}.rollout.steps.{n + 1}.weight", f"{later:g} is below the step's before it, {before:g}")
        for n, (before, later) in enumerate(pairwise(weights))
        if later < before
    ]
    refused = serving.room.refuses(conn, project)
    if refused is not None:
        problems.append(Problem("project", refused))
    return [*problems, *_claimed(conn, actor, document, f"{path}.exposed.routes")]


def _claimed(conn: Connection, actor: Actor, document: ServiceDocument, path: str) -> list[Problem]:
    """Routes that another service has already, or that lie below another's `/PROJECT/NAME`."""
    own = (document.project or "default", document.name)
    wanted = [(one.host or "", one.path.rstrip("/")) for one in document.spec.exposed.routes]
    if not wanted:
        return []
    taken: dict[tuple[str, str], tuple[str, str]] = {}
    for row in versions.listing(conn, None):
        other = (row.project, row.name)
        if other != own:
            routes = ServiceSpec.model_validate_json(row.spec).exposed.routes
            taken |= {((one.host or "").lower(), one.path.rstrip("/")): other for one in routes}
            taken["", f"/{row.project}/{row.name}"] = other
    problems = []
    for n, (host, prefix) in enumerate(wanted):
        below = taken.get(("", "/".join(prefix.split("/")[:3]))) if not host else None
        found = taken.get((host.lower(), prefix)) or below
        if found is not None:
            seen = decide(actor, "services.read", found[0])
            whose = f"service {found[1]!r} of project {found[0]!r}" if seen else "a service of another project"
            problems.append(Problem(f"{path}.{n}", f"{host}{prefix or '/'} is {whose} already: take another"))
    return problems


def _leaves(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/")


def make(serving: Serving, tx: Tx, actor: Actor, document: ServiceDocument) -> None:
    project = document.project or "default"
    by = _by(serving, actor)
    versions.create(tx, versions.NewService(project, document.name, by, document.labels, document.spec))


def _by(serving: Serving, actor: Actor) -> versions.By:
    return versions.By(actor.user, serving.room.runs_as(actor))


def apply(serving: Serving, tx: Tx, actor: Actor, documents: Sequence[ServiceDocument]) -> list[dict[str, Any]]:
    """Make or change what the documents say. Raises InvalidInput: then nothing is."""
    problems = [p for d in documents for p in check(serving, tx.conn, actor, d, f"{d.name}: spec")]
    if problems:
        raise InvalidInput("nothing was applied", details=problems)
    items = []
    for document in documents:
        project = document.project or "default"
        item = foresee(tx.conn, document)
        claimed = _claimed(
            tx.conn, actor, document, f"{document.name}: spec.exposed.routes"
        )  # by one of these documents
        if claimed:
            raise InvalidInput("nothing was applied", details=claimed)
        if item["action"] == "create":
            make(serving, tx, actor, document)
        elif item["action"] == "update":
            row = versions.find(tx.conn, project, document.name)
            versions.change(tx, row, document.spec, _by(serving, actor), labels=document.labels or None)
        after = versions.hold(tx.conn, versions.find(tx.conn, project, document.name))
        items.append(item | {"resource": view.resource(after, serving.url, serving.room.progress)})
    return items


def foresee(conn: Connection, document: ServiceDocument) -> dict[str, Any]:
    """What would be done with one document."""
    project = document.project or "default"
    lines: list[str] = []
    changed: list[str] = []
    try:
        held = versions.hold(conn, versions.find(conn, project, document.name))
    except NotFound:
        action = "create"
        least, most = document.spec.bounds
        lines = [f"start {least} replicas" + (f", at the most {most}" if most > least else "")]
    else:
        changed = versions.changes(held.spec, document.spec)
        action = "update" if changed else "unchanged"
        same = versions.template_of(held.spec) == versions.template_of(document.spec)
        if changed and not same:
            lines = [f"roll out a new version, {document.spec.rollout.strategy}"]
    return {
        "kind": KIND,
        "project": project,
        "name": document.name,
        "action": action,
        "changes": changed,
        "workdir": None,
        "plan": lines,
        "resource": None,
    }


def allowed(actor: Actor, documents: Sequence[ServiceDocument]) -> None:
    """Raises NotFound."""
    for document in documents:
        if not decide(actor, "services.write", document.project or "default"):
            raise NotFound(f"there is no project {document.project!r} in which you may serve models")
