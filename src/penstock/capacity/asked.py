"""What is asked of a replay over the API, and what the process that runs it is handed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from penstock.base.quantities import parse_duration
from penstock.capacity.scaling import scaled

MOST_JOBS = 500_000  # of a replay that is run beside a server; the command line has no such bound
TRACE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_QUEUES = 1 << 18  # bytes of a queue file that is sent along
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=3.2e9)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class SourceForm(_Form):
    """``own``: the jobs that this server has run. ``synth``: made up like a published cluster's. ``trace``: a file of the
    data folder's ``traces``.
    """

    kind: Literal["own", "synth", "trace"] = "own"
    days: int | None = Field(
        default=None, ge=1, le=3660, description="own: only jobs submitted in the last so many days"
    )
    cluster: str | None = Field(
        default=None, max_length=100, description="synth: seren, kalos ...; trace: one queue of it"
    )
    jobs: int = Field(default=5000, ge=1, le=MOST_JOBS, description="synth: how many; trace: only its first so many")
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    name: str | None = Field(default=None, max_length=100, pattern=TRACE_NAME, description="trace: its file")
    preset: Literal["csv", "philly", "openb", "slurm-sacct"] = "csv"


class ScenarioForm(_Form):
    """``queues``: ``today`` (the file that holds, its GPU quotas grown or shrunk with the fleet), ``as-is`` (the same, quotas
    as they are), ``none``, or the text of another queue file.
    """

    nodes: int = Field(ge=1, le=20_000)
    gpus_per_node: int = Field(ge=1, le=1024)
    gpu_model: str = Field(default="", max_length=200)
    policy: Literal["fifo", "sjf", "fairshare", "multifactor"] | None = None
    blocking: Literal["strict", "skip"] | None = None
    backfill: Literal["none", "easy", "conservative"] | None = None
    queues: str = Field(default="today", max_length=MAX_QUEUES)
    mtbf: Seconds | None = Field(default=None, description="mean time between failures of one node: 500h")


class ReplayForm(_Form):
    """One scenario, or two side by side, over the same jobs."""

    source: SourceForm = Field(default_factory=SourceForm)
    a: ScenarioForm
    b: ScenarioForm | None = None

    def scenarios(self) -> list[ScenarioForm]:
        return [self.a] if self.b is None else [self.a, self.b]


def task(form: ReplayForm, today: str, gpus: int) -> dict[str, Any]:
    """What the process reads: plain values, today's queue file filled in; ``gpus``: how many there are today."""
    scenarios = []
    for each in form.scenarios():
        values = each.model_dump(exclude={"queues", "mtbf"})
        values["mtbf_s"] = each.mtbf
        share = each.nodes * each.gpus_per_node / gpus if gpus else 1.0
        grown = scaled(today, share) if each.queues == "today" else ""
        values["queues"] = {"today": grown, "as-is": today, "none": ""}.get(each.queues, each.queues)
        scenarios.append(values)
    return {"source": form.source.model_dump(), "scenarios": scenarios}
