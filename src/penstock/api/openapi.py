"""OpenAPI 3.1, made from the endpoints and their models: what is served is what is described."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic.json_schema import JsonSchemaMode, models_json_schema
from pydantic_core import to_json

from penstock.base.ids import NAME_RULE
from penstock.base.routes import Endpoint

_REF = "#/components/schemas/{model}"
_PROBLEM = {
    "type": "object",
    "description": "What is wrong, and what to do about it.",
    "required": ["code", "message", "hint", "details"],
    "properties": {
        "code": {"type": "string", "description": "PascalCase, stable: match on this."},
        "message": {"type": "string"},
        "hint": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["path", "message"],
                "properties": {
                    "path": {"type": "string"},
                    "message": {"type": "string"},
                    "line": {"type": ["integer", "null"]},
                },
            },
        },
    },
}
# Path segments whose form is known; all others are names.
_SEGMENTS: dict[str, dict[str, Any]] = {
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "id": {"type": "string", "pattern": "^[0-9A-HJKMNP-TV-Z]{26}$"},
}
_NO_NUL = "^[^\\x00]*$"
_NAME = {"type": "string", "pattern": f"^{NAME_RULE.pattern}$", "minLength": 1, "maxLength": 63}
_WORDS = {
    400: "Malformed",
    401: "No valid token",
    403: "Not allowed, or a foreign page",
    404: "Not there, or not yours",
    405: "No such method",
    408: "Too slow",
    409: "Conflicts with what is there",
    413: "Too large",
    414: "Too long a path or query",
    415: "Not JSON",
    422: "Invalid",
    429: "Busy",
    500: "Internal error",
    502: "The engine failed",
    503: "Unavailable",
    507: "Out of space",
}
_ALWAYS = (400, 401, 403, 404, 405, 414, 422, 429, 500, 502, 503, 507)
_WITH_BODY = (408, 409, 413, 415)
_MEDIA = {
    "sse": "text/event-stream",
    "text": "text/plain",
    "bytes": "application/octet-stream",
}


def render(endpoints: Sequence[Endpoint], version: str) -> bytes:
    return to_json(document(endpoints, version), indent=1)


def document(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """WebSockets are no part of OpenAPI and are left out; their paths are in docs/."""
    served = [endpoint for endpoint in endpoints if endpoint.kind != "websocket"]
    refs, schemas = _schemas(served)
    paths: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for endpoint in served:
        operation = _operation(endpoint, refs, _operation_id(endpoint, taken))
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


_Key = tuple[Any, JsonSchemaMode]  # a model, and whether it is read or written


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[dict[_Key, dict[str, Any]], dict[str, Any]]:
    wanted: dict[_Key, None] = {}
    for endpoint in endpoints:
        if endpoint.body is not None:
            wanted[endpoint.body, "validation"] = None
        if endpoint.query is not None:
            wanted[endpoint.query, "validation"] = None
        if endpoint.answer is not None:
            wanted[endpoint.answer, "serialization"] = None
    found, definitions = models_json_schema(list(wanted), ref_template=_REF)
    refs: dict[_Key, dict[str, Any]] = {**found}
    return refs, definitions.get("$defs", {})


def _operation_id(endpoint: Endpoint, taken: set[str]) -> str:
    """``GET /api/v1/projects/{project}/jobs`` -> ``get_projects_project_jobs``."""
    path = endpoint.path.removeprefix("/api/v1")
    name = f"{endpoint.method.lower()}_{re.sub('[^a-z0-9]+', '_', path.lower()).strip('_')}"
    assert name not in taken, name
    taken.add(name)
    return name


def _operation(endpoint: Endpoint, refs: dict[_Key, dict[str, Any]], operation_id: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": endpoint.summary,
        "tags": [endpoint.verb.partition(".")[0]],
        "x-penstock-verb": endpoint.verb,
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint)],
        "responses": _responses(endpoint, refs),
    }
    if endpoint.public:
        operation["security"] = []
    if endpoint.takes_bytes:
        content: dict[str, Any] = {"*/*": {"schema": {}}}
        operation["requestBody"] = {"required": True, "content": content}
    elif endpoint.body is not None:
        required = any(field.is_required() for field in endpoint.body.model_fields.values())
        schema = {"application/json": {"schema": refs[endpoint.body, "validation"]}}
        operation["requestBody"] = {"required": required, "content": schema}
    return operation


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", endpoint.path)
    return [{"name": n, "in": "path", "required": True, "schema": _SEGMENTS.get(n, _NAME)} for n in names]


def _query_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    if endpoint.query is None:
        return []
    schema = endpoint.query.model_json_schema(ref_template=_REF)
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _given(form)}
        for name, form in schema.get("properties", {}).items()
    ]


def _given(form: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is given is not null: that is what leaving it out means."""
    choices = [choice for choice in form.get("anyOf", ()) if choice != {"type": "null"}]
    if choices:
        form = {key: value for key, value in form.items() if key not in ("anyOf", "default")}
        form |= choices[0] if len(choices) == 1 else {"anyOf": choices}
    if form.get("type") == "array":
        return form | {"items": _given(form.get("items", {}))}
    return {"pattern": _NO_NUL} | form if form.get("type") == "string" and "enum" not in form else form


def _responses(endpoint: Endpoint, refs: dict[_Key, dict[str, Any]]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    statuses: tuple[int, ...] = _ALWAYS + (_WITH_BODY if endpoint.body or endpoint.takes_bytes else ())
    if endpoint.method != "GET" and 409 not in statuses:
        statuses += (409,)
    answers: dict[str, Any] = {str(endpoint.status): _success(endpoint, refs)}
    for status in sorted(statuses):
        answers[str(status)] = {"description": _WORDS[status], "content": problem}
    return answers


def _success(endpoint: Endpoint, refs: dict[_Key, dict[str, Any]]) -> dict[str, Any]:
    if endpoint.status == 204 or endpoint.method == "HEAD":
        return {"description": "Done"}
    if endpoint.kind in _MEDIA:
        content: dict[str, Any] = {"*/*" if endpoint.kind == "bytes" else _MEDIA[endpoint.kind]: {}}
        return {"description": "OK", "content": content}
    schema: dict[str, Any] = {}
    if endpoint.answer is not None:
        mode: Literal["serialization"] = "serialization"
        schema = refs[endpoint.answer, mode]
    return {"description": "OK", "content": {"application/json": {"schema": schema}}}
