"""What Envoy counted, by version: read once a second, so the question is narrow and the answer is JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from penstock.serving.gateway.words import version_of_cluster
from penstock.serving.state import Counts, Histogram

_FIELDS = "|".join(
    f"upstream_rq_{name}" for name in ("completed", "retry", "4xx", "429", "5xx", "active", "pending_active")
)

Key = tuple[str, str, int]


def question() -> str:
    pattern = quote(rf"^cluster\.[^.]*\.({_FIELDS}|upstream_rq_time)$")
    return f"/stats?format=json&histogram_buckets=cumulative&usedonly&filter={pattern}"


def parse(text: str) -> dict[Key, Counts]:
    """Envoy counts final answers and, apart, the tries that it made good by another: both are requests here, and the
    latter errors. What the gateway refuses by itself (no key, too many requests) is in no cluster's counters. Histograms come 0.5 s later than counters.
    """
    counters: dict[str, dict[str, float]] = {}
    times: dict[str, Histogram] = {}
    for entry in json.loads(text)["stats"]:
        if "histograms" in entry:
            for histogram in _histograms(entry["histograms"]):
                times[_cluster(histogram["name"])[0]] = _histogram(histogram["buckets"])
            continue
        cluster, field = _cluster(entry["name"])
        counters.setdefault(cluster, {})[field] = entry["value"]
    found: dict[Key, Counts] = {}
    for cluster, values in counters.items():
        key = version_of_cluster(cluster)
        if key is not None:
            counts = _counts(values, times.get(cluster, Histogram()))
            found[key] = _plus(found[key], counts) if key in found else counts
    return found


def _histograms(entry: Any) -> list[Mapping[str, Any]]:
    return entry if isinstance(entry, list) else list(entry.get("computed_quantiles", ()))


def _cluster(name: str) -> tuple[str, str]:
    """`cluster.default/digits/3.upstream_rq_retry`: neither a project's nor a service's name has a dot."""
    _, cluster, field = name.split(".", 2)
    return cluster, field


def _histogram(buckets: list[Mapping[str, float]]) -> Histogram:
    """Envoy counts whole milliseconds, rounded down: render.py put the bounds between them."""
    totals = [bucket["cumulative"] for bucket in buckets]
    bounds = tuple((bucket["upper_bound"] + 0.5) / 1000 for bucket in buckets)
    return Histogram(bounds, (*(now - before for before, now in zip([0.0, *totals], totals, strict=False)), 0.0))


def _counts(values: Mapping[str, float], latency: Histogram) -> Counts:
    retried = values.get("upstream_rq_retry", 0)
    return Counts(
        requests=values.get("upstream_rq_completed", 0) + retried,
        errors=values.get("upstream_rq_5xx", 0) + retried,
        active=values.get("upstream_rq_active", 0) + values.get("upstream_rq_pending_active", 0),
        seconds=_summed(latency),
        latency=latency,
        refused=max(0, values.get("upstream_rq_4xx", 0) - values.get("upstream_rq_429", 0)),
    )


def _summed(latency: Histogram) -> float:
    """As if each stood in the middle of its bucket."""
    lows = (0.0, *latency.bounds)
    return sum(count * (low + high) / 2 for count, low, high in zip(latency.counts, lows, latency.bounds, strict=False))


def _plus(one: Counts, other: Counts) -> Counts:
    return Counts(
        one.requests + other.requests,
        one.errors + other.errors,
        one.active + other.active,
        one.seconds + other.seconds,
        one.latency.plus(other.latency),
        one.refused + other.refused,
    )
