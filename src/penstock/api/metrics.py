"""/metrics in Prometheus' text format: what rooms report, the latency of requests, the store, the build.

``prometheus_client`` (4 MB, 50 ms) is imported at the first scrape: most servers on one machine are never scraped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence, Sized
from typing import Any, Protocol

from penstock.base.routes import Call, Reply, Sample

Source = Callable[[], Awaitable[Iterable[Sample]]]
# Seconds. From what a read costs here (1 ms) to what nobody waits for.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Latencies:
    """Request durations by method, route (the template, so that the series are few) and class of status."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], list[float]] = {}  # counts per bucket, then the sum in seconds

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status // 100)
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = [0.0] * (len(BUCKETS) + 2)
        row[bisect_left(BUCKETS, seconds)] += 1
        row[-1] += seconds


class Served(Protocol):
    """What the application knows of itself."""

    @property
    def latencies(self) -> Latencies: ...
    @property
    def live(self) -> Sized: ...


class Metrics:
    """The endpoint's body. ``add`` a source for each room that has something to report."""

    def __init__(self, version: str, served: Callable[[], Served | None]) -> None:
        self._version = version
        self._served = served
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        self._sources.append(source)

    async def scrape(self, _call: Call) -> Reply:
        samples = [Sample("build_info", "gauge", "Constant 1.", {"version": self._version}, 1)]
        served = self._served()
        if served is not None:
            samples.append(Sample("open_streams", "gauge", "Streams and sessions that are open.", {}, len(served.live)))
        for source in self._sources:
            samples.extend(await source())
        body, media_type = render(samples, served.latencies if served else Latencies())
        return Reply(body, media_type=media_type)


def render(samples: Sequence[Sample], latencies: Latencies) -> tuple[bytes, str]:
    """The exposition, and its content type."""
    from prometheus_client import CollectorRegistry, exposition  # noqa: PLC0415 - see the module's first lines

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_families(samples), *_durations(latencies)]))
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class _Once:
    def __init__(self, families: Sequence[Any]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        return self._families


def _families(samples: Iterable[Sample]) -> Iterable[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - as above

    families: dict[str, Any] = {}
    for sample in samples:
        name = "penstock_" + sample.name
        if name not in families:
            kind = CounterMetricFamily if sample.type == "counter" else GaugeMetricFamily
            families[name] = (kind(name, sample.help, labels=tuple(sample.labels)), tuple(sample.labels))
        family, labels = families[name]
        family.add_metric([str(sample.labels[label]) for label in labels], sample.value)
    return [family for family, _ in families.values()]


def _durations(latencies: Latencies) -> Iterable[Any]:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - as above

    family = HistogramMetricFamily(
        "penstock_http_request_duration_seconds",
        "From a request's headers to its answer; streams left out.",
        labels=("method", "route", "status"),
    )
    for (method, route, status), row in latencies.rows.items():
        total, buckets = 0.0, []
        for bound, count in zip((*BUCKETS, "+Inf"), row, strict=False):
            total += count
            buckets.append((str(bound), total))
        family.add_metric((method, route, f"{status}xx"), buckets, sum_value=row[-1])
    return [family]
