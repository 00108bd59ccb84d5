"""What any runtime is told and answers. One file each beside this one; every one passes the same contract suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal, Protocol

from penstock.base.errors import Problem
from penstock.serving.state import Histogram

COLLECTOR = (
    "OTEL_EXPORTER_OTLP_ENDPOINT"  # OpenTelemetry's own word, in Options.env: where a runtime may send its spans
)
Speaks = Literal["oip", "openai", "http"]


class Format(StrEnum):
    """What a model's files are, told by their content and never by their names alone."""

    ONNX = "onnx"
    SAFETENSORS = "safetensors"
    HUGGING_FACE = "hugging-face"  # a folder: config.json beside safetensors
    TRITON = "triton"  # a model repository with config.pbtxt
    PICKLE = "pickle"  # refused, unless the project waives that
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Batching:
    """``most`` requests in one run of the model, ``preferred`` sizes first; none waits longer than ``delay`` seconds for others."""

    most: int = 32
    preferred: tuple[int, ...] = ()
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model on the replica's own disk."""

    name: str
    version: int
    path: str
    format: Format


@dataclass(frozen=True, slots=True)
class Options:
    """What a service says of its runtime. Times in seconds, bodies in bytes."""

    batching: Batching = Batching()
    threads: int = 1
    max_queue: int = 1024  # requests that wait for the model; more are answered with 503 and Retry-After
    request_timeout: float = 30.0
    max_body: int = 64 << 20
    command: tuple[str, ...] = ()  # of the runtime `command`; {port}, {grpc_port} and {model} are filled in
    args: tuple[str, ...] = ()  # further arguments of the runtime's own program
    health: str = "/health"  # runtime `command`: what answers 200 once requests are taken
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ports:
    """Free ports on the replica's node."""

    http: int
    grpc: int
    metrics: int
    host: str = "127.0.0.1"  # the address to listen at; 0.0.0.0 where the gateway is on another machine


@dataclass(frozen=True, slots=True)
class Launch:
    """How the runtime's process is started. ``files`` are written first, below the replica's own folder (the work folder)."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request of the replica's own: its question whether the runtime is ready, and its first, warming one."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    port: Literal["http", "metrics"] = "http"


@dataclass(frozen=True, slots=True)
class Load:
    """What a runtime's own metrics say. None: it does not say."""

    running: float | None = None
    waiting: float | None = None
    batches: Mapping[int, float] = field(default_factory=dict)  # size of a batch -> how many there were
    queue_s: float | None = None  # summed seconds that requests waited
    compute_s: float | None = None  # summed seconds that the model ran
    memory_used: float | None = None  # share of the cache in use (vLLM's KV cache), 0 to 1
    ttft: Histogram = field(default_factory=Histogram)  # seconds to the first token, of all requests since it began
    tpot: Histogram = field(default_factory=Histogram)  # and for each further one


class Runtime(Protocol):
    """A kind of server for models. Pure: it says what to run and what to ask; the replica (serving/replica.py) does it."""

    name: ClassVar[str]
    speaks: ClassVar[frozenset[Speaks]]
    formats: ClassVar[frozenset[Format]]  # empty: it needs no model's files
    grpc: ClassVar[bool]
    grace: ClassVar[float]  # seconds that it may need after SIGTERM to answer what it has begun

    def validate(self, options: Options, found: Format | None) -> list[Problem]:
        """Everything that is wrong, with paths below the service's ``spec``. ``found``: what the model is, None where that is not known yet."""

    def launch(self, model: Model | None, options: Options, ports: Ports, folder: str) -> Launch:
        """``folder`` is absolute: where ``files`` will lie."""

    def ready(self, model: Model | None) -> Request:
        """Answers 200 once the model is loaded."""

    def warming(self, model: Model | None, described: Mapping[str, object]) -> Request | None:
        """A request that makes the model compute once. ``described``: the answer of ``describe``, as JSON; {} where there is none."""

    def describe(self, model: Model | None) -> Request | None:
        """What tells the model's inputs (Open Inference Protocol: model metadata)."""

    def load(self, page: str) -> Load:
        """Reads the runtime's metrics page. Never raises: what is not understood is None."""

    def metrics(self) -> Request | None:
        """Where that page is."""
