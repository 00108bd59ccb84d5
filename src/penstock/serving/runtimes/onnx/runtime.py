"""What a replica is told of the built-in runtime: how it is started, asked and read. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import ClassVar

from penstock.base.errors import Problem
from penstock.serving.runtimes.oip import described_at, zeros
from penstock.serving.runtimes.spec import COLLECTOR, Format, Launch, Load, Model, Options, Ports, Request, Speaks

_LINE = re.compile(r"^(penstock_infer_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_COLLECTOR = re.compile(r"http://([^/]+:\d{1,5})/?")
_SIZE = re.compile(r'size="(\d+)"')


class OnnxRuntime:
    """ONNX models, on this machine's processors, behind the Open Inference Protocol."""

    name: ClassVar[str] = "onnx"
    speaks: ClassVar[frozenset[Speaks]] = frozenset({"oip"})
    formats: ClassVar[frozenset[Format]] = frozenset({Format.ONNX})
    grpc: ClassVar[bool] = True
    grace: ClassVar[float] = 30.0

    def validate(self, options: Options, found: Format | None) -> list[Problem]:
        problems: list[Problem] = []
        if found is not None and found is not Format.ONNX:
            problems.append(Problem("model", f"is {found}, the runtime onnx takes ONNX"))
        if options.command:
            problems.append(Problem("command", "is for the runtime `command`"))
        problems.extend(
            Problem("batching.preferred", f"{size} is more than batching.max, {options.batching.most}")
            for size in options.batching.preferred
            if size > options.batching.most
        )
        if options.batching.delay >= options.request_timeout:
            problems.append(Problem("batching.delay", "is not shorter than request_timeout"))
        return problems

    def launch(self, model: Model | None, options: Options, ports: Ports, folder: str) -> Launch:
        assert model is not None  # it takes a format, so it is given a model
        batching = options.batching
        preferred = ("--preferred", ",".join(map(str, batching.preferred))) if batching.preferred else ()
        argv = (
            sys.executable, "-m", "penstock.serving.runtimes.onnx",
            "--model", f"{model.name}:{model.version}={model.path}", "--host", ports.host,
            "--http", str(ports.http), "--grpc", str(ports.grpc), "--threads", str(options.threads),
            "--max-batch", str(batching.most), *preferred, "--delay", f"{batching.delay:f}",
            "--max-queue", str(options.max_queue), "--request-timeout", f"{options.request_timeout:f}",
            "--max-body", str(options.max_body), "--grace", f"{self.grace:f}", *options.args,
        )  # fmt: skip
        collector = _COLLECTOR.fullmatch(options.env.get(COLLECTOR, ""))
        return Launch((*argv, "--otlp", collector[1]) if collector else argv, dict(options.env))

    def ready(self, model: Model | None) -> Request:
        return Request("GET", "/v2/health/ready")

    def describe(self, model: Model | None) -> Request | None:
        return described_at(model)

    def warming(self, model: Model | None, described: Mapping[str, object]) -> Request | None:
        return zeros(model, described)

    def metrics(self) -> Request | None:
        return Request("GET", "/metrics")

    def load(self, page: str) -> Load:
        found: dict[str, float] = {}
        batches: dict[int, float] = {}
        for name, labels, text in _LINE.findall(page):
            try:
                value = float(text)
            except ValueError:
                continue
            size = _SIZE.search(labels)
            if name == "penstock_infer_batches_total" and size is not None:
                batches[int(size[1])] = batches.get(int(size[1]), 0.0) + value
            found[name] = found.get(name, 0.0) + value
        return Load(
            running=found.get("penstock_infer_running"),
            waiting=found.get("penstock_infer_waiting"),
            batches=batches,
            queue_s=found.get("penstock_infer_queue_seconds_total"),
            compute_s=found.get("penstock_infer_compute_seconds_total"),
        )
