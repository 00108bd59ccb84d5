"""The options of ``penstock serving replay``, apart from what it runs: the other verbs of services need not import that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

_MOST = 32


def configure(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", metavar="TRACE", help="Azure's or Mooncake's form or a CSV: plain, .xz or .gz; - for standard input")
    add(
        "--policy",
        action="append",
        metavar="NAME",
        help="penstock, kpa, hpa, fixed=N; again or with commas for several",
    )
    add("--objective", metavar="KEY=TIME,...", help="p95, ttft, tpot (default: twice what a lone replica takes)")
    add("--curve", metavar="FILE", help="JSON: a service curve, or a language model's engine (default: 8B on one A100)")
    add(
        "--cold-start",
        metavar="TIME",
        help="from asking for a replica to its first answer (default: the file's, or 60s)",
    )
    add("--first", type=int, metavar="N", help="only the trace's first N requests")
    add("--min", type=int, default=1, metavar="N", help="fewest replicas (default: 1)")
    add("--max", type=int, default=_MOST, metavar="N", help=f"most replicas (default: {_MOST})")
    add("--concurrency", type=float, metavar="N", help="requests at once in a replica (default: what the curve allows)")
    add("--up-after", metavar="TIME", help="these five are the fields of a service's `autoscaling`, for penstock alone")
    add("--down-after", metavar="TIME")
    add("--dead-band", type=float, metavar="SHARE")
    add("--flaps", type=int, metavar="N")
    add("--idle-after", metavar="TIME")
