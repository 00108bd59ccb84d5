"""Whatever is sent, the answer is a clear 4xx with every error and its path, of bounded size; never a 500."""

from __future__ import annotations

import asyncio
import json
import logging
import tracemalloc
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api import inputs
from penstock.api.answers import Refused, problem
from penstock.base.errors import InvalidInput, Problem, TooLarge
from tests.api.rig import Answered, Rig, ThingQuery, call
from tests.api.test_doors import run

THINGS = "/api/v1/projects/p1/things"


async def post(rig: Rig, body: bytes, **headers: str) -> Answered:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await call(rig.app, "POST", THINGS, token=rig.tokens["ann"], body=body, headers=named)


def test_all_errors_come_at_once_with_their_paths(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        answer = await post(rig, b'{"count": -1, "tags": ["a", 5], "other": 1}')
        assert answer.status == 422
        assert answer.headers["content-type"] == "application/problem+json"
        found = answer.json()
        assert {d["path"] for d in found["details"]} == {"body.name", "body.count", "body.tags[1]", "body.other"}
        assert found["code"] == "InvalidInput" and found["hint"]
        listed = await call(rig.app, "GET", "/api/v1/things?limit=0&deep=maybe&odd=1&limit=2", token=rig.tokens["ann"])
        paths = sorted(d["path"] for d in listed.json()["details"])
        assert paths == ["query.deep", "query.limit", "query.limit", "query.odd"]
        assert rig.samples.done == []

    run(tmp_path, test)


def test_a_thousand_unknown_fields_give_a_short_answer(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        body = json.dumps({"name": "x"} | {f"field{'y' * 400}{n}": n for n in range(1000)}).encode()
        answer = await post(rig, body)
        assert answer.status == 422 and len(answer.body) < 20_000
        assert "950 more" in answer.json()["details"][-1]["message"]
        query = "&".join(f"a{n}=1" for n in range(150))
        listed = await call(rig.app, "GET", f"/api/v1/things?{query}", token=rig.tokens["ann"])
        assert listed.status == 422 and len(listed.body) < 30_000

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"name": "\xff"}', 422),
        (b'{"name": "\\ud800"}', 422),
        (b'{"name": "x", "deep": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", 422),
        (b"[" * 100_000, 422),
        (b'{"name": "x", "count": ' + b"9" * 5000 + b"}", 422),
        (b'{"name": "x", "count": 1e400}', 422),
        (b'{"name": "x", "count": NaN}', 422),
        (b'{"name": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_broken_bodies(tmp_path: Path, body: bytes, status: int) -> None:
    async def test(rig: Rig) -> None:
        answer = await post(rig, body)
        assert answer.status == status and len(answer.body) < 2000
        assert rig.samples.done == []

    run(tmp_path, test)


def test_only_plain_json_is_taken(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        body = b'{"name": "x"}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"):
            assert (await post(rig, body, content_type=kind)).status == 415
        assert (await post(rig, body, content_encoding="gzip")).status == 415
        assert (await post(rig, body, content_type="application/json; charset=utf-8")).status == 201
        assert (await post(rig, body, content_length="99999999")).status == 413

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/projects/p1/things/%ff", 400),
        ("/api/v1/projects/p1/things/%00", 400),
        ("/api/v1/projects/p1/things/\u00e9".encode().decode("latin-1"), 400),
        ("/api/v1/projects/p1/things/" + "x" * 5000, 414),
        ("/api/v1/projects/p1/things/there/", 404),
        ("/api/v1/projects/p1//things", 404),
        ("/api/v1/projects/p1/things/..", 404),
        ("/api/v1/projects/p1/things/%2e%2e%2fthere", 404),
        ("/api/v1/projects/p1/things/%252e%252e", 404),
        ("/api/v1/projects/../projects/p1/things/there", 404),
        ("/API/v1/whoami", 404),
        ("/api/v1/things?q=%ff", 400),
        ("/api/v1/things?phase=%00", 422),
        ("/api/v1/things?" + "a" * 20_000, 414),
        ("/api/v1/whoami?x=1", 422),
        ("/api/v1/users?cursor=" + "x" * 200, 422),
    ],
)
def test_broken_paths_and_queries(tmp_path: Path, path: str, status: int) -> None:
    async def test(rig: Rig) -> None:
        target, _, query = path.partition("?")
        answer = await call(rig.app, "GET", target + (f"?{query}" if query else ""), token=rig.tokens["admin"])
        assert answer.status == status, answer.body

    run(tmp_path, test)


def test_methods_head_and_options(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        token = rig.tokens["ann"]
        wrong = await call(rig.app, "DELETE", THINGS, token=token)
        assert (wrong.status, wrong.headers["allow"]) == (405, "OPTIONS, POST")
        options = await call(rig.app, "OPTIONS", "/api/v1/things", token=token)
        assert (options.status, options.headers["allow"], options.body) == (204, "GET, HEAD, OPTIONS", b"")
        got = await call(rig.app, "GET", "/api/v1/things", token=token)
        head = await call(rig.app, "HEAD", "/api/v1/things", token=token)
        assert (head.status, head.body) == (200, b"") and head.headers == got.headers
        stream = await call(rig.app, "HEAD", f"{THINGS}/there/ticks", token=token)
        assert (stream.status, stream.body) == (200, b"")
        socket = await call(rig.app, "GET", f"{THINGS}/there/echo", token=token)
        assert socket.status == 426

    run(tmp_path, test)


def test_an_internal_error_tells_an_incident_and_logs_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(rig: Rig) -> None:
        with caplog.at_level(logging.DEBUG):
            answer = await call(rig.app, "GET", f"{THINGS}/boom", token=rig.tokens["ann"])
        assert answer.status == 500 and answer.headers["content-type"] == "application/problem+json"
        assert b"secret" not in answer.body and b"Traceback" not in answer.body
        incident = answer.json()["message"].rpartition(" ")[2]
        assert incident in caplog.text and "RuntimeError" in caplog.text
        assert rig.tokens["ann"] not in caplog.text

    run(tmp_path, test)


def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "GRACE_S", 0.05)

    async def test() -> None:
        sent = 0

        async def drip() -> dict[str, object]:
            nonlocal sent
            sent += 1
            if sent > 3:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b"x", "more_body": True}

        with pytest.raises(Refused) as caught:
            await inputs.whole_body(drip, 1000)
        assert caught.value.status == 408

    asyncio.run(test())


def test_an_endless_body_is_cut_off_at_its_bound() -> None:
    async def test() -> None:
        async def flood() -> dict[str, object]:
            return {"type": "http.request", "body": b"x" * 65536, "more_body": True}

        tracemalloc.start()
        with pytest.raises(TooLarge):
            await inputs.whole_body(flood, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 << 20

    asyncio.run(test())


@given(st.binary(max_size=200))
def test_any_query_string_is_read_or_refused(raw: bytes) -> None:
    problems: list[Problem] = []
    try:
        value = inputs.Query(ThingQuery).read(raw, problems)
    except Refused:
        return  # in HTTP's own terms: not UTF-8, too long
    assert problems or isinstance(value, ThingQuery)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes, str]]:
    """What Hypothesis thought of, played against one application: starting one each time would be slow."""
    found: list[tuple[str, bytes, str]] = []

    @given(
        _json | st.fixed_dictionaries({"name": _json, "count": _json, "tags": _json}), st.text(max_size=30), st.text()
    )
    def collect(body: object, segment: str, query: str) -> None:
        path = "/api/v1/projects/p1/things/" + quote(segment.encode("utf-8", "surrogatepass"), safe="")
        found.append((path, json.dumps(body).encode(), "?q=" + quote(query.encode("utf-8", "surrogatepass"))))

    collect()
    return found


def test_fuzzed_requests_never_break_the_application(tmp_path: Path, fuzzed: list[tuple[str, bytes, str]]) -> None:
    async def test(rig: Rig) -> None:
        for path, body, query in fuzzed:
            for method, target in (("GET", path), ("GET", "/api/v1/things" + query), ("PUT", path + "/blob")):
                answer = await call(rig.app, method, target, token=rig.tokens["ann"], body=body)
                assert answer.status < 500, (method, target)
            made = await post(rig, body)
            assert made.status in (201, 422), body
            assert len(made.body) < 50_000

    run(tmp_path, test)


def test_a_refusal_may_quote_what_utf8_cannot_write() -> None:
    """YAML lets half a surrogate pair through: a refusal that names it is still JSON."""
    body = problem(InvalidInput("no", details=[Problem("\ud800", "is not a field here")])).body
    assert json.loads(body)["details"][0]["path"] == "\ud800"
