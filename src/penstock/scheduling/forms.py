"""The queue file as it is written: pydantic models with units (``8Gi``, ``500m``, ``7d``) and RFC 3339 times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from penstock.base.ids import check_name
from penstock.base.quantities import parse_cpus, parse_duration, parse_memory
from penstock.documents import moment
from penstock.scheduling.state import Policy

LAST_INSTANT = 253_402_300_799.0  # of the year 9999


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic tells the writer of ValueErrors alone
    return value


def _instant(value: object) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = moment(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("say the time zone too, such as 2026-12-01T08:00:00Z")
        return value.timestamp()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LAST_INSTANT:
        return float(value)
    raise ValueError("is not a time: write 2026-12-01T08:00:00Z, or seconds since the trace's (or Unix's) beginning")


def _name(value: str) -> str:
    problem = check_name(value)
    if problem is not None:
        raise ValueError(problem.message)
    return value


Name = Annotated[str, AfterValidator(_name)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1e18, allow_inf_nan=False)]
Weight = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1e9, allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=3.2e9)]
Instant = Annotated[float, BeforeValidator(_instant)]
Resource = Literal["gpus", "cpus", "memory"]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class QuotaForm(_Form):
    """``gpus: 64`` is short for ``gpus: {nominal: 64}``. Amounts are GPUs, cores (``500m``) or memory (``8Gi``)."""

    nominal: Number = 0.0
    borrowing_limit: Number | None = None
    lending_limit: Number | None = None


def _amounts(value: Any) -> Any:
    """The units of each resource, before pydantic sees plain numbers."""
    if not isinstance(value, dict):
        return value
    return {resource: _quota(resource, one) for resource, one in value.items()}


def _quota(resource: object, value: Any) -> Any:
    if not isinstance(value, dict):
        value = {"nominal": value}
    parse = {"memory": parse_memory, "cpus": parse_cpus}.get(str(resource))
    if parse is None:
        return value
    return {key: _read(parse, one) for key, one in value.items()}


def _read(parse: Callable[[str], float], value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return float(parse(value))
    except ValueError:
        return value  # pydantic then names the place


QuotasForm = dict[str, Annotated[dict[Resource, QuotaForm], BeforeValidator(_amounts)]]


class QueueForm(_Form):
    name: Name
    cohort: str | None = None
    quotas: QuotasForm = Field(default_factory=dict)
    weight: Weight = 1.0
    user_weights: dict[str, Weight] = Field(default_factory=dict)
    projects: tuple[Name, ...] = ()
    reclaim_within_cohort: Literal["never", "lower_priority", "any"] = "any"
    preempt_within_queue: Literal["never", "lower_priority"] = "never"
    reclaim_idle_after: Seconds | None = None
    max_time_limit: Seconds | None = None
    qos: Annotated[Number, Field(le=1)] = 0.0
    partition: Annotated[Number, Field(le=1)] = 0.0
    max_priority: Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)] | None = None
    engine: Name | None = None


class CohortForm(_Form):
    name: Name
    parent: str | None = None
    quotas: QuotasForm = Field(default_factory=dict)
    weight: Weight = 1.0


class FlavorForm(_Form):
    name: Name
    gpu_models: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)


class ReservationForm(_Form):
    name: Name
    start: Instant
    end: Instant
    nodes: tuple[str, ...] = Field(min_length=1)
    maintenance: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> ReservationForm:
        if self.end <= self.start:
            raise ValueError("must end after it starts")
        return self


class WeightsForm(_Form):
    """Slurm's PriorityWeight*: each factor is between 0 and 1."""

    age: Number = 0.0
    fairshare: Number = 0.0
    jobsize: Number = 0.0
    partition: Number = 0.0
    qos: Number = 0.0


class PolicyForm(_Form):
    order: Literal["fifo", "sjf", "fairshare", "multifactor"] = "fifo"
    blocking: Literal["strict", "skip"] = "strict"
    backfill: Literal["none", "easy", "conservative"] = "none"
    placement: Literal["bestfit", "firstfit", "spread", "fgd"] = "bestfit"
    depth: int = Field(default=100, ge=1, le=1_000_000)
    preemption: bool = False
    decay_half_life: Seconds = 7 * 86400.0
    weights: WeightsForm = WeightsForm()
    max_age: Seconds = 7 * 86400.0
    max_evictions: int = Field(default=3, ge=0, le=1000)

    def frozen(self) -> Policy:
        weights = tuple((name, weight) for name, weight in self.weights.model_dump().items() if weight)
        return Policy(
            self.order,
            self.blocking,
            self.backfill,
            self.placement,
            self.depth,
            self.preemption,
            self.decay_half_life,
            weights,
            self.max_age,
            self.max_evictions,
        )


FORMS: dict[str, type[_Form]] = {
    "flavors": FlavorForm,
    "cohorts": CohortForm,
    "queues": QueueForm,
    "reservations": ReservationForm,
}
