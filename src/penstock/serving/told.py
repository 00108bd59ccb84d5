"""What a replica's process is told, as one word of its command line: JSON, read without pydantic, for a quick start."""

from __future__ import annotations

import json
import signal
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


REFUSED = 3  # exit code of a replica that does not serve its model
OWN = "penstock: "  # what a replica says itself begins so
_UNREADY = " before it was ready"
_SIGNAL = "was ended by signal "
_UNSAID = (str(int(signal.SIGKILL)), str(int(signal.SIGTERM)))


def ended(runtime: str, code: int, *, ready: bool) -> str:
    """A replica's last words of its runtime. ``code``: as subprocess has it, below zero for a signal."""
    how = f"{_SIGNAL}{-code}" if code < 0 else f"ended with exit code {code}"
    return f"the runtime {runtime} {how}{'' if ready else _UNREADY}"


def killed(words: str) -> bool:
    """Whether `ended` told of a runtime that had no time for words of its own."""
    how, _, number = words.removesuffix(_UNREADY).rpartition(_SIGNAL)
    return bool(how) and number in _UNSAID


def _options(body: Mapping[str, Any]) -> Options:
    batching = {**body["batching"], "preferred": tuple(body["batching"]["preferred"])}
    lists = {name: tuple(body[name]) for name in ("command", "args")}
    return Options(**{**body, **lists, "batching": Batching(**batching)})


# What a replica reports (penstock.report takes numbers alone): its phase as the place in this list, ports, seconds of stages.
PHASES = ("Starting", "Warming", "Ready", "Draining")
STAGES = ("queued", "started", "loaded", "warmed")
