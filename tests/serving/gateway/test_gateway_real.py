"""The real Envoy, told by the publisher: what callers see, and what is left when something dies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.base.errors import InvalidInput, Unavailable
from penstock.serving import analysis
from penstock.serving.gateway.admin import Admin
from penstock.serving.gateway.process import found
from penstock.serving.gateway.publish import Publisher
from penstock.serving.gateway.render import ROUTE_FILE
from penstock.serving.gateway.spec import Match, RateLimit, VersionRoute
from penstock.serving.spec import Analysis
from penstock.serving.state import WHOLE, Counts
from tests.serving.gateway.world import Upstream, is_, looped, service, until, world

pytestmark = pytest.mark.real


@looped
async def test_paths_hosts_shares_mirrors_and_what_is_passed_on(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        one, two, copy = [await here.upstream() for _ in range(3)]
        versions = (
            VersionRoute(1, (one.backend(),), weight=7000),
            VersionRoute(2, (two.backend(),), weight=3000),
            VersionRoute(3, (copy.backend(),), weight=0, mirror=WHOLE),
        )
        matches = (Match("", "/default/digits/"), Match("m.example.com", "/"), Match("", "/kept", keep=True))
        await here.publish(service(versions=versions, matches=matches))
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        shown: Counter[str] = Counter()
        for _ in range(200):
            status, headers, _ = await here.call("/default/digits/v2/models?a=1", {"traceparent": parent})
            assert status == 200
            shown[headers["x-penstock-version"]] += 1
        assert 30 < shown["2"] < 90, shown
        assert len(one.seen) == shown["1"]
        path, headers = one.seen[0]
        assert path == "/v2/models?a=1"
        assert (headers["traceparent"], headers["x-penstock-service"]) == (parent, "default/digits")
        assert headers["x-penstock-version"] == "1"
        assert (await here.call("/x", {"host": "m.example.com:80"}))[0] == 200
        assert (await here.call("/kept/a"))[0] == 200
        assert {path for path, _ in one.seen + two.seen} == {"/v2/models?a=1", "/x", "/kept/a"}
        await until(lambda: is_(lambda: len(copy.seen) == 202))
        status, headers, body = await here.call("/default/digitsx")
        assert (status, json.loads(body)["error"]) == (404, "no inference service is at this address")

        async def counted() -> bool:
            counts = await here.publisher.counts()
            every = [counts[("default", "digits", number)] for number in (1, 2, 3)]
            return every[2].latency.total == 202 and sum(one.latency.total for one in every[:2]) == 202

        await until(counted)
        counts = await here.publisher.counts()
        assert counts[("default", "digits", 3)].requests == 202
        assert counts[("default", "digits", 1)].errors == 0
        assert await here.publisher.counts() != {}
        await until(lambda: is_(lambda: (tmp_path / "access.log").read_text().count("\n") == 203))
        row = json.loads((tmp_path / "access.log").read_text().splitlines()[0])
        assert (row["status"], row["path"], row["traceparent"]) == (200, "/default/digits/v2/models?a=1", parent)


@looped
async def test_keys_and_rate_limits(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up = await here.upstream()
        keys = [f"{'k' * length}" for length in (1, 8, 55, 56, 63, 64, 65, 119, 120, 1000)]
        digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
        limited = service(up, name="limited", rate_limit=RateLimit(3, 60.0))
        await here.publish(service(up, keys=digests), limited)
        for key in keys:
            assert (await here.call("/default/digits/", {"authorization": f"Bearer {key}"}))[0] == 200
        assert (await here.call("/default/digits/", {"x-api-key": keys[1]}))[0] == 200
        assert all("authorization" not in headers and "x-api-key" not in headers for _, headers in up.seen)
        for headers in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic k"}, {"x-api-key": "k" * 5000}):
            status, answer, body = await here.call("/default/digits/", headers)
            assert (status, answer["www-authenticate"]) == (401, "Bearer")
            assert "API key" in json.loads(body)["error"]
        mode = (tmp_path / "gateway" / ROUTE_FILE).stat().st_mode
        assert mode & 0o077 == 0
        assert keys[4] not in (tmp_path / "gateway" / ROUTE_FILE).read_text()
        assert [(await here.call("/default/limited/"))[0] for _ in range(3)] == [200] * 3
        await here.publish(service(up, keys=digests[1:]), limited)  # other routes do not fill its bucket again
        status, headers, body = await here.call("/default/limited/")
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"] == "the service's rate limit is reached: try again later"
        assert (await here.call("/default/digits/", {"authorization": f"Bearer {keys[0]}"}))[0] == 401


@looped
async def test_a_replica_that_dies_fails_no_request_while_another_lives(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        arrived = asyncio.Event()

        async def never(path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
            arrived.set()
            await asyncio.sleep(60)
            return 200, b"{}"

        hanging, living = await here.upstream(never), await here.upstream()
        await here.publish(service(hanging, living))
        asked = [asyncio.create_task(here.call("/default/digits/")) for _ in range(8)]
        await arrived.wait()
        await hanging.die()
        assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
        assert {(await here.call("/default/digits/"))[0] for _ in range(30)} == {200}


@looped
async def test_the_activator_takes_over_while_no_replica_lives(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        activator, replica = await here.upstream(), await here.upstream()
        away = service(activator=("127.0.0.1", activator.port))
        await here.publish(away)
        assert (await here.call("/default/digits/"))[0] == 200
        assert len(activator.seen) == 1
        with_one = replace(away, versions=(VersionRoute(1, (replica.backend(),)),))
        await here.publish(with_one)

        async def direct() -> bool:
            before = len(replica.seen)
            assert (await here.call("/default/digits/"))[0] == 200
            return len(replica.seen) > before

        await until(direct, 1.0)
        held = len(activator.seen)
        for _ in range(20):
            await here.call("/default/digits/")
        assert len(activator.seen) == held
        await replica.die()
        assert {(await here.call("/default/digits/"))[0] for _ in range(10)} == {200}
        assert len(activator.seen) > held


@looped
async def test_a_late_answer_is_an_error_that_is_counted_and_a_stream_is_not(tmp_path: Path) -> None:
    async with world(tmp_path) as here:

        async def late(path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
            await asyncio.sleep(30)
            return 200, b"{}"

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(8):
                    writer.write(b"2\r\nab\r\n")
                    await asyncio.sleep(0.2)
                writer.write(b"0\r\n\r\n")
                await writer.drain()
            writer.close()

        slow = await here.upstream(late)
        flow = Upstream()
        here.upstreams.append(flow)
        flow.server = await asyncio.start_server(stream, "127.0.0.1", 0)
        flow.port = flow.server.sockets[0].getsockname()[1]
        await here.publish(service(slow, timeout=0.5, retries=1), service(flow, name="flow", timeout=0.5))
        (status, _, body), (streamed, _, text) = await asyncio.gather(
            here.call("/default/digits/"), here.call("/default/flow/")
        )
        assert (status, json.loads(body)["error"]) == (504, "the service did not answer in time")
        assert (streamed, text.count(b"ab")) == (200, 8)
        counts = (await here.publisher.counts())[("default", "digits", 1)]
        assert counts.errors >= 1


@looped
async def test_envoy_is_adopted_restarted_and_replaced_with_nothing_lost(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up = await here.upstream()
        await here.publish(service(up))
        first = here.publisher.process.running
        await here.publisher.close()  # the server dies, Envoy lives
        assert (await here.call("/default/digits/"))[0] == 200

        told: list[str] = []

        async def tell(words: str) -> None:
            told.append(words)

        again = Publisher(tmp_path / "gateway", concurrency=1, restarted=tell)
        await again.start()
        try:
            assert again.process.running == first
            failed = 0
            done = False

            async def load() -> None:
                nonlocal failed
                while not done:
                    try:
                        failed += (await here.call("/default/digits/"))[0] != 200
                    except (OSError, EOFError):
                        failed += 1

            loads = [asyncio.create_task(load()) for _ in range(4)]
            await again.process.upgrade(Admin(tmp_path / "gateway"))
            assert stat.S_IMODE((tmp_path / "gateway/admin.sock").stat().st_mode) == 0o600
            await asyncio.sleep(0.3)
            done = True
            await asyncio.gather(*loads)
            assert failed == 0
            second = again.process.running
            assert first is not None
            assert second is not None
            assert (second.epoch, second.pid != first.pid) == (1, True)
            os.kill(second.pid, signal.SIGKILL)
            await until(lambda: is_(lambda: len(told) == 1))
            await again.process.ensure(Admin(tmp_path / "gateway"))
            assert len(found(tmp_path / "gateway" / "bootstrap.json")) == 1
            assert (await here.call("/default/digits/"))[0] == 200
        finally:
            await again.stop(grace=1.0)
            await again.close()
        assert found(tmp_path / "gateway" / "bootstrap.json") == []
        with pytest.raises((OSError, EOFError)):
            await here.call("/default/digits/")


@looped
async def test_what_a_candidate_refuses_is_counted_against_it_and_brings_it_down(tmp_path: Path) -> None:
    """The real counters, by way of the product's publisher, before the rollout's own planner: 400 is bad, 429 says busy."""
    statuses = iter([429, *[400] * 199])

    async def refuses(_path: str, _headers: object) -> tuple[int, bytes]:
        return next(statuses), b"{}"

    async with world(tmp_path) as here:
        stable, candidate = await here.upstream(), await here.upstream(refuses)
        versions = (VersionRoute(1, (stable.backend(),), 5000), VersionRoute(2, (candidate.backend(),), 5000))
        await here.publish(service(versions=versions, retries=0))
        memory = analysis.begin(analysis.Look(0.0, Counts(), Counts()))
        for second in range(1, 9):
            answers = [(await here.call("/default/digits/x"))[1]["x-penstock-version"] for _ in range(12)]
            assert set(answers) <= {"1", "2"}
            counts = await here.publisher.counts()
            one, two = (counts.get(("default", "digits", number), Counts()) for number in (1, 2))
            memory = analysis.remember(memory, Analysis(), analysis.Look(float(second), two, one))
        assert (one.refused, one.errors) == (0, 0)
        assert (two.refused, two.errors) == (two.requests - 1, 0)
        found = analysis.tests(memory, Analysis(p95_ratio=None, p50_ratio=None), live=True, shadow=False)
        assert [test.verdict for test in found] == ["fail"], found[0].words


@looped
async def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        up = await here.upstream()
        await here.publish(service(up))
        was, here.base = here.base, replace(here.base, host="localhost")
        with pytest.raises(InvalidInput, match="cannot be as it is wanted"):
            await here.publish(service(up))
        here.base = was
        await here.publish(service(up), service(up, name="wrong", timeout=0))
        assert [problem.path for problem in here.publisher.left_out] == ["services.default/wrong.timeout"]
        with pytest.raises(Unavailable, match="does not answer"):
            await Admin(tmp_path).ask("/ready")
        assert (await here.call("/default/digits/"))[0] == 200


@looped
async def test_a_cluster_that_left_the_routes_stays_as_long_as_a_request_may_last(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        one, two = await here.upstream(), await here.upstream()
        admin = Admin(tmp_path / "gateway")
        old = service(one, timeout=0.3)
        new = replace(old, versions=(VersionRoute(2, (two.backend(),)),))
        await here.publish(old)
        await here.publish(new)
        assert "default/digits/1" in await admin.ask("/clusters")
        await asyncio.sleep(1.4)
        await here.publish(new)
        assert "default/digits/1" not in await admin.ask("/clusters")
        assert not (tmp_path / "gateway/eds/default.digits.1.json").exists()


@looped
async def test_where_few_files_can_be_watched_endpoints_lie_in_their_clusters(tmp_path: Path) -> None:
    """Each watched file costs Envoy an inotify instance, and it aborts without one."""
    async with world(tmp_path) as here:
        assert here.publisher.watches > 0
        here.publisher.watches = 2
        one, two = await here.upstream(), await here.upstream()
        others = [service(one, name=f"s{number}") for number in range(4)]
        await here.publish(*others, service(one))
        eds = tmp_path / "gateway/eds"
        assert {path.name for path in eds.iterdir()} == {"default.digits.1.json", "default.s0.1.json"}
        done, answers = False, Counter[int]()

        async def load() -> None:
            while not done:
                answers[(await here.call("/default/s3/"))[0]] += 1

        loads = [asyncio.create_task(load()) for _ in range(4)]
        for number in range(6):
            there = [two] if number % 2 else [one, two]
            await here.publish(*others[:3], service(*there, name="s3"), service(one))
        done = True
        await asyncio.gather(*loads)
        assert list(answers) == [200]
        assert two.seen
        here.publisher.watches = 0
        await here.publish(*others, service(one))
        assert list(eds.iterdir()) == []
        assert (await here.call("/default/digits/"))[0] == 200
