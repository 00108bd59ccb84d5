"""What users write: the InferenceService."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from penstock.base.ids import check_name
from penstock.base.quantities import format_duration, parse_duration
from penstock.jobs.spec import Argument, Duration, Environment, Memory, Resources

MAX_REPLICAS = 1000
RuntimeName = Literal["onnx", "triton", "vllm", "command"]


def _wait(value: Any) -> float:
    return 0.0 if value in (0, "0") else parse_duration(value)


Wait = Annotated[
    float,
    BeforeValidator(_wait),
    PlainSerializer(lambda value: format_duration(value) if value else "0", return_type=str),
    Field(ge=0, le=3600),
]
Path = Annotated[str, Field(min_length=1, max_length=4096)]
Share = Annotated[float, Field(gt=0, le=100)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Batching(_Part):
    """Requests are put together while the model computes; ``delay`` makes the first of a batch wait for more."""

    max: int = Field(default=32, ge=1, le=4096)
    preferred: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(), max_length=16)
    delay: Wait = 0.0


class Objective(_Part):
    """What an answer may take, for 95 of 100 requests: all of it, to the first token, per further token."""

    p95: Duration | None = None
    ttft: Duration | None = None
    tpot: Duration | None = None


class Autoscaling(_Part):
    """Between ``min`` (0: to none after ``idle_after`` without a request) and ``max``; docs/serving.md says how."""

    min: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    max: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    objective: Objective = Objective()
    concurrency: float | None = Field(default=None, gt=0, le=100_000)  # in one replica; default: its profile's
    up_after: Wait = 0.0
    down_after: Wait = 300.0
    dead_band: float = Field(default=0.1, ge=0, lt=1)
    flaps: int = Field(default=6, ge=0, le=1000)  # changes of direction in an hour
    idle_after: Duration = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError("min: is more than max")
        return self


class Hold(_Part):
    """Requests that come while no replica is there wait, so many and so long; others get 503 with Retry-After."""

    requests: int = Field(default=1000, ge=1, le=100_000)
    time: Duration = 60.0


class RateLimit(_Part):
    requests: int = Field(ge=1, le=10_000_000)
    per: Duration = 1.0


class Match(_Part):
    """``path`` is taken off before the runtime sees it."""

    host: str | None = Field(default=None, max_length=253)
    path: str = Field(default="/", pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=1000)


class Exposed(_Part):
    """How callers reach it. Always there: ``/PROJECT/NAME/`` on the gateway."""

    routes: tuple[Match, ...] = Field(default=(), max_length=32)
    timeout: Duration = 60.0
    retries: int = Field(default=2, ge=0, le=10)
    rate_limit: RateLimit | None = None
    api_keys: bool = False  # callers show a key of the service (`penstock serving key create NAME`)


class Compare(_Part):
    """When two answers agree. ``function``: module:name of the service's own, called with both answers."""

    how: Literal["exact", "tolerance", "top1", "function"] = "tolerance"
    tolerance: float = Field(default=1e-3, ge=0)
    function: str | None = Field(default=None, max_length=1000)


class Analysis(_Part):
    """What a candidate must hold at every step. A test passes once ``min_requests`` of the candidate's were seen; it fails as
    soon as it is sure.
    """

    min_requests: int = Field(default=100, ge=1, le=10_000_000)
    error_rate: float | None = Field(default=0.01, ge=0, le=1)  # above the stable one's
    p95_ratio: float | None = Field(default=1.25, gt=0)  # to the stable one's
    p50_ratio: float | None = Field(default=1.25, gt=0)  # of the medians, which tell sooner where latencies are wide
    agreement: float | None = Field(default=0.99, ge=0, le=1)  # of answers compared in shadow
    metric: str | None = Field(default=None, max_length=200)  # a number that replicas report: docs/serving.md
    metric_max: float | None = None
    metric_min: float | None = None
    confidence: float = Field(default=0.99, ge=0.5, lt=1)
    give_up_after: Duration = 3600.0  # too few requests to judge for so long: paused


class Step(_Part):
    """``weight`` in percent, for at least ``time``; ``pause``: until somebody promotes."""

    weight: Annotated[float, Field(ge=0, le=100)]
    time: Duration = 10.0
    pause: bool = False


class Rollout(_Part):
    strategy: Literal["rolling", "blue_green", "canary", "shadow"] = "rolling"
    steps: tuple[Step, ...] = Field(default=(), max_length=50)
    shadow: Share = 100.0  # percent of requests that are mirrored
    shadow_time: Duration = 30.0
    compare: Compare = Compare()
    analysis: Analysis = Analysis()
    auto: bool = True  # promote by itself; False: paused before the last step
    keep: Duration = 300.0  # blue-green: how long the old replicas stay after the switch


class ServiceSpec(_Part):
    """One inference service; docs/serving.md explains each field to users."""

    model: Path | None = None
    snapshot: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # `model` is a path in it
    model_name: str | None = Field(default=None, max_length=100)  # what callers name it; default: the service's name
    runtime: RuntimeName | None = None  # default: by the model's content
    command: tuple[Argument, ...] = Field(default=(), max_length=10_000)
    args: tuple[Argument, ...] = Field(default=(), max_length=1000)
    health: str = Field(default="/health", pattern=r"^/", max_length=1000)
    threads: int = Field(default=1, ge=1, le=1024)
    batching: Batching = Batching()
    max_queue: int = Field(default=1024, ge=1, le=1_000_000)
    request_timeout: Duration = 30.0
    max_body: Memory = 64 << 20
    resources: Resources = Resources()
    environment: Environment = Environment()
    env: dict[str, Argument] = Field(default_factory=dict, max_length=1000)
    queue: str | None = Field(default=None, min_length=1, max_length=63)
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    engine: str | None = Field(default=None, min_length=1, max_length=63)
    replicas: int | None = Field(default=None, ge=0, le=MAX_REPLICAS)
    autoscaling: Autoscaling | None = None
    hold: Hold = Hold()
    exposed: Exposed = Exposed()
    rollout: Rollout = Rollout()
    drain: Duration = 30.0  # how long a replica that is taken away may answer what it has

    @model_validator(mode="after")
    def _whole(self) -> ServiceSpec:
        if self.runtime == "command" and not self.command:
            raise ValueError("command: say what the runtime `command` is to run")
        if self.command and self.runtime not in (None, "command"):
            raise ValueError("command: is for the runtime `command`")
        if self.command and not any("{port}" in word for word in (*self.command, *self.args)):
            raise ValueError("command: must say {port}, the port that it is to listen at")
        if self.model is None and not self.command:
            raise ValueError("model: name a model (or a command)")
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("replicas: name either replicas or autoscaling")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        if self.autoscaling is not None:
            return self.autoscaling.min, self.autoscaling.max
        count = 1 if self.replicas is None else self.replicas
        return count, count


# What a version is: a change in one of these makes a new one, which is rolled out.
TEMPLATE = (
    "model", "snapshot", "model_name", "runtime", "command", "args", "health", "threads", "batching", "max_queue",
    "request_timeout", "max_body", "resources", "environment", "env", "engine",
)  # fmt: skip


class ServiceDocument(_Part):
    """One YAML document."""

    kind: Literal["InferenceService"] = "InferenceService"
    name: str
    project: str | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    spec: ServiceSpec

    @field_validator("name", "project")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        problem = None if value is None else check_name(value)
        if problem is not None:
            raise ValueError(problem.message)
        return value
