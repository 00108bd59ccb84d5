"""What Envoy's own answer is read as."""

from __future__ import annotations

import json
from typing import Any

from penstock.serving.gateway.counters import parse


def stat(cluster: str, field: str, value: int) -> dict[str, Any]:
    return {"name": f"cluster.{cluster}.{field}", "value": value}


def buckets(*cumulative: int) -> list[dict[str, float]]:
    bounds = [0.5, 1.5, 2.5]
    return [{"upper_bound": at, "interval": 0, "cumulative": n} for at, n in zip(bounds, cumulative, strict=True)]


def test_tries_that_were_made_good_are_requests_and_errors() -> None:
    text = json.dumps(
        {
            "stats": [
                stat("default/digits/1", "upstream_rq_completed", 10),
                stat("default/digits/1", "upstream_rq_retry", 2),
                stat("default/digits/1", "upstream_rq_5xx", 1),
                stat("default/digits/1", "upstream_rq_active", 3),
                stat("default/digits/1", "upstream_rq_pending_active", 1),
                stat("comparator-127-0-0-1-9", "upstream_rq_completed", 10),
                {"histograms": [{"name": "cluster.default/digits/1.upstream_rq_time", "buckets": buckets(4, 6, 10)}]},
            ]
        }
    )
    found = parse(text)
    assert list(found) == [("default", "digits", 1)]
    counts = found["default", "digits", 1]
    assert [counts.requests, counts.errors, counts.active] == [12, 3, 4]
    assert list(counts.latency.bounds) == [0.001, 0.002, 0.003]
    assert list(counts.latency.counts) == [4, 2, 4, 0]
    assert counts.seconds == 4 * 0.0005 + 2 * 0.0015 + 4 * 0.0025


def test_what_a_version_refuses_is_apart_from_errors_and_from_being_full() -> None:
    fields = {"completed": 10, "4xx": 5, "429": 2, "5xx": 1}
    text = json.dumps({"stats": [stat("default/digits/1", f"upstream_rq_{name}", n) for name, n in fields.items()]})
    counts = parse(text)["default", "digits", 1]
    assert [counts.errors, counts.refused, counts.bad] == [1, 3, 4]


def test_a_versions_ports_are_one_version() -> None:
    text = json.dumps(
        {
            "stats": [
                stat("default/digits/1", "upstream_rq_completed", 10),
                stat("default/digits/1/grpc", "upstream_rq_completed", 5),
                {
                    "histograms": [
                        {"name": "cluster.default/digits/1/grpc.upstream_rq_time", "buckets": buckets(5, 5, 5)}
                    ]
                },
            ]
        }
    )
    counts = parse(text)["default", "digits", 1]
    assert counts.requests == 15
    assert counts.latency.total == 5


def test_nothing_yet() -> None:
    assert parse('{"stats": []}') == {}
