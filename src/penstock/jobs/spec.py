"""What users write: the Job. One kind for training and batch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from penstock.base.ids import check_name
from penstock.base.quantities import format_duration, format_memory, parse_cpus, parse_duration, parse_memory
from penstock.engines.launchers import brings_launcher

MAX_ARRAY = 10_000
_OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Memory = Annotated[int, BeforeValidator(parse_memory), PlainSerializer(format_memory, return_type=str), Field(gt=0)]
Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str), Field(gt=0, le=3.2e8)
]
Cpus = Annotated[float, BeforeValidator(parse_cpus), Field(gt=0, le=100_000)]
Text = Annotated[str, Field(max_length=65_536)]
Model = Annotated[str, Field(min_length=1, max_length=100)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Launcher = Literal["torchrun", "accelerate", "deepspeed", "none"]


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("a NUL character cannot be passed to a program")
    return value


def _hang_limit(value: Any) -> float:
    """``off`` is 0; without quotes it is False in YAML."""
    if value is False or value == "off":
        return 0.0
    if value is True or value == "on":
        raise ValueError("say how long without progress is a hang, such as 10m; or off")
    found = parse_duration(value)
    if found <= 0:
        raise ValueError("must be more than 0, or off")
    return found


def _off(value: Any) -> Any:
    """``off`` without quotes is False in YAML."""
    return "off" if value is False else value


HangLimit = Annotated[
    float,
    BeforeValidator(_hang_limit),
    PlainSerializer(lambda value: format_duration(value) if value else "off", return_type=str),
    Field(ge=0, le=3.2e8),
]
Argument = Annotated[Text, BeforeValidator(lambda v: _no_nul(v) if isinstance(v, str) else v)]


Option = Argument | bool | int  # as the engine's own tool takes it: sbatch's ``--constraint a100``, ``--exclusive``


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Part):
    """Per node. CPUs in cores (``2``, ``500m``), memory as ``8Gi``; whole GPUs, or a share of one, or MIG instances."""

    cpus: Cpus = 1.0
    memory: Memory | None = None
    gpus: int = Field(default=0, ge=0, le=1024)
    gpu_model: Model | tuple[Model, ...] | None = Field(default=None, max_length=100)

    gpu_share: float | None = Field(default=None, gt=0, lt=1)
    mig: str | None = Field(default=None, pattern=r"^(\d+c\.)?\d{1,2}g\.\d{1,4}gb(\+[a-z.]+)?$", max_length=40)

    @field_validator("gpu_share")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and abs(value * 1000 - round(value * 1000)) > 1e-6:
            raise ValueError("a share is counted in thousandths: 0.5, 0.125")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Resources:
        if self.gpu_share is not None and (self.gpus or self.mig):
            raise ValueError("gpu_share: is a part of one GPU: name no gpus and no mig beside it")
        return self

    @property
    def milli(self) -> int:
        """Thousandths of the one GPU that it shares; 0: it shares none."""
        return round((self.gpu_share or 0) * 1000)

    @property
    def devices(self) -> int:
        """Whole GPUs, or MIG instances, of which one is meant where no number is given."""
        return max(self.gpus, 1) if self.mig else self.gpus

    @property
    def models(self) -> tuple[str, ...]:
        """Any of these will do; empty: any at all."""
        return (self.gpu_model,) if isinstance(self.gpu_model, str) else self.gpu_model or ()


class Environment(_Part):
    """The software that the job runs in; at the most one of ``venv``, ``conda`` and ``image``."""

    venv: str | None = Field(default=None, max_length=4096)
    conda: str | None = Field(default=None, max_length=4096)
    modules: tuple[str, ...] = ()
    image: str | None = Field(default=None, max_length=4096)

    @model_validator(mode="after")
    def _one(self) -> Environment:
        if sum(x is not None for x in (self.venv, self.conda, self.image)) > 1:
            raise ValueError("name one of venv, conda and image, not several")
        return self


class Dependency(_Part):
    """Start only after another job of the same project has ended."""

    job: str
    condition: Literal["Succeeded", "Finished"] = "Succeeded"

    @field_validator("job")
    @classmethod
    def _name(cls, value: str) -> str:
        return _checked_name(value)


class Array(_Part):
    """``count`` tasks NAME-0 ... of one job, at the most ``max_parallel`` at a time."""

    count: int = Field(ge=1, le=MAX_ARRAY)
    max_parallel: int | None = Field(default=None, ge=1)


class Placement(_Part):
    """All nodes in one domain: ``required``, or else as far as it goes."""

    level: Literal["block", "rack", "host"]
    required: bool = False


class JobSpec(_Part):
    """The specification of a Job; docs/jobs.md explains each field to users."""

    command: tuple[Argument, ...] = Field(default=(), max_length=10_000)
    launcher: Launcher | None = None
    nodes: int = Field(default=1, ge=1, le=10_000)
    min_nodes: int | None = Field(default=None, ge=1, le=10_000)
    shrink_after: Duration = 30.0
    grow_after: Duration = 300.0
    procs: int = Field(default=1, ge=1, le=1024)
    resources: Resources = Resources()
    env: dict[str, Argument] = Field(default_factory=dict, max_length=1000)
    workdir: str | None = Field(default=None, max_length=4096)
    snapshot: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    environment: Environment = Environment()
    time_limit: Duration | None = None
    grace_period: Duration = 30.0
    max_restarts: int = Field(default=0, ge=0, le=100_000)
    crash_loop: int = Field(default=3, ge=0, le=1000)
    hang_limit: HangLimit | None = None
    on_hang: Literal["restart", "tell"] = "restart"
    on_straggler: Annotated[Literal["avoid", "tell", "off"], BeforeValidator(_off)] = "tell"
    depends_on: tuple[Dependency, ...] = Field(default=(), max_length=1000)
    array: Array | None = None
    interactive: bool = False
    idle_timeout: Duration | None = None
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    queue: str | None = Field(default=None, min_length=1, max_length=63)
    placement: Placement | None = None
    flavors: tuple[Name, ...] = Field(default=(), max_length=100)
    exclude_nodes: tuple[Name, ...] = Field(default=(), max_length=1000)
    reservation: str | None = Field(default=None, min_length=1, max_length=63)
    engine: str | None = Field(default=None, min_length=1, max_length=63)
    engine_options: dict[str, Option] = Field(default_factory=dict, max_length=100)

    @field_validator("command")
    @classmethod
    def _command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and not value[0].strip():
            raise ValueError("the first word must name a program")
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in value if not _ENV_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"not names of environment variables: {', '.join(repr(w[:40]) for w in wrong[:5])}")
        return value

    @field_validator("engine_options")
    @classmethod
    def _options(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = [name for name in value if not _OPTION_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(
                f"not names of options: {', '.join(repr(w[:40]) for w in wrong[:5])} (write them without '--')"
            )
        return value

    @field_validator("workdir")
    @classmethod
    def _workdir(cls, value: str | None) -> str | None:
        if value is not None and ("\x00" in value or not value):
            raise ValueError("is not a path")
        return value

    @field_validator("depends_on", mode="before")
    @classmethod
    def _dependencies(cls, value: Any) -> Any:
        """``depends_on: [prep]`` is short for ``[{job: prep}]``."""
        return (
            [{"job": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        )

    @model_validator(mode="after")
    def _whole(self) -> JobSpec:
        if not self.command and not self.interactive:
            raise ValueError("command: say what to run, as a list of words (or set interactive: true)")
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError("min_nodes: is more than nodes")
        if self.idle_timeout is not None and not self.interactive:
            raise ValueError("idle_timeout: is for interactive jobs (set interactive: true)")
        if self.array and self.interactive:
            raise ValueError("array: an interactive job cannot be an array")
        return self

    @property
    def least(self) -> int:
        """Nodes with which it may run."""
        return self.nodes if self.min_nodes is None else self.min_nodes

    def effective_launcher(self) -> str:
        """torchrun where there are several ranks a node, unless the command is itself a launcher."""
        if self.launcher is not None:
            return self.launcher
        return "torchrun" if self.procs > 1 and not brings_launcher(self.command) else "none"


class JobDocument(_Part):
    """One YAML document."""

    kind: Literal["Job"] = "Job"
    name: str
    project: str | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    spec: JobSpec

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return _checked_name(value)

    @field_validator("project")
    @classmethod
    def _project(cls, value: str | None) -> str | None:
        return None if value is None else _checked_name(value)


def _checked_name(value: str) -> str:
    problem = check_name(value)
    if problem is not None:
        raise ValueError(problem.message)
    return value
