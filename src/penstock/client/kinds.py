"""The collections that have words of their own, beside what every kind has."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, NotFound
from penstock.client.resources import API, Collection, Kind, Resource, follow, post, put
from penstock.client.snapshot import absolute, take, take_model
from penstock.client.transport import quote

if TYPE_CHECKING:
    from penstock.client.session import Forward, Terminal
    from penstock.client.snapshot import Snapshot
    from penstock.client.transport import Streaming, Transport

FINAL_PHASES = frozenset({"Succeeded", "Failed", "Cancelled"})


def is_final(job: Resource) -> bool:
    return job.phase in FINAL_PHASES


def new_key() -> str:
    """A fresh ``Idempotency-Key``."""
    return os.urandom(16).hex()


class Jobs(Collection):
    """``client.jobs``."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("Job", "jobs", in_project=True), project)

    def create(
        self,
        spec: Mapping[str, Any],
        *,
        name: str | None = None,
        project: str | None = None,
        labels: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Resource:
        """Makes a job of a spec as it is, once: a try that broke off is repeated with the same ``key``."""
        body = (
            {"spec": dict(spec)}
            | ({"name": name} if name is not None else {})
            | ({"labels": dict(labels)} if labels else {})
        )
        return Resource(post(self._transport, self.path(project=project), body, key=key or new_key()))

    def run(
        self,
        command: Sequence[str],
        *,
        name: str | None = None,
        workdir: str | None = ".",
        snapshot: bool = True,
        **spec: Any,
    ) -> Resource:
        """Makes a job as ``penstock run`` does: with this folder's files and this interpreter's environment.

        ``spec`` holds further fields of the spec (``procs=2``, ``resources={"gpus": 1}``, ``time_limit="1h"``).
        With ``snapshot=False`` the job runs in ``workdir`` itself.
        """
        fields: dict[str, Any] = {"command": list(command)}
        if sys.prefix != sys.base_prefix:
            fields["environment"] = {"venv": sys.prefix}
        if workdir is not None:
            folder = absolute(workdir)
            digest = self.carry(take(folder)) if snapshot else None
            fields |= {"workdir": folder, "snapshot": digest} if digest else {} if snapshot else {"workdir": folder}
        return self.create(fields | spec, name=name)

    def carry(self, snapshot: Snapshot) -> str | None:
        """Sends a snapshot unless the server has it; answers its digest, or None where there is nothing to send."""
        if not snapshot.files:
            return None
        path = f"{API}/snapshots/{snapshot.digest}"
        try:
            self._transport.request("HEAD", path)
        except NotFound:
            headers = {"Content-Type": "application/gzip"}
            self._transport.request("PUT", path, body=snapshot.pieces, headers=headers)
        return snapshot.digest

    def replace(
        self, name: str, spec: Mapping[str, Any], *, generation: int | None = None, project: str | None = None
    ) -> Resource:
        """Writes a new spec. Raises Conflict where ``generation`` is given and no longer the current one."""
        body = {"spec": dict(spec)} | ({} if generation is None else {"generation": generation})
        return Resource(put(self._transport, self.path(name, project=project), body))

    def cancel(self, name: str, *, reason: str | None = None, project: str | None = None) -> Resource:
        return self.act(name, "cancel", {"reason": reason} if reason else {}, project=project)

    def why(self, name: str, *, project: str | None = None) -> Resource:
        """Why it is as it is: reason, evidence, and what would help."""
        return Resource(self.part(name, "why", project=project))

    def attempts(self, name: str, *, project: str | None = None) -> list[Resource]:
        return [Resource(item) for item in self.part(name, "attempts", project=project)["items"]]

    def progress(self, name: str, *, project: str | None = None) -> Resource:
        return Resource(self.part(name, "progress", project=project))

    def goodput(self, name: str, *, project: str | None = None) -> Resource:
        """Where its wall time went."""
        return Resource(self.part(name, "goodput", project=project))

    def steps(self, name: str, *, project: str | None = None) -> Resource:
        """What each rank's steps were spent on, where its script calls ``penstock.watch``."""
        return Resource(self.part(name, "steps", project=project))

    def diagnosis(self, name: str, *, project: str | None = None, **asked: Any) -> Resource:
        """Why it is slow, hangs or failed; ``ticket``: what is wrong, in words."""
        return Resource(self.part(name, "diagnosis", project=project, **asked))

    def checkpoints(self, name: str, *, project: str | None = None) -> Resource:
        """What became of its checkpoints."""
        return Resource(self.part(name, "checkpoints", project=project))

    def save_now(self, name: str, *, project: str | None = None) -> Resource:
        """Ask a running job to save a checkpoint; it does so at its next step."""
        return Resource(
            post(self._transport, self.path(name, "checkpoints", "save", project=project), {}, repeatable=True)
        )

    def inject(self, name: str, body: Mapping[str, Any], *, project: str | None = None) -> Resource:
        """Ask to break something of it on purpose: ``fault``, ``ranks``, ``strength``, ``for_s``. It is recorded."""
        return Resource(post(self._transport, self.path(name, "injections", project=project), body))

    def injection_ended(self, name: str, body: Mapping[str, Any], *, project: str | None = None) -> Resource:
        return Resource(post(self._transport, self.path(name, "injections", "ended", project=project), body))

    def cost(self, name: str, *, project: str | None = None) -> Resource:
        return Resource(self.part(name, "cost", project=project))

    def events(self, name: str, *, project: str | None = None) -> list[Resource]:
        return [Resource(item) for item in self.part(name, "events", project=project, limit=500)["items"]]

    def logs(self, name: str, *, project: str | None = None, **options: Any) -> Streaming:
        """The log as it comes; iterate or ``read()`` it, and close it.

        Options: ``rank`` ("0", "launcher"; none is all merged), ``attempt``, ``follow``, ``since`` (RFC 3339 or epoch
        seconds), ``tail`` (lines), ``prefix``, ``timestamps``, ``raw`` (leaves control sequences in).
        """
        return self._transport.stream(self.path(name, "logs", project=project), query=options)

    def watch(self, name: str, *, after: str | None = None, project: str | None = None) -> Iterator[Resource]:
        """The job now and after every change, until it has ended; taken up again when a stream breaks off."""
        return follow(self._transport, self.path(name, "watch", project=project), after=after, finished=is_final)

    def wait(self, name: str, *, project: str | None = None) -> Resource:
        """The job once it has ended."""
        job = Resource()
        for job in self.watch(name, project=project):  # noqa: B007 - the last one is wanted
            pass
        return job

    def exec(
        self,
        name: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] = (80, 24),
        project: str | None = None,
    ) -> Terminal:
        """Runs a command inside the running job's allocation; ``size`` is columns and rows of its terminal."""
        from penstock.client.session import open_terminal  # noqa: PLC0415 - sessions alone need a WebSocket

        query = {"tty": int(tty), "cols": size[0], "rows": size[1]}
        return open_terminal(self._transport, self.path(name, "exec", project=project), query, command)

    def forward(
        self,
        name: str,
        remote: int,
        local: int = 0,
        *,
        project: str | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> Forward:
        """Listens on ``127.0.0.1:local`` (0 takes a free port) and connects what comes to a port inside the job."""
        from penstock.client.session import Forward  # noqa: PLC0415 - sessions alone need a WebSocket

        path = self.path(name, "forward", project=project)
        return Forward(self._transport, path, {"port": remote}, local, tell)


class Services(Collection):
    """``client.services``: models that are served."""

    def __init__(self, transport: Transport, project: str, jobs: Jobs) -> None:
        super().__init__(transport, Kind("InferenceService", "services", in_project=True, paged=False), project)
        self._jobs = jobs

    def create(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        project: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Resource:
        """Makes a service of a spec as it is."""
        body = {"name": name, "spec": dict(spec), "labels": dict(labels or {})}
        return Resource(post(self._transport, self.path(project=project), body))

    def carry(self, model: str, max_bytes: int | None = None) -> dict[str, str]:
        """Sends a model, a file or a folder, to the server; answers the fields of the spec that name it there."""
        digest = self._jobs.carry(take_model(model, max_bytes=max_bytes))
        if digest is None:
            raise InvalidInput(f"the model {model} is an empty folder")
        return {"model": os.path.basename(absolute(model)), "snapshot": digest}

    def replace(
        self, name: str, spec: Mapping[str, Any], *, generation: int | None = None, project: str | None = None
    ) -> Resource:
        """Writes a new spec; another model is rolled out. Raises Conflict where ``generation`` is not the current one."""
        body = {"spec": dict(spec)} | ({} if generation is None else {"generation": generation})
        return Resource(put(self._transport, self.path(name, project=project), body))

    def scale(self, name: str, replicas: int, *, project: str | None = None) -> Resource:
        return self.act(name, "scale", {"replicas": replicas}, project=project)

    def promote(self, name: str, *, project: str | None = None) -> Resource:
        """The candidate takes all traffic now."""
        return self.act(name, "promote", {}, project=project)

    def rollback(self, name: str, *, project: str | None = None) -> Resource:
        """The candidate goes; where none is there, the version before comes back."""
        return self.act(name, "rollback", {}, project=project)

    def rollouts(self, name: str, *, project: str | None = None) -> list[Resource]:
        """The newest first, each with its evidence."""
        return [Resource(item) for item in self.part(name, "rollouts", project=project)["items"]]

    def traffic(self, name: str, *, project: str | None = None) -> list[Resource]:
        """What the gateway has counted, by version."""
        return [Resource(item) for item in self.part(name, "traffic", project=project)["items"]]

    def cost(self, name: str, *, project: str | None = None) -> Resource:
        """In the last half hour, and per 1,000 requests of it."""
        return Resource(self.part(name, "cost", project=project))

    def keys(self, name: str, *, project: str | None = None) -> list[Resource]:
        return [Resource(item) for item in self.part(name, "keys", project=project)["items"]]

    def add_key(self, name: str, key: str, *, project: str | None = None) -> Resource:
        """``key`` in the answer is shown this once."""
        return Resource(post(self._transport, self.path(name, "keys", project=project), {"name": key}))

    def remove_key(self, name: str, key: str, *, project: str | None = None) -> None:
        self._transport.request("DELETE", self.path(name, "keys", key, project=project))

    def allow_pickles(self, project: str, *, allowed: bool) -> Resource:
        """Pickled models run whatever code they hold when they are read; an administrator may allow them in a project."""
        path = f"{API}/projects/{quote(project)}/serving/pickles"
        return Resource(put(self._transport, path, {"allowed": allowed}))


class Nodes(Collection):
    """``client.nodes``. Each verb answers the node as it is then."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("Node", "nodes", paged=False), project)

    def telemetry(self, name: str, minutes: float = 60.0) -> dict[str, Any]:
        """Its recent samples, as charts of lines, and how its agent is."""
        found: dict[str, Any] = self.part(name, "telemetry", minutes=minutes)
        return found

    def cordon(self, name: str, reason: str | None = None) -> Resource:
        """No new job is placed there; running ones go on."""
        return self._say(name, "cordon", reason)

    def uncordon(self, name: str, reason: str | None = None, *, force: bool = False) -> Resource:
        """``force``: though the node's own site has closed it."""
        return self.act(name, "uncordon", ({"reason": reason} if reason else {}) | ({"force": True} if force else {}))

    def drain(self, name: str, reason: str | None = None) -> Resource:
        """Cordons it and moves its jobs elsewhere, each with its grace period."""
        return self._say(name, "drain", reason)

    def label(self, names: Sequence[str], labels: Mapping[str, str | None]) -> list[Resource]:
        """Gives all these nodes labels (None takes one away), or where one cannot be, none."""
        body = {"nodes": list(names), "labels": dict(labels)}
        answer = post(self._transport, self.path("labels"), body, repeatable=True)
        return [Resource(item) for item in answer["items"]]

    def lose(self, name: str, reason: str | None = None) -> Resource:
        """A drill: as if the node's power went."""
        return self._say(name, "lose", reason)

    def restore(self, name: str, reason: str | None = None) -> Resource:
        """Ends the drill."""
        return self._say(name, "restore", reason)

    def _say(self, name: str, verb: str, reason: str | None) -> Resource:
        return self.act(name, verb, {"reason": reason} if reason else {})


class Engines(Collection):
    """``client.engines``: where jobs may run."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("Engine", "engines", paged=False), project)

    def probe(self, body: Mapping[str, Any]) -> Resource:
        """What a site has; nothing is changed. ``type`` ("slurm"), ``options``, ``managed``, ``token``."""
        return Resource(post(self._transport, self.path("probe"), dict(body), repeatable=True))

    def add(self, body: Mapping[str, Any]) -> Resource:
        """As ``probe``, with a ``name``; ``force`` though the site does not answer."""
        return Resource(post(self._transport, self.path(), dict(body)))

    def look(self, name: str) -> Resource:
        """Probes its site anew."""
        return self.act(name, "probe", {})

    def change(self, name: str, body: Mapping[str, Any]) -> Resource:
        """``options`` that change (None takes one away), ``managed``, ``token``, ``force``."""
        return Resource(put(self._transport, self.path(name), dict(body)))

    def remove(self, name: str, *, force: bool = False) -> None:
        query = {"force": "true"} if force else None
        self._transport.request("DELETE", self.path(name), query=query)


class Events(Collection):
    """``client.events``: the ledger."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("Event", "events"), project)

    def newest(self, count: int, **filters: Any) -> list[Resource]:
        """The last ``count`` events that pass the filters, oldest first."""
        return list(self.list(most=count, newest=True, **filters))[::-1]

    def follow(self, *, after: int | None = None, **filters: Any) -> Iterator[Resource]:
        """Events as they happen, for ever; behind ``after`` (a ``seq``) when given."""
        after_id = None if after is None else str(after)
        return follow(self._transport, f"{API}/events/watch", after=after_id, query=filters)


class Users(Collection):
    """``client.users``."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("User", "users"), project)

    def create(self, name: str, *, role: str = "", unix_user: str | None = None) -> Resource:
        """``role`` is the fleet-wide one: "admin", "viewer" or "" for none. ``unix_user`` runs the user's jobs."""
        return Resource(
            post(self._transport, self.path(), _given({"name": name, "role": role, "unix_user": unix_user}))
        )

    def change(self, name: str, **fields: str) -> Resource:
        """Writes ``role`` or ``unix_user`` anew."""
        return Resource(put(self._transport, self.path(name), fields))


class Tokens(Collection):
    """``client.tokens``. A token's secret is in the answer of ``create`` (as ``token``) and nowhere else."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("Token", "tokens"), project)

    def create(
        self,
        *,
        user: str | None = None,
        name: str | None = None,
        expires_in: str | None = None,
        node: str | None = None,
    ) -> Resource:
        """Never tried twice: a second one would leave a token that nobody knows of. ``node``: for that node's agent."""
        body = {"user": user, "name": name, "expires_in": expires_in, "node": node}
        return Resource(post(self._transport, self.path(), _given(body)))

    def revoke(self, token_id: str) -> None:
        self.delete(token_id)


class Projects(Collection):
    """``client.projects``."""

    def __init__(self, transport: Transport, project: str) -> None:
        super().__init__(transport, Kind("Project", "projects"), project)

    def create(self, name: str) -> Resource:
        return Resource(post(self._transport, self.path(), {"name": name}))

    def members(self, name: str) -> list[Resource]:
        return [Resource(item) for item in self.part(name, "members", limit=500)["items"]]

    def grant(self, name: str, user: str, role: str | None) -> None:
        """Makes ``user`` an "admin", "member" or "viewer" of the project, or with None no member any more."""
        path = self.path(name, "members", user)
        if role is None:
            self._transport.request("DELETE", path)
        else:
            put(self._transport, path, {"role": role})


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
