"""Who gets in: every route against every kind of credential, every method against foreign hosts and pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.base.routes import Call, Endpoint
from penstock.tenancy.plan import VERBS, Scope
from tests.api.rig import Answered, Rig, call, rigged

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
SHA = "0" * 64


def run(tmp_path: Path, test: Callable[[Rig], Awaitable[None]], **settings: Any) -> None:
    async def inside() -> None:
        async with rigged(tmp_path, **settings) as rig:
            await test(rig)

    asyncio.run(inside())


def address(endpoint: Endpoint, project: str = "p1") -> str:
    path = endpoint.path.replace("{project}", project).replace("{sha256}", SHA)
    return re.sub(r"{\w+}", "there", path)


async def knock(rig: Rig, method: str, path: str, token: str | None, **more: Any) -> Answered:
    return await call(rig.app, method, path, token=token, until=1, **more)


def test_every_route_refuses_everything_but_a_good_token(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        bad = {
            "none": None,
            "malformed": "pst_nonsense",
            "empty": " ",
            "expired": rig.tokens["expired"],
            "revoked": rig.tokens["revoked"],
            "wrong secret": rig.tokens["ann"][:-4] + "aaaa",
            "session as bearer": "pss_" + rig.tokens["ann"][4:],
        }
        before = await rig.store.read(lambda conn: conn.exec_driver_sql("select count(*) from events").scalar())
        for endpoint in rig.app.endpoints():
            for name, token in bad.items():
                answer = await knock(rig, endpoint.method, address(endpoint), token)
                wanted = 200 if endpoint.public else 401
                assert answer.status == wanted, (endpoint.method, endpoint.path, name, answer.status)
        assert [e.path for e in rig.app.endpoints() if e.public] == ["/healthz"]
        after = await rig.store.read(lambda conn: conn.exec_driver_sql("select count(*) from events").scalar())
        assert before == after and rig.samples.done == []

    run(tmp_path, test)


def test_another_projects_token_finds_nothing(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for endpoint in rig.app.endpoints():
            if endpoint.public or "{project}" not in endpoint.path:
                continue
            mine = await knock(rig, endpoint.method, address(endpoint, "p1"), rig.tokens["bob"], body=b"{}")
            nowhere = await knock(rig, endpoint.method, address(endpoint, "p9"), rig.tokens["bob"], body=b"{}")
            assert mine.status == nowhere.status == (426 if endpoint.kind == "websocket" else 404), endpoint.path
            assert mine.body.replace(b"p1", b"p9") == nowhere.body  # not yours looks like not there
        other = await call(rig.app, "GET", "/api/v1/things?project=p1", token=rig.tokens["bob"])
        assert other.status == 404
        assert rig.samples.done == []

    run(tmp_path, test)


def test_what_a_viewer_and_a_stranger_may_not_do(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for endpoint in rig.app.endpoints():
            rule = VERBS[endpoint.verb]
            if endpoint.kind == "websocket" or endpoint.public:
                continue
            viewer = await knock(rig, endpoint.method, address(endpoint), rig.tokens["vic"], body=b"{}")
            if rule.writes or rule.scope is Scope.FLEET or rule.needs != "viewer":
                assert viewer.status == 403, (endpoint.method, endpoint.path, viewer.status)
            nobody = await knock(rig, endpoint.method, address(endpoint), rig.tokens["eve"], body=b"{}")
            if rule.scope is not Scope.ANYONE:
                assert nobody.status in (403, 404), (endpoint.method, endpoint.path, nobody.status)
        assert rig.samples.done == []

    run(tmp_path, test)


def test_unknown_paths_and_pages_are_closed_too(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for path in (
            "/",
            "/form",
            "/nothing",
            "/api/v1/nothing",
            "/api",
            "//",
            "/static",
            "/healthz/x",
            "/%2e%2e/login",
        ):
            for method in METHODS:
                assert (await call(rig.app, method, path)).status == 401, (method, path)
        assert (await call(rig.app, "GET", "/login")).body == b"hello stranger"
        assert (await call(rig.app, "GET", "/static/a/b.css")).status == 200
        assert (await call(rig.app, "GET", "/", token=rig.tokens["ann"])).body == b"hello ann"
        page = await call(rig.app, "GET", "/jobs/a%20b", headers={"accept": "text/html"})
        assert (page.status, page.headers["location"]) == (303, "/login?next=%2Fjobs%2Fa%2520b")
        snippet = await call(rig.app, "GET", "/", headers={"hx-request": "true"})
        assert (snippet.status, snippet.headers["hx-redirect"]) == (401, "/login")
        data = await call(rig.app, "GET", "/api/v1/whoami", headers={"accept": "text/html"})
        assert data.status == 401 and data.headers["www-authenticate"].startswith("Bearer")

    run(tmp_path, test)


FOREIGN: list[dict[str, str]] = [
    {"host": "attacker.example"},
    {"host": "attacker.example:7070"},
    {"host": "localhost.attacker.example"},
    {"host": "127.0.0.1.attacker.example"},
    {"host": "localhost@attacker.example"},
    {"host": "192.0.2.7"},
    {"host": ""},
    {"host": "localhost:7070:1"},
    {"host": "loc\u00e4lhost"},
    {"origin": "http://attacker.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:8888"},  # another port of this machine: perhaps a stranger's notebook
    {"origin": "file://"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "odd"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_foreign_hosts_and_pages_are_refused_everywhere(tmp_path: Path, headers: dict[str, str]) -> None:
    async def test(rig: Rig) -> None:
        things = "/api/v1/projects/p1/things"
        paths = (
            "/",
            "/login",
            "/healthz",
            "/metrics",
            "/nothing",
            "/static/x",
            f"{things}/there/ticks",
            f"{things}/there/text",
        )
        for path in paths:
            for method in METHODS:
                answer = await call(rig.app, method, path, token=rig.tokens["admin"], headers=headers)
                assert answer.status == 403, (method, path, headers)
        made = await call(rig.app, "POST", things, token=rig.tokens["ann"], headers=headers, body=b'{"name":"x"}')
        assert made.status == 403 and rig.samples.done == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LOCALHOST:1"},
        {"host": "[::1]:7070"},
        {"host": "127.0.0.1:9999", "origin": "http://127.0.0.1:9999", "sec-fetch-site": "same-origin"},
        {"host": "gpu.example.org", "origin": "https://gpu.example.org"},
        {"host": "gpu.example.org.:7070"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
    ],
    ids=str,
)
def test_own_names_are_let_in(tmp_path: Path, headers: dict[str, str]) -> None:
    async def test(rig: Rig) -> None:
        answer = await call(rig.app, "GET", "/api/v1/whoami", token=rig.tokens["ann"], headers=headers)
        assert answer.status == 200

    run(tmp_path, test, allowed_hosts=("GPU.example.org",))


def test_the_address_a_connection_came_to_is_a_good_host_on_a_wildcard(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        answer = await call(rig.app, "GET", "/healthz", headers={"host": "0.0.0.0:7070"})
        assert answer.status == 403
        assert (await call(rig.app, "GET", "/healthz", headers={"host": "127.0.0.1"})).status == 200

    run(tmp_path, test, host="0.0.0.0", insecure=True)


def test_every_answer_carries_the_security_headers(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for path, token in (
            ("/", None),
            ("/", "admin"),
            ("/login", None),
            ("/api/v1/whoami", "ann"),
            ("/api/v1/nothing", "ann"),
            ("/api/v1/projects/p1/things/boom", "ann"),
            ("/api/v1/projects/p1/things/there/ticks", "ann"),
            ("/metrics", "admin"),
        ):
            answer = await call(rig.app, "GET", path, token=rig.tokens.get(token or ""), until=1)
            headers = answer.headers
            policy = headers["content-security-policy"]
            assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "same-origin" and headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in headers

    run(tmp_path, test)


def test_a_header_that_decides_is_not_given_twice(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        sent: list[Any] = []
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/healthz",
            "raw_path": b"/healthz",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"host", b"attacker.example")],
            "server": ("127.0.0.1", 1),
        }

        async def send(message: Any) -> None:
            sent.append(message)

        await rig.app(scope, asyncio.Queue[Any]().get, send)
        assert sent[0]["status"] == 403

    run(tmp_path, test)


def test_late_endpoints_come_with_the_first_request_that_no_early_one_answers(tmp_path: Path) -> None:
    made: list[list[str]] = []

    async def handler(_call: Call) -> dict[str, str]:
        return {"came": "late"}

    def late(*paths: str) -> Callable[[], list[Endpoint]]:
        def come() -> list[Endpoint]:
            made.append(list(paths))
            return [Endpoint("GET", path, "jobs.read", handler, "Late") for path in paths]

        return come

    async def test(rig: Rig) -> None:
        token = rig.tokens["ann"]
        early = address(rig.app.endpoints()[1]), rig.app.endpoints()[1].path
        rig.app.late = late("/api/v1/late")
        await knock(rig, "GET", early[0], token)
        await knock(rig, "GET", "/api/v1/late", None)  # nobody's question brings nothing
        assert made == []
        assert (await knock(rig, "GET", "/api/v1/late", token)).json() == {"came": "late"}
        assert (await knock(rig, "GET", "/api/v1/later", token)).status == 404
        assert made == [["/api/v1/late"]]
        rig.app.late = late(early[1])
        with pytest.raises(ValueError, match="paths that no early one has"):
            rig.app.endpoints()

    run(tmp_path, test)
