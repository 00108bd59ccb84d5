"""What a replica is told of NVIDIA Triton: how it is started, asked and read. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import ClassVar

from penstock.base.errors import Problem
from penstock.serving.runtimes.oip import described_at, zeros
from penstock.serving.runtimes.spec import Format, Launch, Load, Model, Options, Ports, Request, Speaks

_LINE = re.compile(r"^(nv_\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_MICRO = 1e-6
_INSTANCES = "--instances="  # on each GPU, or on the processors; every other argument is tritonserver's


class TritonRuntime:
    """ONNX models, ensembles (``ensemble.yaml``) and whole repositories, with Triton's explicit model control."""

    name: ClassVar[str] = "triton"
    speaks: ClassVar[frozenset[Speaks]] = frozenset({"oip"})
    formats: ClassVar[frozenset[Format]] = frozenset({Format.ONNX, Format.TRITON})
    grpc: ClassVar[bool] = True
    grace: ClassVar[float] = 30.0

    def validate(self, options: Options, found: Format | None) -> list[Problem]:
        problems = []
        if found is not None and found not in self.formats:
            problems.append(Problem("model", f"is {found}; the runtime triton takes ONNX, or a repository"))
        if options.command:
            problems.append(Problem("command", "is for the runtime `command`"))
        problems += [
            Problem("batching.preferred", f"{size} is more than batching.max, {options.batching.most}")
            for size in options.batching.preferred
            if size > options.batching.most
        ]
        return problems

    def launch(self, model: Model | None, options: Options, ports: Ports, folder: str) -> Launch:
        assert model is not None  # it takes a format, so it is given a model
        batching = options.batching
        own = tuple(word for word in options.args if word.startswith(_INSTANCES))
        theirs = tuple(word for word in options.args if word not in own)
        argv = (
            sys.executable, "-m", "penstock.serving.runtimes.triton.start", "--model", model.path, "--name", model.name,
            "--version", str(model.version), "--folder", f"{folder}/triton", "--host", ports.host,
            "--http", str(ports.http), "--grpc", str(ports.grpc), "--metrics", str(ports.metrics),
            "--max-batch", str(batching.most), "--delay", f"{batching.delay:f}", "--threads", str(options.threads),
            "--grace", f"{self.grace:.0f}", *(("--preferred", *map(str, batching.preferred)) if batching.preferred else ()),
            *own, *(("--", *theirs) if theirs else ()),
        )  # fmt: skip
        return Launch(argv, dict(options.env))

    def ready(self, model: Model | None) -> Request:
        return Request("GET", "/v2/health/ready" if model is None else f"/v2/models/{model.name}/ready")

    def describe(self, model: Model | None) -> Request | None:
        return described_at(model)

    def warming(self, model: Model | None, described: Mapping[str, object]) -> Request | None:
        return zeros(model, described)

    def metrics(self) -> Request | None:
        return Request("GET", "/metrics", port="metrics")

    def load(self, page: str) -> Load:
        found: dict[str, float] = {}
        for name, _labels, text in _LINE.findall(page):
            try:
                found[name] = found.get(name, 0.0) + float(text)
            except ValueError:
                continue
        queue, compute = (
            found.get("nv_inference_queue_duration_us"),
            found.get("nv_inference_compute_infer_duration_us"),
        )
        return Load(
            waiting=found.get("nv_inference_pending_request_count"),
            queue_s=None if queue is None else queue * _MICRO,
            compute_s=None if compute is None else compute * _MICRO,
        )
