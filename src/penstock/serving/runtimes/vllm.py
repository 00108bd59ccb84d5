"""What a replica is told of vLLM: its OpenAI-compatible server, how it is started, asked and read. Pure.

Names of its metrics: vLLM's documentation, "Production Metrics"; those of the cache were renamed between versions, both are read.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from typing import ClassVar

from penstock.base.errors import Problem
from penstock.serving.runtimes.spec import Format, Launch, Load, Model, Options, Ports, Request, Speaks
from penstock.serving.state import Histogram

_LINE = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_BUCKET = re.compile(r'^vllm:(\w+)_bucket\{(?:[^}]*,)?le="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)
_TTFT = ("time_to_first_token_seconds",)
_TPOT = (  # of a request's mean where it is told, else of each token
    "request_time_per_output_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds",
)  # fmt: skip


class Vllm:
    """A language model's folder, as Hugging Face lays it out. vLLM batches by itself, so ``batching`` says nothing to it."""

    name: ClassVar[str] = "vllm"
    speaks: ClassVar[frozenset[Speaks]] = frozenset({"openai"})
    formats: ClassVar[frozenset[Format]] = frozenset({Format.HUGGING_FACE})
    grpc: ClassVar[bool] = False
    grace: ClassVar[float] = 60.0

    def validate(self, options: Options, found: Format | None) -> list[Problem]:
        problems = []
        if found is not None and found not in self.formats:
            words = f"is {found}; the runtime vllm takes a folder with config.json and safetensors"
            problems.append(Problem("model", words))
        if options.command:
            problems.append(Problem("command", "is for the runtime `command`"))
        if options.batching.preferred or options.batching.delay:
            problems.append(Problem("batching", "vLLM batches by itself; give --max-num-seqs and the like in args"))
        own = ("--model", "--port", "--host", "--served-model-name")
        problems += [
            Problem("args", f"{word.partition('=')[0]} is said by Penstock")
            for word in options.args
            if word.partition("=")[0] in own
        ]
        return problems

    def launch(self, model: Model | None, options: Options, ports: Ports, folder: str) -> Launch:
        assert model is not None  # it takes a format, so it is given a model
        argv = (
            "vllm", "serve", model.path, "--served-model-name", model.name, "--host", ports.host,
            "--port", str(ports.http), *options.args,
        )  # fmt: skip
        return Launch(argv, dict(options.env))

    def ready(self, model: Model | None) -> Request:
        return Request("GET", "/health")

    def describe(self, model: Model | None) -> Request | None:
        return None

    def warming(self, model: Model | None, described: Mapping[str, object]) -> Request | None:
        """One token: its first request is what compiles and captures graphs."""
        name = "" if model is None else model.name
        body = json.dumps({"model": name, "prompt": "Hello", "max_tokens": 1}).encode()
        return Request("POST", "/v1/completions", body, {"content-type": "application/json"})

    def metrics(self) -> Request | None:
        return Request("GET", "/metrics")

    def load(self, page: str) -> Load:
        found: dict[str, float] = {}
        for name, text in _LINE.findall(page):
            try:
                found[name] = found.get(name, 0.0) + float(text)
            except ValueError:
                continue
        return Load(
            running=found.get("num_requests_running"),
            waiting=found.get("num_requests_waiting"),
            queue_s=found.get("request_queue_time_seconds_sum"),
            compute_s=found.get("request_inference_time_seconds_sum"),
            memory_used=found.get("kv_cache_usage_perc", found.get("gpu_cache_usage_perc")),
            ttft=_histogram(page, _TTFT),
            tpot=_histogram(page, _TPOT),
        )


def _histogram(page: str, names: tuple[str, ...]) -> Histogram:
    """Of the first of these that the page has, all of its engines together."""
    found: dict[str, dict[float, float]] = {}
    for name, bound, count in _BUCKET.findall(page):
        if name in names:
            buckets = found.setdefault(name, {})
            with contextlib.suppress(ValueError):
                upto = float(count)
                buckets[float(bound)] = buckets.get(float(bound), 0.0) + (upto if math.isfinite(upto) else 0.0)
    totals = next((found[name] for name in names if found.get(name)), {})
    bounds = sorted(bound for bound in totals if bound < math.inf)
    totalled = [totals[bound] for bound in (*bounds, *(bound for bound in totals if bound == math.inf))]
    counts = tuple(max(0.0, now - before) for before, now in zip([0.0, *totalled], totalled, strict=False))
    return Histogram(tuple(bounds), counts if len(counts) > len(bounds) else (*counts, 0.0))
