"""The document says what is served: Schemathesis plays it against the server."""

from __future__ import annotations

import http.client
import json
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

from tests.api.rig import Rig, call, served
from tests.api.test_doors import run

EXAMPLES = 15  # per operation and mode; `make soak` raises it by the profile
# Streams do not end by themselves; a restore puts everything in the place of everything.
_LEFT_OUT = {
    "get_events_watch",
    "post_restore",
    "get_projects_project_things_name_text",
    "get_projects_project_things_name_ticks",
}


def test_every_operation_is_described(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        answer = await call(rig.app, "GET", "/api/v1/openapi.json", token=rig.tokens["eve"])
        found = answer.json()
        assert found["openapi"] == "3.1.0"
        described = {(method.upper(), path) for path, item in found["paths"].items() for method in item}
        served_ones = {(e.method, e.path) for e in rig.app.endpoints if e.kind != "websocket"}
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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, int]]:
    with served(tmp_path_factory.mktemp("schemathesis")) as (http_server, rig):
        yield http_server.url, rig.tokens["admin"], http_server.port


@pytest.fixture(scope="module")
def document(server: tuple[str, str, int]) -> dict[str, Any]:
    _, token, port = server
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/api/v1/openapi.json", headers={"Authorization": f"Bearer {token}"})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
    return found


load_all_checks()
# ignored_auth takes the good token away that the other checks need; test_doors.py tries every route without.
_CHECKS: list[Any] = [check for check in CHECKS.get_all() if check.__name__ != "ignored_auth"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_server_does_what_the_document_says(
    server: tuple[str, str, int], document: dict[str, Any], mode: GenerationMode
) -> None:
    url, token, _ = server
    schema = schemathesis.openapi.from_dict(document).exclude(operation_id=sorted(_LEFT_OUT))
    schema.config.update(base_url=url)
    failures: list[str] = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        failures += play(result.ok(), mode, token)
    assert not failures, "\n\n".join(failures)


def play(operation: Any, mode: GenerationMode, token: str) -> list[str]:
    """What is wrong with one operation, in words."""
    # Some rules of bodies no schema can say (a Unix user exists, bytes have a hash).
    checks = [c for c in _CHECKS if not operation.body or c.__name__ != "positive_data_acceptance"]

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
