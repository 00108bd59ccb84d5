"""``python -m penstock.serving.runtimes.onnx --models FOLDER --http 8000 --grpc 8001``: the built-in server for ONNX models."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import uvloop

from penstock.base.errors import InvalidInput
from penstock.base.quantities import parse_duration, parse_memory
from penstock.serving.otlp import parse_address
from penstock.serving.runtimes.onnx.errors import Refused
from penstock.serving.runtimes.onnx.plan import Policy
from penstock.serving.runtimes.onnx.repository import check_name
from penstock.serving.runtimes.onnx.server import NOT_BOUND, Options, bind, run
from penstock.serving.runtimes.onnx.version import Limits


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m penstock.serving.runtimes.onnx", description=__doc__)
    made.add_argument("--models", metavar="FOLDER", help="a repository: FOLDER/NAME/VERSION/model.onnx")
    made.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[:VERSION]=PATH",
        type=_named,
        help="one model; may be repeated",
    )
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--http", type=int, default=8000, metavar="PORT", help="HTTP, with /metrics")
    made.add_argument("--grpc", type=int, default=None, metavar="PORT", help="gRPC; default: none")
    made.add_argument("--threads", type=int, default=1, help="of ONNX Runtime, for each model version")
    made.add_argument("--max-batch", type=int, default=32, metavar="ROWS", help="most rows in one run; 1: no batching")
    made.add_argument("--preferred", type=_sizes, default=(), metavar="N,N", help="sizes of batches that run well")
    made.add_argument(
        "--delay", type=_seconds, default=0.0, metavar="TIME", help="how long a request waits for others, as 2ms"
    )
    made.add_argument("--max-queue", type=int, default=1024, metavar="N", help="requests that wait; more get 503")
    made.add_argument("--request-timeout", type=_seconds, default=30.0, metavar="TIME")
    made.add_argument("--max-body", type=_memory, default=64 << 20, metavar="SIZE")
    made.add_argument(
        "--grace", type=_seconds, default=30.0, metavar="TIME", help="after SIGTERM, for what is under way"
    )
    made.add_argument("--otlp", type=_address, metavar="HOST:PORT", help="where spans are sent (OTLP over HTTP)")
    return made


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _named(text: str) -> tuple[tuple[str, str], str]:
    label, _, path = text.partition("=")
    name, _, version = label.partition(":")
    version = version or "1"
    try:
        check_name(name)
    except Refused as error:
        raise argparse.ArgumentTypeError(error.message) from error
    if not path or not (version.isascii() and version.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: is NAME=PATH or NAME:VERSION=PATH, the version a number")
    return (name, version), path


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part}))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: are numbers with commas") from error


def _seconds(text: str) -> float:
    try:
        return 0.0 if text == "0" else parse_duration(text)
    except (InvalidInput, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _memory(text: str) -> int:
    try:
        return parse_memory(text)
    except (InvalidInput, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    given = made.parse_args(argv)
    if given.models is None and not given.model:
        made.error("name --models FOLDER or --model NAME=PATH")
    if given.models is not None and not os.path.isdir(given.models):
        made.error(f"--models {given.models}: is no folder")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    policy = Policy(max(1, given.max_batch), given.preferred, given.delay)
    limits = Limits(max(1, given.threads), max(1, given.max_queue), given.request_timeout, given.max_body, policy)
    try:
        sock = bind(given.host, given.http)
    except OSError as error:
        print(f"cannot listen on {given.host} port {given.http}: {error.strerror}", file=sys.stderr)
        return NOT_BOUND
    options = Options(
        given.models, dict(given.model), given.host, given.http, given.grpc, limits, given.grace, given.otlp
    )
    return uvloop.run(run(options, sock))


if __name__ == "__main__":
    sys.exit(main())
