"""A replay's answer for people: a few sentences, a table of policies, and load, replicas and P95 over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from penstock.base.quantities import format_duration
from penstock.client.sparkline import sparkline
from penstock.client.verb import Column

_NAMES = {"p95": "all of an answer", "ttft": "the first token", "tpot": "each further token"}


def took(seconds: float) -> str:
    return f"{1000 * seconds:.3g}ms" if seconds < 1 else f"{seconds:.3g}s" if seconds < 100 else f"{seconds:,.0f}s"


def summary(found: Mapping[str, Any]) -> Iterator[str]:
    trace, allowed = found["trace"], found["allowed"]
    yield (
        f"{trace['requests']:,} requests in {format_duration(max(trace['seconds'], 1.0))}, "
        f"{trace['requests'] / max(trace['seconds'], 1.0):.3g} a second; a replica starts in {took(found['cold_start_s'])}"
    )
    aims = [f"{_NAMES[name]} in {took(value)}" for name, value in found["objective"].items()]
    yield f"Objective, for 95 of 100 requests: {' and '.join(aims) or 'none'}"
    if allowed is None:
        yield "By the curve no number of replicas holds it: it takes longer even in a replica that is alone with each request"
    else:
        yield (
            f"By the curve a replica holds it with {allowed['concurrency']:.3g} requests at once, "
            f"and answers {allowed['throughput']:.3g} a second then"
        )


def columns(found: Mapping[str, Any]) -> tuple[Column, ...]:
    kind, title = ("ttft", "TTFT") if "ttft" in found["policies"][0] else ("latency", "LATENCY")

    def quantile(share: str) -> Column:
        return Column(f"{title} {share.upper()}", lambda row, _: took(row[kind][share]), right=True)

    def number(title: str, key: str) -> Column:
        return Column(title, lambda row, _: f"{row[key]:,}", right=True)

    return (
        Column("POLICY", lambda row, _: str(row["policy"])),
        number("MISSED", "misses"),
        Column("OF ALL", lambda row, _: f"{100 * row['misses'] / row['requests']:.1f}%", right=True),
        quantile("p50"),
        quantile("p95"),
        quantile("p99"),
        Column("REPLICA-HOURS", lambda row, _: f"{row['replica_seconds'] / 3600:.2f}", right=True),
        Column("MEAN", lambda row, _: f"{row['mean_replicas']:.2f}", right=True),
        number("MOST", "most_replicas"),
        number("CHANGES", "changes"),
        number("TURNS", "reversals"),
    )


def lines_over_time(found: Mapping[str, Any]) -> Iterator[str]:
    """All policies to one scale, so that they can be compared."""
    lines = [row["timeline"] for row in found["policies"]]
    load = max(lines, key=lambda line: len(line["arrived"]) * line["width_s"])["arrived"]
    replicas = max(max(line["wanted"], default=0.0) for line in lines)
    slowest = max(max(line["p95"], default=0.0) for line in lines)
    yield f"{'load':<22} {sparkline(load, max(load))}  at most {max(load):.3g} requests a second"
    for row in found["policies"]:
        line = row["timeline"]
        top, slow = max(line["wanted"], default=0.0), max(line["p95"], default=0.0)
        yield f"{row['policy'] + ' replicas':<22} {sparkline(line['wanted'], replicas)}  at most {top:.3g}"
        yield f"{row['policy'] + ' P95':<22} {sparkline(line['p95'], slowest)}  at most {took(slow)}"
