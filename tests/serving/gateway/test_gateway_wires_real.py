"""The real Envoy's other wires: TLS, gRPC, spans, and the copies that the comparator is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from penstock.base.errors import EngineFailure, InvalidInput
from penstock.serving import extproc
from penstock.serving.gateway.spec import Backend, RateLimit, VersionRoute
from penstock.serving.state import WHOLE
from tests.serving.gateway.world import Upstream, free_port, is_, looped, service, until, world

pytestmark = pytest.mark.real


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """In one rename each, as renewals are."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
    made = ["-keyout", f"{key}.new", "-out", f"{cert}.new", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *words.split(), *made], check=True, capture_output=True)
    Path(f"{key}.new").replace(key)
    Path(f"{cert}.new").replace(cert)
    return str(cert), str(key)


async def name_shown(port: int, cert: str) -> str:
    trusted = ssl.create_default_context(cafile=cert)
    trusted.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
    try:
        wire = writer.get_extra_info("ssl_object")
        assert wire.selected_alpn_protocol() == "h2"
        return str(dict(part[0] for part in wire.getpeercert()["subject"])["commonName"])
    finally:
        writer.close()
        await writer.wait_closed()


@looped
async def test_tls_and_a_certificate_that_is_renewed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up = await here.upstream()
        cert, key = certificate(tmp_path, "first")
        here.base = replace(here.base, tls_cert=cert, tls_key=key)
        await here.publish(service(up))
        assert await name_shown(here.port, cert) == "first"
        certificate(tmp_path, "second")

        async def renewed() -> bool:
            try:
                return await name_shown(here.port, cert) == "second"
            except ssl.SSLError:
                return False

        await until(renewed)
        here.base = replace(here.base, tls_cert=str(tmp_path / "lost.pem"))
        with pytest.raises(InvalidInput, match="cannot be as it is wanted"):
            await here.publish(service(up))


@contextlib.asynccontextmanager
async def grpc_server(answer: grpc.RpcMethodHandler) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
    class Any(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return answer

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Any(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(0)


@looped
async def test_grpc_is_routed_by_its_metadata_and_counted(tmp_path: Path) -> None:
    async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return b"!" + request

    async with world(tmp_path) as here, grpc_server(grpc.unary_unary_rpc_method_handler(echo)) as (_, port):
        up = await here.upstream()
        both = VersionRoute(1, (Backend("a", "127.0.0.1", up.port, port),))
        await here.publish(service(versions=(both,)))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{here.port}") as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            assert await ask(b"x", metadata=[("x-penstock-service", "default/digits")]) == b"!x"
            with pytest.raises(grpc.aio.AioRpcError, match="no inference service"):
                await ask(b"x")
        assert (await here.call("/default/digits/"))[0] == 200
        assert (await here.publisher.counts())["default", "digits", 1].requests == 2


@looped
async def test_spans_are_exported_and_belong_to_the_callers_trace(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up, spans = await here.upstream(), bytearray()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    spans.extend(head.encode())
                    if "transfer-encoding" in head:
                        while size := int(await reader.readline(), 16):
                            spans.extend((await reader.readexactly(size + 2))[:-2])
                        await reader.readline()
                    else:
                        spans.extend(await reader.readexactly(int(head.partition("content-length: ")[2].split()[0])))
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            writer.close()

        collector = Upstream()
        collector.server = await asyncio.start_server(take, "127.0.0.1", 0)
        here.upstreams.append(collector)
        here.base = replace(here.base, otlp=("127.0.0.1", collector.server.sockets[0].getsockname()[1]))
        await here.publish(service(up))
        trace = "0af7651916cd43dd8448eb211c80319c"
        assert (await here.call("/default/digits/x", {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}))[0] == 200
        assert up.seen[0][1]["traceparent"].split("-")[1] == trace
        assert up.seen[0][1]["traceparent"].split("-")[2] != "b7ad6b7169203331"
        await until(lambda: is_(lambda: bytes.fromhex(trace) in spans))
        assert b"/v1/traces" in spans
        assert b"penstock-gateway" in spans


@looped
async def test_the_comparator_is_sent_copies_and_its_death_is_not_noticed(tmp_path: Path) -> None:
    parts: list[extproc.Part] = []
    told: list[dict[str, str]] = []

    async def process(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        told.append({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
        async for message in messages:
            part = extproc.decoded(message)
            if part is not None:
                parts.append(part)
        answers: tuple[bytes, ...] = ()  # observed only
        for answer in answers:
            yield answer

    wire = grpc.stream_stream_rpc_method_handler(process)
    async with world(tmp_path) as here, grpc_server(wire) as (server, port):
        up = await here.upstream()
        candidate = VersionRoute(2, (), weight=0, mirror=WHOLE)
        stable = VersionRoute(1, (up.backend(),))
        await here.publish(service(versions=(stable, candidate), comparator=("127.0.0.1", port)))
        assert (await here.call("/default/digits/v2/models/m/infer"))[0] == 200
        await until(lambda: is_(lambda: len([part for part in parts if part.end]) >= 2))
        assert told[0]["x-penstock-service"] == "default/digits"
        assert told[0]["x-penstock-prefix"] == "/default/digits"
        kinds = {part.kind for part in parts}
        assert {extproc.Kind.REQUEST_HEADERS, extproc.Kind.REQUEST_BODY, extproc.Kind.RESPONSE_BODY} <= kinds
        answer = next(part for part in parts if part.kind is extproc.Kind.RESPONSE_HEADERS)
        assert (b"x-penstock-version", b"1") in [(key.encode(), value) for key, value in answer.headers]
        await server.stop(0)
        assert {(await here.call("/default/digits/"))[0] for _ in range(20)} == {200}


@looped
async def test_a_port_that_is_taken_is_told_of_and_taken_once_it_is_free(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up = await here.upstream()
        await here.publish(service(up))
        other = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", free_port())
        here.base = replace(here.base, port=other.sockets[0].getsockname()[1])
        with pytest.raises(EngineFailure, match="Envoy refuses"):
            await here.publish(service(up))
        other.close()
        await other.wait_closed()
        await here.publish(service(up))
        assert (await here.call("/default/digits/"))[0] == 200


@looped
async def test_limits_of_any_pace_are_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up = await here.upstream()
        paces = [0.05, 0.333, 1.5, 60.0, 86400.0]
        await here.publish(*(service(up, name=f"s{n}", rate_limit=RateLimit(2, pace)) for n, pace in enumerate(paces)))
        assert [(await here.call("/default/s4/"))[0] for _ in range(3)] == [200, 200, 429]
        assert json.loads((await here.call("/default/s4/"))[2])["error"].startswith("the service's rate limit")
