"""The document says what is served: Schemathesis plays it against the server."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok

from tests.api.rig import Rig, call
from tests.api.test_doors import run
from tests.system.house import House, house

EXAMPLES = 6  # per operation and mode
# A watch does not end by itself; a restore puts everything in the place of everything.
_LEFT_OUT = ("get_events_watch", "post_restore")
# Their parameters have words that the schema calls strings: phases, times, ranks.
_FREE = (
    "GET /api/v1/jobs",
    "GET /api/v1/projects/{project}/jobs/{name}/logs",
    "GET /api/v1/cost/report",
    "GET /api/v1/cost/idle",
    "GET /api/v1/goodput",
    "GET /api/v1/projects/{project}/jobs/{name}/diagnosis",
)


def test_every_operation_is_described(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        answer = await call(rig.app, "GET", "/api/v1/openapi.json", token=rig.tokens["eve"])
        found = answer.json()
        assert found["openapi"] == "3.1.0"
        described = {(method.upper(), path) for path, item in found["paths"].items() for method in item}
        served_ones = {(e.method, e.path) for e in rig.app.endpoints() if e.kind != "websocket"}
        assert described == served_ones
        text = json.dumps(found)
        for ref in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
            assert ref.split("/")[-1] in found["components"]["schemas"], ref
        operations = [operation for item in found["paths"].values() for operation in item.values()]
        assert [o["operationId"] for o in operations if o.get("security") == []] == ["get_healthz"]
        query = found["paths"]["/api/v1/things"]["get"]["parameters"]
        assert {key: query[1][key] for key in ("name", "in", "required")} == {
            "name": "limit",
            "in": "query",
            "required": False,
        }
        assert query[0]["schema"] | {"pattern": ""} == {
            "maxLength": 63,
            "title": "Project",
            "type": "string",
            "pattern": "",
        }

    run(tmp_path, test)


@pytest.fixture(scope="module")
def whole() -> Iterator[House]:
    with house() as running:
        yield running


@pytest.fixture(scope="module")
def document(whole: House) -> dict[str, Any]:
    found: dict[str, Any] = whole.get("openapi.json")
    return found


load_all_checks()
# ignored_auth takes the good token away that the other checks need; test_doors.py tries every route without.
_CHECKS: list[Any] = [check for check in CHECKS.get_all() if check.__name__ != "ignored_auth"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_server_does_what_the_document_says(whole: House, document: dict[str, Any], mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(document).exclude(operation_id=list(_LEFT_OUT))
    schema.config.update(base_url=whole.url)
    rejected = schema.config.checks.negative_data_rejection
    rejected.expected_statuses = [*rejected.expected_statuses, "413"]  # a body may be too large, whatever is in it
    failures: list[str] = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        failures += play(result.ok(), mode, whole.token)
    assert "incident" not in whole.log()
    assert not failures, "\n\n".join(failures)


def play(operation: Any, mode: GenerationMode, token: str) -> list[str]:
    """What is wrong with one operation, in words."""
    # Some rules of bodies no schema can say (a Unix user exists, bytes have a hash).
    free = bool(operation.body) or operation.label in _FREE
    unfit = {"positive_data_acceptance"} if free else set()
    if any(one.definition["schema"].get("type") == "array" for one in operation.query):
        unfit.add("negative_data_rejection")  # a query string has no types: `name=true` is a list of one string
    checks = [c for c in _CHECKS if c.__name__ not in unfit]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {token}"}, checks=checks)

    try:
        one()
    except Unsatisfiable:
        return []  # nothing can be wrong with a request that takes nothing
    except (BaseExceptionGroup, AssertionError) as exc:
        told = exc.exceptions if isinstance(exc, BaseExceptionGroup) else [exc]
        return [f"{operation.label}: {failure}" for failure in told]
    return []


def test_the_whole_server_opens_nothing_without_a_good_token(whole: House, document: dict[str, Any]) -> None:
    """As in test_doors.py, over every room's routes and the WebSockets of jobs, on the real server."""
    port = int(whole.url.rpartition(":")[2])
    expired = whole.client.transport.request(
        "POST", "/api/v1/tokens", body=b'{"expires_in": "0.001s"}', headers={"content-type": "application/json"}
    ).json()["token"]
    job = "/api/v1/projects/default/jobs/none"
    routes = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    routes += [
        ("GET", f"{job}/exec"),
        ("GET", f"{job}/forward"),
        ("GET", "/"),
        ("GET", "/nodes"),
        ("POST", "/jobs/a/b/cancel"),
    ]
    assert len(routes) > 45
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        for method, path in routes:
            for token in ("", "pst_nonsense", expired, whole.token[:-3] + "aaa"):
                address = re.sub(r"{\w+}", "default", path)
                connection.request(method, address, headers={"Authorization": f"Bearer {token}"} if token else {})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == (200 if path == "/healthz" else 401), (method, path, token)
            connection.request(method, address, headers={"Host": "attacker.example", "Authorization": whole.token})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 403, (method, path)
    assert whole.token not in whole.log() and expired not in whole.log()
