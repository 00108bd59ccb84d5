"""A collector for tests: takes what is posted to /v1/traces, JSON or protobuf."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.serving.stand_in import Answer, Seen, replica


@dataclass(slots=True)
class Collector:
    port: int = 0
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Of what came as JSON."""
        found: list[dict[str, Any]] = []
        for body in self.bodies:
            if body.startswith(b"{"):
                for resource in json.loads(body)["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        found += scope["spans"]
        return found

    @property
    def protobufs(self) -> bytes:
        return b"".join(body for body in self.bodies if not body.startswith(b"{"))


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    found = Collector()

    async def take(seen: Seen) -> Answer:
        assert seen.target == b"/v1/traces"
        found.bodies.append(seen.body)
        return Answer(status=found.status, body=b"{}")

    async with replica(take) as server:
        found.port = server.backend.port
        yield found
