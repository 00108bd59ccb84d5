"""A fleet in memory, shaped as docs/internals.md shows its JSON, behind the real API application: what the console meets."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from penstock.api.asgi import App, cookie_name
from penstock.api.asgi import build as build_api
from penstock.base.errors import NotFound, Unauthenticated
from penstock.base.quantities import format_time
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint, Stream
from penstock.base.settings import Settings
from penstock.capacity.asked import ReplayForm
from penstock.console.asgi import PUBLIC_PATHS, Gate
from penstock.console.asgi import build as build_console
from penstock.diagnosis.routes import Asked
from penstock.telemetry.routes import Window
from penstock.tenancy.plan import decide
from tests.console import operations, services
from tests.console.operations import SOURCES, queue_report, replay_record, waiting_report
from tests.health import sample as health
from tests.telemetry.agents import an_hour

TOKEN = "pst_test-token"
SESSION = "test-session"
JOB = "/api/v1/projects/{project}/jobs/{name}"


class Query(BaseModel):
    """Any of the lists' parameters."""

    model_config = ConfigDict(extra="forbid")
    project: str | None = None
    phase: list[str] = []
    q: str | None = None
    queue: str | None = None
    limit: int = 100
    cursor: int | None = None
    kind: str | None = None
    name: str | None = None
    reason: str | None = None
    actor: str | None = None
    newest: bool = False


class LogQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: str | None = None
    attempt: int | None = None
    follow: bool = False
    tail: int | None = None


class Why(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = ""


@dataclass
class Fleet:
    """``now`` is the moment that everything in it is dated from (epoch seconds)."""

    now: float
    role: str = "admin"
    jobs: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    attempts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    series: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    helps: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    queues: dict[str, Any] = field(default_factory=queue_report)
    waiting: dict[str, Any] = field(default_factory=lambda: {"items": []})
    replays: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    services: services.Services = field(init=False)
    followers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.services = services.sample(self.now)

    # -- filling it -----------------------------------------------------------------------------

    def job(self, name: str, phase: str, reason: str, *, age: float, **more: Any) -> dict[str, Any]:
        started, ended = more.get("started"), more.get("ended")
        spec = {
            "command": ["python", "train.py", "--epochs", "20"],
            "launcher": "torchrun" if more.get("procs", 2) > 1 else "none",
            "nodes": more.get("node_count", 1),
            "procs": more.get("procs", 2),
            "resources": {"cpus": 2.0, "memory": "4Gi", "gpus": more.get("gpus", 0)},
            "env": {"OMP_NUM_THREADS": "1"},
            "workdir": "/home/ada/digits",
            "environment": {"venv": "/home/ada/.venv"},
            "time_limit": "4h",
            "grace_period": "30s",
            "max_restarts": 3,
            "depends_on": more.get("depends_on", []),
            "array": more.get("array_spec"),
        }
        status = {
            "phase": phase,
            "reason": reason,
            "message": more.get("message", ""),
            "observed_generation": 1,
            "conditions": [],
            "attempt": more.get("attempt", 1 if started is not None else 0),
            "restarts": more.get("restarts", 0),
            "nodes": more.get("nodes", []),
            "queued_at": format_time(self.now - age),
            "started_at": format_time(self.now - started) if started is not None else None,
            "finished_at": format_time(self.now - ended) if ended is not None else None,
            "exit_code": more.get("exit_code"),
            "signal": more.get("signal"),
            "progress": more.get("progress"),
            "array": more.get("array"),
        }
        body = {
            "kind": "Job",
            "project": more.get("project", "default"),
            "name": name,
            "id": f"01J{len(self.jobs):023d}",
            "generation": 1,
            "user": more.get("user", "ada"),
            "created_at": format_time(self.now - age),
            "labels": more.get("labels", {}),
            "spec": spec,
            "status": status,
        }
        self.jobs.insert(0, body)
        return body

    def event(self, kind: str, project: str, name: str, reason: str, message: str = "", **more: Any) -> None:
        seq = len(self.events) + 1
        at = format_time(self.now - more.pop("age", 0.0))
        actor = more.pop("actor", "system")
        self.events.append(
            {
                "seq": seq,
                "at": at,
                "actor": actor,
                "kind": kind,
                "project": project,
                "name": name,
                "reason": reason,
                "message": message,
                "data": more or None,
                "hash": f"{seq:064x}",
            }
        )

    def write(self, name: str, *lines: str) -> None:
        """More of a job's log: whoever follows it sees it."""
        self.logs.setdefault(name, []).extend(lines)
        for loop, wrote in self.followers:
            loop.call_soon_threadsafe(wrote.set)

    # -- the API over it ------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        get = "GET"
        return [
            Endpoint(get, "/api/v1/jobs", "jobs.read", self._list, "", query=Query),
            Endpoint(get, "/api/v1/jobs/summary", "jobs.read", self._summary, "", query=Query),
            Endpoint(get, JOB, "jobs.read", self._get, ""),
            Endpoint(get, JOB + "/attempts", "jobs.read", self._attempts, ""),
            Endpoint(get, JOB + "/why", "jobs.read", self._why, ""),
            Endpoint(get, JOB + "/progress", "jobs.read", self._progress, ""),
            Endpoint(get, JOB + "/cost", "cost.read", self._cost, ""),
            Endpoint(get, JOB + "/diagnosis", "jobs.read", self._diagnosis, "", query=Asked),
            Endpoint(get, JOB + "/events", "jobs.read", self._job_events, "", query=Query),
            Endpoint(get, JOB + "/logs", "jobs.read", self._logs, "", query=LogQuery, kind="text"),
            Endpoint("POST", JOB + "/cancel", "jobs.cancel", self._cancel, "", body=Why),
            Endpoint(get, "/api/v1/queues", "queues.read", operations.told(lambda: self.queues), ""),
            Endpoint(get, "/api/v1/queues/waiting", "queues.read", operations.told(lambda: self.waiting), ""),
            Endpoint(get, "/api/v1/capacity/sources", "capacity.read", operations.told(lambda: SOURCES), ""),
            Endpoint(get, "/api/v1/capacity/replays", "capacity.read", self._replays, ""),
            Endpoint("POST", "/api/v1/capacity/replays", "capacity.run", self._ask, "", body=ReplayForm, status=202),
            Endpoint(get, "/api/v1/capacity/replays/{id}", "capacity.read", self._replay, ""),
            Endpoint("DELETE", "/api/v1/capacity/replays/{id}", "capacity.run", self._remove, "", status=204),
            *operations.cost_endpoints(),
            *self.services.endpoints(),
            Endpoint(get, "/api/v1/nodes", "nodes.read", self._nodes, "", query=operations.NodesQuery),
            Endpoint(get, JOB + "/telemetry", "jobs.read", self._telemetry, "", query=Window),
            Endpoint(get, "/api/v1/nodes/{name}", "nodes.read", self._node, ""),
            *health.endpoints(),
            Endpoint(get, "/api/v1/nodes/{name}/telemetry", "nodes.read", self._telemetry, "", query=Window),
            Endpoint(get, "/api/v1/fleet", "nodes.read", operations.told(lambda: operations.glance(self.nodes)), ""),
            *(
                Endpoint("POST", f"/api/v1/nodes/{{name}}/{verb}", "nodes.write", self._change(verb), "", body=Why)
                for verb in ("cordon", "uncordon", "drain")
            ),
            Endpoint(get, "/api/v1/events", "events.read", self._events, "", query=Query),
            Endpoint(get, "/api/v1/audit/verify", "audit.read", self._verify, ""),
        ]

    def app(self) -> App:
        settings = Settings(data_dir="/nonexistent/penstock")
        actor = Actor("ada", self.role, {"default": "member"})

        async def authenticate(text: str, source: Any) -> Actor | None:
            return actor if text == (SESSION if source == "cookie" else TOKEN) else None

        async def ask(
            method: str, path: str, actor: Actor, query: Mapping[str, Any] | None = None, body: Any = None
        ) -> Any:
            self.asked.append(f"{method} {path}")
            return await app.ask(method, path, actor, query, body)

        gate = Gate(
            ask=ask,
            may=decide,
            signed_in=lambda request: request.scope.get("penstock.actor"),
            log_in=_log_in,
            log_out=_log_out,
            cookie=cookie_name(settings),
        )
        app = build_api(
            self.endpoints(),
            authenticate=authenticate,
            decide=decide,
            settings=settings,
            extra_mounts=build_console(gate),
            public_paths=PUBLIC_PATHS,
        )
        return app

    def find(self, path: Mapping[str, str]) -> dict[str, Any]:
        for job in self.jobs:
            if (job["project"], job["name"]) == (path["project"], path["name"]):
                return job
        raise NotFound(f"there is no job {path['name']!r} in project {path['project']!r}")

    def _matching(self, query: Query) -> list[dict[str, Any]]:
        return [
            job
            for job in self.jobs
            if (query.project is None or job["project"] == query.project)
            and (not query.q or query.q in job["name"] or query.q in job["user"])
            and (query.queue is None or query.queue == (job["spec"].get("queue") or "default"))
        ]

    async def _list(self, call: Call) -> dict[str, Any]:
        query: Query = call.query
        found = [j for j in self._matching(query) if not query.phase or j["status"]["phase"] in query.phase]
        start = query.cursor or 0
        end = start + query.limit
        return {"items": found[start:end], "next_cursor": str(end) if end < len(found) else None}

    async def _summary(self, call: Call) -> dict[str, Any]:
        phases: dict[str, int] = {}
        for job in self._matching(call.query):
            phases[job["status"]["phase"]] = phases.get(job["status"]["phase"], 0) + 1
        return {"phases": phases, "projects": sorted({j["project"] for j in self.jobs})}

    async def _get(self, call: Call) -> dict[str, Any]:
        return self.find(call.path)

    async def _attempts(self, call: Call) -> dict[str, Any]:
        return {"items": self.attempts.get(self.find(call.path)["name"], []), "next_cursor": None}

    async def _why(self, call: Call) -> dict[str, Any]:
        job = self.find(call.path)
        known = self.helps.get(job["name"], {})
        status = job["status"]
        return {
            "project": job["project"],
            "name": job["name"],
            "phase": status["phase"],
            "reason": status["reason"],
            "message": status["message"],
            "evidence": known.get("evidence", []),
            "helps": known.get("helps", []),
        }

    async def _progress(self, call: Call) -> dict[str, Any]:
        return {"series": self.series.get(self.find(call.path)["name"], {}), "latest": None, "ranks": {}}

    async def _cost(self, call: Call) -> dict[str, Any]:
        self.find(call.path)
        quantities = {"cpu_hours": 0.84, "memory_gib_hours": 1.68, "gpu_hours": 0.42}
        return {
            "currency": "USD",
            "by": "job",
            "since": None,
            "until": None,
            "items": [{"key": {"job": call.path["name"]}, "amount": 1.0942, "quantities": quantities}],
            "total": 1.0942,
        }

    def _page(self, query: Query) -> dict[str, Any]:
        wanted = {k: getattr(query, k) for k in ("kind", "project", "name", "reason", "actor")}
        found = [e for e in self.events if all(v is None or e[k] == v for k, v in wanted.items())]
        if query.newest:
            found = [e for e in reversed(found) if query.cursor is None or e["seq"] < query.cursor]
        page = found[: query.limit]
        return {"items": page, "next_cursor": str(page[-1]["seq"]) if len(found) > len(page) else None}

    async def _diagnosis(self, call: Call) -> dict[str, Any]:
        return operations.diagnosis(self.find(call.path), call.query)

    async def _job_events(self, call: Call) -> dict[str, Any]:
        job = self.find(call.path)
        return self._page(call.query.model_copy(update={"project": job["project"], "name": job["name"]}))

    async def _events(self, call: Call) -> dict[str, Any]:
        return self._page(call.query)

    async def _replays(self, _call: Call) -> dict[str, Any]:
        return {"items": [r | {"result": None} for r in self.replays.values()], "next_cursor": None}

    async def _ask(self, call: Call) -> dict[str, Any]:
        made = replay_record(self.now, "running", id=f"01ASKED{len(self.replays):019d}")
        made["asked"] = call.body.model_dump(mode="json")
        self.replays[made["id"]] = made
        return made

    async def _replay(self, call: Call) -> dict[str, Any]:
        if call.path["id"] not in self.replays:
            raise NotFound("there is no such replay")
        return self.replays[call.path["id"]]

    async def _remove(self, call: Call) -> None:
        await self._replay(call)
        del self.replays[call.path["id"]]

    async def _nodes(self, call: Call) -> dict[str, Any]:
        names = call.query.name
        return {"items": [n for n in self.nodes if not names or n["name"] in names], "next_cursor": None}

    async def _node(self, call: Call) -> dict[str, Any]:
        node = next((n for n in self.nodes if n["name"] == call.path["name"]), None)
        if node is None:
            raise NotFound(f"there is no node {call.path['name']!r}")
        return node

    async def _telemetry(self, call: Call) -> dict[str, Any]:
        return an_hour(call.path["name"], self.now, call.query.minutes)

    async def _verify(self, _call: Call) -> dict[str, Any]:
        return {"ok": True, "rows": len(self.events), "first_bad_seq": None, "problem": None, "head": "0" * 64}

    async def _logs(self, call: Call) -> Stream:
        job, query = self.find(call.path), call.query

        async def chunks() -> AsyncIterator[bytes]:
            sent, wrote = 0, asyncio.Event()
            self.followers.append((asyncio.get_running_loop(), wrote))
            while True:
                wrote.clear()
                lines = list(self.logs.get(job["name"], []))
                wanted = [
                    s
                    for s in lines[sent:]
                    if query.rank is None or s.startswith((f"[{query.rank}] ", f"[rank {query.rank}] "))
                ]
                if wanted:
                    yield ("\n".join(wanted) + "\n").encode()
                sent = len(lines)
                if not query.follow or job["status"]["phase"] in ("Succeeded", "Failed", "Cancelled"):
                    return
                await wrote.wait()

        return Stream(chunks())

    async def _cancel(self, call: Call) -> dict[str, Any]:
        job = self.find(call.path)
        job["status"] |= {"phase": "Cancelled", "reason": "Cancelled", "finished_at": format_time(self.now)}
        self.event("Job", job["project"], job["name"], "Cancelled", call.body.reason, actor=call.actor.user)
        self.write(job["name"])
        return job

    def _change(self, verb: str) -> Any:
        async def handler(call: Call) -> dict[str, Any]:
            node = await self._node(call)
            node["cordoned"] = verb != "uncordon"
            node["jobs"] = [] if verb == "drain" else node["jobs"]
            return node

        return handler


async def _log_in(token: str) -> str:
    if token != TOKEN:
        raise Unauthenticated("that is not a valid token")
    return SESSION


async def _log_out(_secret: str) -> None:
    return


def _attempt(fleet: Fleet, number: int, start: float, end: float | None, **more: Any) -> dict[str, Any]:
    ranks = [
        {"rank": r, "node": f"node-{r // 2}", "exit_code": code, "signal": signal, "restarts": more.get("restarts", 0)}
        for r, (code, signal) in enumerate(more.get("exits", [(None, None), (None, None)]))
    ]
    first = next((r for r in ranks if r["exit_code"] or r["signal"]), ranks[0])
    return {
        "number": number,
        "generation": 1,
        "phase": more.get("phase", "Running" if end is None else "Failed"),
        "reason": more.get("reason", ""),
        "message": more.get("message", ""),
        "nodes": sorted({r["node"] for r in ranks}),
        "submitted_at": format_time(fleet.now - start),
        "started_at": format_time(fleet.now - start + more.get("startup", 2.5)),
        "ended_at": format_time(fleet.now - end) if end is not None else None,
        "exit_code": first["exit_code"],
        "signal": first["signal"],
        "restarts": more.get("restarts", 0),
        "ranks": ranks,
    }


def _curve(steps: int, start: float, now: float, pace: float, *, seed: int = 1) -> dict[str, list[list[float]]]:
    noise = random.Random(seed)
    rows: dict[str, list[list[float]]] = {"loss": [], "accuracy": [], "grad_norm": [], "lr": []}
    for step in range(0, steps, max(1, steps // 300)):
        t = now - start + step * pace
        fall = math.exp(-step / (steps * 0.32))
        rows["loss"].append([step, t, 0.11 + 2.1 * fall + noise.uniform(-0.06, 0.06) * (0.3 + fall)])
        rows["accuracy"].append([step, t, 0.978 - 0.85 * fall + noise.uniform(-0.01, 0.01)])
        rows["grad_norm"].append([step, t, 0.6 + 3.5 * fall + noise.uniform(-0.3, 0.3)])
        rows["lr"].append([step, t, 0.001 * min(1.0, step / (steps * 0.1)) * (1 - step / steps * 0.6)])
    return rows


def sample(now: float) -> Fleet:
    """A morning's work on three nodes: enough of everything to look at."""
    replay = replay_record(now)
    fleet = Fleet(now, waiting=waiting_report(now), replays={replay["id"]: replay})
    _finished(fleet)
    _waiting(fleet)
    _running(fleet)
    gib = 1 << 30
    gpus = [{"id": f"GPU-{i}", "model": "NVIDIA H200"} for i in range(8)]
    on = [[("default", "digits"), ("vision", "resnet-sweep")], [("default", "digits")], []]
    for n, jobs in enumerate(on):
        fleet.nodes.append(
            {
                "kind": "Node",
                "name": f"node-{n}",
                "engine": "local",
                "capacity": {"cpus": 48.0, "memory": 384 * gib, "gpus": gpus if n < 2 else []},
                "allocated": {
                    "cpus": [48.0, 22.0, 0.0][n],
                    "memory": [212 * gib, 96 * gib, 0][n],
                    "gpus": [g["id"] for g in gpus[: [8, 4, 0][n]]],
                },
                "cordoned": n == 2,
                "ready": True,
                "reason": "Cordoned" if n == 2 else "Joined",
                "message": "waits for a new power supply" if n == 2 else "",
                "conditions": [],
                "jobs": [{"project": p, "name": j} for p, j in jobs],
            }
        )
    fleet.event("Node", "", "node-2", "Cordoned", "waits for a new power supply", age=40, actor="grace")
    return fleet


def _finished(fleet: Fleet) -> None:
    names = ("tokenize", "prep-imagenet", "eval-nightly", "probe-nccl", "embed-corpus", "quantize-7b", "export-onnx")
    for n, name in enumerate(names):
        age = 86400.0 - n * 9000
        good = n % 3 != 1
        fleet.job(
            name,
            "Succeeded" if good else "Failed",
            "Completed" if good else ("OutOfMemory", "TimeLimit", "Failed")[n // 3 % 3],
            age=age,
            started=age - 12,
            ended=age - 700 - 311 * n,
            project=("default", "vision", "nightly")[n % 3],
            user=("ada", "grace", "linus")[n % 3],
            message="" if good else "rank 1 used 4.0 GiB, which is all that the job asked for",
            procs=1 + n % 2,
            gpus=n % 3,
            nodes=[f"node-{n % 3}"],
            exit_code=0 if good else 137,
            progress={"step": 4000, "total_steps": 4000, "metrics": {"loss": 0.2 + n / 50}} if n % 2 else None,
        )
        fleet.series[name] = _curve(4000, age, fleet.now, 0.2, seed=n)
        fleet.event("Job", "default", name, "Created", age=age, actor="ada")
        fleet.event("Job", "default", name, "Completed" if good else "OutOfMemory", age=age - 900)
    fleet.job(
        "old-idea",
        "Cancelled",
        "Cancelled",
        age=9000,
        started=8900,
        ended=8000,
        user="grace",
        message="cancelled by grace",
    )


def _waiting(fleet: Fleet) -> None:
    fleet.job(
        "llm-70b",
        "Pending",
        "WaitingForResources",
        age=1560,
        message="needs 4 nodes with 8 GPUs; 1 such node is free",
        gpus=8,
        node_count=4,
        user="linus",
        project="vision",
    )
    fleet.helps["llm-70b"] = {
        "evidence": [
            "node-0: 0 of 8 GPUs free (8 held by default/digits)",
            "node-1: 4 of 8 GPUs free",
            "node-2: cordoned by grace",
        ],
        "helps": ["uncordon node-2 (`penstock nodes uncordon node-2`)", "ask for 4 GPUs a node: it would start now"],
    }
    fleet.job(
        "evaluate",
        "Pending",
        "WaitingForDependency",
        age=310,
        message="waits for digits to succeed",
        depends_on=[{"job": "digits", "condition": "Succeeded"}],
    )


def _running(fleet: Fleet) -> None:
    fleet.job(
        "resnet-sweep",
        "Running",
        "Started",
        age=4200,
        started=4100,
        project="vision",
        user="grace",
        nodes=["node-0"],
        array_spec={"count": 40, "max_parallel": 8},
        array={"total": 40, "succeeded": 17, "failed": 1, "cancelled": 0, "running": 8, "pending": 14},
    )
    fleet.job(
        "digits",
        "Running",
        "Started",
        age=420,
        started=412,
        attempt=2,
        restarts=2,
        nodes=["node-0", "node-1"],
        node_count=2,
        gpus=4,
        message="rank 1 was killed by SIGKILL; resumed from the checkpoint of step 600",
        labels={"team": "vision", "sweep": "lr-3"},
        progress={
            "step": 1316,
            "total_steps": 2000,
            "metrics": {"loss": 0.1873, "accuracy": 0.9614, "grad_norm": 0.91},
            "at": format_time(fleet.now),
            "rate": 4.2,
            "eta_s": 163,
        },
    )
    killed = [(None, 15), (None, 9), (1, None), (None, 15)]
    fleet.attempts["digits"] = [
        _attempt(fleet, 1, 418, 248, reason="Failed", message="rank 1 was killed by SIGKILL", exits=killed),
        _attempt(fleet, 2, 240, None, restarts=1, exits=[(None, None)] * 4),
    ]
    fleet.series["digits"] = _curve(1316, 400, fleet.now, 0.3)
    for age, reason, message in (
        (420, "Created", ""),
        (418, "Admitted", "node-0 and node-1"),
        (415.5, "Started", "attempt 1, 4 ranks"),
        (250, "RankExited", "rank 1 on node-0 was killed by SIGKILL"),
        (248, "AttemptEnded", "Failed: rank 1 was killed by SIGKILL"),
        (247.9, "Restarting", "attempt 2 in 8 s, 2 restarts left"),
        (240, "AttemptStarted", "attempt 2 resumes from the checkpoint of step 600"),
        (237.5, "Started", "attempt 2, 4 ranks"),
        (120, "RankRestarted", "torchrun restarted the ranks in place, once"),
    ):
        fleet.event(
            "Job", "default", "digits", reason, message, age=age, actor="ada" if reason == "Created" else "system"
        )
    for step in range(600, 1316, 4):
        for rank in range(2):
            loss = 0.11 + 2.1 * math.exp(-step / 420)
            fleet.write("digits", f"[rank {rank}] step {step:>5}/2000  loss {loss:.4f}  12,845 samples/s  mem 31.4 GiB")
    fleet.write("digits", "[launcher] W torch.distributed.elastic: restarting the worker group, 1 of 3")
