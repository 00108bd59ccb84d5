"""What a replica's process is told, as one word of its command line: JSON, read without pydantic, for a quick start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.serving.runtimes.spec import Batching, Options


@dataclass(frozen=True, slots=True)
class Told:
    """``model``: a path, relative to the work folder where the model was carried along. ``runtime`` None: by the model's
    content. ``submitted_at``: when its job was made (epoch seconds). ``drain``: seconds that what it has begun may take.
    """

    service: str
    version: int
    model_name: str
    model: str | None = None
    runtime: str | None = None
    health: str = "/health"
    pickles: bool = False
    host: str = "127.0.0.1"
    drain: float = 30.0
    submitted_at: float = 0.0
    options: Options = field(default_factory=Options)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Told:
        body: dict[str, Any] = json.loads(text)
        return cls(**body | {"options": _options(body["options"])})


def _options(body: Mapping[str, Any]) -> Options:
    batching = {**body["batching"], "preferred": tuple(body["batching"]["preferred"])}
    lists = {name: tuple(body[name]) for name in ("command", "args")}
    return Options(**{**body, **lists, "batching": Batching(**batching)})


# What a replica reports (penstock.report takes numbers alone): its phase as the place in this list, ports, seconds of stages.
PHASES = ("Starting", "Warming", "Ready", "Draining")
STAGES = ("queued", "started", "loaded", "warmed")
