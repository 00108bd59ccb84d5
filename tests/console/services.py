"""What the fleet in memory says of its inference services, as the API says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from penstock.base.errors import NotFound
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint

SERVICE = "/api/v1/projects/{project}/services/{name}"
POINTS = 40


def side(requests: float, errors: float, p95: float) -> dict[str, Any]:
    return {"requests": requests, "errors": errors, "p50": p95 / 2, "p95": p95}


def example(text: str = '{"inputs": [0.1]}') -> dict[str, Any]:
    return {
        "at": 1_795_000_000.0,
        "method": "POST",
        "path": "/v2/models/digits/infer",
        "request": text,
        "stable": '{"outputs": [3]}',
        "candidate": '{"outputs": [8]}',
        "stable_status": 200,
        "candidate_status": 200,
        "slower_s": -0.002,
        "differs": "top-1: 3 and 8",
    }


def rollout(now: float, phase: str = "Progressing") -> dict[str, Any]:
    test = {"name": "error rate", "statistic": 0.001, "bound": 0.01, "candidate": 900.0, "stable": 8100.0}
    entry = {
        "at": now - 60,
        "step": 0,
        "what": "RolloutAdvanced",
        "why": "step 1 of 2: 10%",
        "weight": 1000,
        "mirror": 0,
    }
    seen = {"seconds": 60.0, "candidate": side(900, 2, 0.04), "stable": side(8100, 8, 0.05)}
    shadow = {"compared": 200, "agreed": 150, "failed": 3, "slower_s": 0.4, "offered": 210, "received": 210}
    return {
        "stable": 1,
        "candidate": 2,
        "phase": phase,
        "step": 0,
        "since": format_time(now - 60),
        "message": "step 1 of 2: 10% of the requests",
        "evidence": [
            {**entry, **seen, "tests": []},
            {**entry, **seen, "tests": [test | {"evidence": 0.2, "verdict": "pass", "words": "0.2% and 0.1%"}]},
        ],
        "points": [
            {"at": now - 60 + n, "weight": 1000, "requests": 9.0, "errors": 0.0, "stable_errors": None, "p95": 0.04}
            | {"stable_p95": 0.05 if n % 3 else None}
            for n in range(20)
        ],
        "asked": None,
        "created_at": format_time(now - 90),
        "ended_at": None,
        "shadow": shadow | {"dropped": {"too_large": 7}, "unjudged": 0, "problem": "", "examples": [example()]},
    }


def version(number: int, role: str, weight: float, now: float, ready: int = 1) -> dict[str, Any]:
    stages = {"queued": 0.1, "started": 0.4, "loaded": 0.8, "warmed": 0.05}
    replica = {"phase": "Ready", "since": format_time(now - 300), "address": "127.0.0.1", "port": 40001, "grpc_port": 0}
    return {
        "number": number,
        "role": role,
        "weight": weight,
        "mirror": 0.0,
        "template": {"model": f"/models/digits-{number}.onnx"},
        "digest": "0" * 64,
        "created_at": format_time(now - 600),
        "failures": 0,
        "message": "",
        "replicas": [
            {**replica, "job": f"digits-v{number}-{n}", "stages": stages, "batches": {"1": 90, "4": 10.0}}
            for n in range(ready)
        ],
    }


def service(now: float) -> dict[str, Any]:
    return {
        "kind": "InferenceService",
        "project": "default",
        "name": "digits",
        "id": "01SERVED",
        "generation": 2,
        "user": "ada",
        "created_at": format_time(now - 600),
        "labels": {},
        "spec": {},
        "status": {
            "phase": "RollingOut",
            "reason": "RolloutAdvanced",
            "message": "step 1 of 2: 10% of the requests",
            "url": "http://127.0.0.1:8080/default/digits",
            "replicas": {"wanted": 2, "ready": 3, "all": 3},
            "versions": [version(1, "Stable", 90.0, now, 2), version(2, "Candidate", 10.0, now)],
            "rollout": rollout(now),
            "traffic": {
                "seconds": 60.0,
                "requests_per_second": 151.5,
                "error_share": 0.0011,
                "p95": 0.05,
                "active": 4.0,
            },
        },
    }


def history(now: float) -> dict[str, Any]:
    at = [now - 5 * (POINTS - n) for n in range(POINTS)]
    each: dict[str, Any] = {"at": at, "seconds": [5.0] * POINTS, "requests": [600.0] * POINTS, "errors": [1.0] * POINTS}
    slow = {name: [None if n == 7 else size for n in range(POINTS)] for name, size in (("p50", 0.01), ("p95", 0.05))}
    rest = {"p99": [0.07] * POINTS, "active": [4.0] * POINTS, "ready": [2.0] * POINTS}
    return {"every": 5.0, "items": [{"version": 1, **each, **slow, **rest}, {"version": 2, **each, **slow, **rest}]}


@dataclass
class Services:
    now: float
    items: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def endpoints(self) -> list[Endpoint]:
        read, write = "services.read", "services.write"
        return [
            Endpoint("GET", "/api/v1/services", read, self._list, ""),
            Endpoint("GET", SERVICE, read, self._get, ""),
            Endpoint("GET", SERVICE + "/history", read, self._history, ""),
            Endpoint("GET", SERVICE + "/rollouts", read, self._rollouts, ""),
            Endpoint("GET", SERVICE + "/cost", "cost.read", self._cost, ""),
            Endpoint("POST", SERVICE + "/promote", write, self._act("promote"), ""),
            Endpoint("POST", SERVICE + "/rollback", write, self._act("rollback"), ""),
        ]

    def find(self, call: Call) -> dict[str, Any]:
        for each in self.items:
            if (each["project"], each["name"]) == (call.path["project"], call.path["name"]):
                return each
        raise NotFound(f"there is no service {call.path['name']!r}")

    async def _list(self, _call: Call) -> dict[str, Any]:
        return {"items": self.items, "next_cursor": None}

    async def _get(self, call: Call) -> dict[str, Any]:
        return self.find(call)

    async def _history(self, call: Call) -> dict[str, Any]:
        self.find(call)
        return history(self.now)

    async def _rollouts(self, call: Call) -> dict[str, Any]:
        self.find(call)
        return {"items": self.rollouts, "next_cursor": None}

    async def _cost(self, _call: Call) -> dict[str, Any]:
        since, until = format_time(self.now - 200), format_time(self.now)
        told = {"currency": "USD", "since": since, "until": until, "replicas": 3, "total": 0.0061}
        return told | {"requests": 24_000.0, "per_1000": 0.00025416}

    def _act(self, verb: str) -> Any:
        async def act(call: Call) -> dict[str, Any]:
            self.asked.append(f"{verb} {self.find(call)['name']}")
            return self.find(call)

        return act


def sample(now: float) -> Services:
    over = rollout(now, "RolledBack") | {"candidate": 3, "shadow": None, "ended_at": format_time(now)}
    return Services(now, [service(now)], [rollout(now), over])
