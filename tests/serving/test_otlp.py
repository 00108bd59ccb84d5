"""Spans: whose they are, how they are told, and that a collector which is not there costs nothing but spans."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.gateway.spec import Backend, VersionRoute
from penstock.serving.otlp import MOST, Exporter, Parent, Span, document, followed, parse_address
from penstock.serving.runtimes.onnx.queue import Timing
from penstock.serving.runtimes.onnx.spans import follow
from tests.serving.collector import collector
from tests.serving.gateway.world import looped, service, world
from tests.serving.onnx.models import doubled
from tests.serving.onnx.running import onnx
from tests.serving.stand_in import call

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", Parent(TRACE, SPAN)),
        (f"cc-{TRACE}-{SPAN}-03-later", Parent(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-00", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        ("", None),
        (None, None),
    ],
)
def test_who_is_followed(header: str | None, found: Parent | None) -> None:
    assert followed(header) == found
    assert followed(header.encode() if header is not None else None) == found


@given(st.binary(max_size=80))
def test_any_header_is_read(header: bytes) -> None:
    followed(header)


def test_a_document() -> None:
    span = Span("queue", Parent(TRACE, SPAN), 5, 9, attributes={"rows": 3, "model": "m"})
    body = json.loads(document("penstock-onnx", {"replica": "r"}, [span]))
    told = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert (told["traceId"], told["parentSpanId"], told["name"]) == (TRACE, SPAN, "queue")
    assert (told["startTimeUnixNano"], told["endTimeUnixNano"]) == ("5", "9")
    assert re.fullmatch(r"[0-9a-f]{16}", told["spanId"])
    assert told["attributes"][0] == {"key": "rows", "value": {"intValue": "3"}}
    names = {one["key"]: one["value"]["stringValue"] for one in body["resourceSpans"][0]["resource"]["attributes"]}
    assert names["service.name"] == "penstock-onnx"


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.tuples(*[st.integers(0, 10**9)] * 3))
def test_parts_lie_inside_of_the_whole(taken: int, queue: int, compute: tuple[int, int, int]) -> None:
    async def story() -> None:
        exporter = Exporter("127.0.0.1", 1, "test")
        follow(exporter, f"00-{TRACE}-{SPAN}-01", "m", (10**12, 10**12 + taken), Timing(queue, compute, 4))
        whole, waited, batch, model = exporter._waiting
        assert whole.begun <= waited.begun <= waited.ended == batch.begun <= batch.ended == whole.ended
        assert batch.begun <= model.begun
        assert model.begun <= model.ended or compute[0] > taken
        assert (waited.parent, batch.parent, model.parent) == (whole.own, whole.own, batch.own)
        assert {one.parent.trace for one in (whole, waited, batch, model)} == {TRACE}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("text", "found"), [("c:4318", ("c", 4318)), ("http://[::1]:4318/", ("::1", 4318)), ("c", None), ("c:0", None), ("c/x:1", None)]
)  # fmt: skip
def test_addresses(text: str, found: tuple[str, int] | None) -> None:
    if found is not None:
        assert parse_address(text) == found
    else:
        with pytest.raises(ValueError, match="HOST:PORT"):
            parse_address(text)


def test_what_cannot_be_sent_is_dropped_and_counted() -> None:
    async def story() -> None:
        span = Span("x", Parent(TRACE, SPAN), 1, 2)
        async with collector() as there:
            exporter = Exporter("127.0.0.1", there.port, "test")
            exporter.add(*[span] * (MOST + 10))
            assert exporter.dropped == 10
            await exporter.close()
            assert len(there.spans) == MOST
            there.status = 503
            exporter.add(span)
            await exporter.close()
            assert exporter.dropped == 11
        exporter.add(span, span)
        await exporter.close()  # nobody listens any more
        assert exporter.dropped == 13

    asyncio.run(story())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.05)


@pytest.mark.real
@looped
async def test_a_request_is_one_trace_through_gateway_queue_batch_and_compute(tmp_path: Path) -> None:
    model = doubled(tmp_path / "m.onnx")
    async with world(tmp_path) as here, collector() as there:
        with onnx("--model", f"m={model}", "--otlp", f"127.0.0.1:{there.port}") as server:
            here.base = replace(here.base, otlp=("127.0.0.1", there.port))
            backend = Backend("r1", "127.0.0.1", server.http)
            await here.publish(service(versions=(VersionRoute(1, (backend,)),)))
            asked = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
            parent = ((b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()),)
            path = "/default/digits/v2/models/m/infer"
            got = await call(here.port, path, parent, json.dumps(asked).encode())
            assert got.status == 200, got.body
            trace = bytes.fromhex(TRACE)
            await until(lambda: len(there.spans) >= 4 and trace in there.protobufs)
        spans = {span["name"]: span for span in there.spans}
        assert set(spans) == {"infer", "queue", "batch", "compute"}
        assert {span["traceId"] for span in spans.values()} == {TRACE}
        gateway = bytes.fromhex(spans["infer"]["parentSpanId"])
        assert gateway in there.protobufs  # the gateway's span, which names the caller's
        assert bytes.fromhex(SPAN) in there.protobufs
        assert spans["queue"]["parentSpanId"] == spans["batch"]["parentSpanId"] == spans["infer"]["spanId"]
        assert spans["compute"]["parentSpanId"] == spans["batch"]["spanId"]
