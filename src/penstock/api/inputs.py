"""Query strings and bodies into models: bounded in size and time, every error at once, each with its path."""

from __future__ import annotations

import asyncio
import time
import types
import typing
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError

from penstock.api.answers import Receive, Refused
from penstock.base.errors import InvalidInput, Problem, TooLarge
from penstock.base.text import one_line

MOST_PROBLEMS = 50  # told of at once; of the rest only the number
GRACE_S = 10.0  # a body may take this long in any case
LEAST_RATE = 16 * 1024  # bytes a second that a body must come with after that
_QUERY_BYTES = 16 * 1024
_PARAMETERS = 200


class Query:
    """Reads query strings for one model (None: an endpoint that takes no parameters)."""

    def __init__(self, model: type[BaseModel] | None) -> None:
        self.model = model
        self._many: dict[str, bool] = {}
        for name, field in (model.model_fields if model else {}).items():
            self._many[field.alias or name] = _holds_many(field.annotation)
        self._empty = model() if model and not any(f.is_required() for f in model.model_fields.values()) else None

    def read(self, raw: bytes, problems: list[Problem]) -> Any:
        """The model's value; what is wrong is appended to ``problems``."""
        if not raw:
            if self.model is None or self._empty is not None:
                return self._empty
            values: dict[str, Any] = {}
        else:
            values = self._collect(raw, problems)
        if self.model is None:
            return None
        try:
            return self.model.model_validate(values)
        except ValidationError as exc:
            problems.extend(describe(exc, "query"))
            return None

    def _collect(self, raw: bytes, problems: list[Problem]) -> dict[str, Any]:
        if len(raw) > _QUERY_BYTES:
            raise Refused(414, f"the query string is longer than {_QUERY_BYTES} bytes")
        pairs = [pair for pair in raw.split(b"&") if pair]
        if len(pairs) > _PARAMETERS:
            raise Refused(414, f"more than {_PARAMETERS} query parameters")
        values: dict[str, Any] = {}
        for pair in pairs:
            name, _, value = pair.partition(b"=")
            self._take(_text(name), _text(value), values, problems)
        return values

    def _take(self, name: str, value: str, values: dict[str, Any], problems: list[Problem]) -> None:
        shown = f"query.{one_line(name, 80)}"
        many = self._many.get(name)
        if many is None:
            known = ", ".join(self._many) or "none"
            problems.append(Problem(shown, f"unknown parameter (known: {known})"))
        elif "\x00" in value:
            problems.append(Problem(shown, "holds a NUL"))
        elif many:
            values.setdefault(name, []).append(value)
        elif name in values:
            problems.append(Problem(shown, "is given twice"))
        else:
            values[name] = value


def _holds_many(annotation: Any) -> bool:
    """Whether a field is a list, tuple or set (perhaps an optional one), so that its parameter may repeat."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return any(_holds_many(part) for part in typing.get_args(annotation))
    return (origin or annotation) in (list, tuple, set, frozenset, Sequence)


def _text(raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Refused(400, "the query string is not UTF-8") from exc


def read_model(model: type[BaseModel], raw: bytes, problems: list[Problem]) -> Any:
    """JSON straight into the model; pydantic's parser bounds the depth."""
    try:
        # An endpoint whose every field may be left out takes no body at all as well.
        return model.model_validate_json(raw or b"{}")
    except ValidationError as exc:
        problems.extend(describe(exc, "body"))
        return None


def describe(exc: ValidationError, root: str) -> list[Problem]:
    """Pydantic's errors as ours; the values that were sent are not repeated."""
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    found = [
        Problem(_path(root, error["loc"]), one_line(error["msg"].removeprefix("Value error, "), 300))
        for error in errors[:MOST_PROBLEMS]
    ]
    if len(errors) > MOST_PROBLEMS:
        found.append(Problem(root, f"and {len(errors) - MOST_PROBLEMS} more"))
    return found


def _path(root: str, location: tuple[int | str, ...]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else "." + one_line(step, 80) for step in location[:20])
    return root + "".join(steps)


def raise_all(problems: list[Problem]) -> None:
    if problems:
        count = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
        raise InvalidInput(f"{count} wrong with the request", details=problems)


def check_body_headers(headers: dict[bytes, bytes], *, json: bool, most: int) -> None:
    """Raises TooLarge or Refused before a byte of the body is read."""
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > most:
        raise TooLarge(f"the body is larger than {most} bytes")
    if json:
        media = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if media != b"application/json" and not media.endswith(b"+json"):
            raise Refused(415, "the body must be JSON", hint="Send it with Content-Type: application/json.")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused(415, "a compressed body is not taken", hint="Send it without Content-Encoding.")


async def chunks(receive: Receive, most: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooLarge, and Refused (408) when it comes slower than ``LEAST_RATE``."""
    started = time.monotonic()
    got = 0
    while True:
        patience = started + GRACE_S + got / LEAST_RATE - time.monotonic()
        try:
            async with asyncio.timeout(max(patience, 0)):
                message = await receive()
        except TimeoutError as exc:
            headers = [("connection", "close")]
            raise Refused(408, "the request's body comes too slowly or has stopped", headers=headers) from exc
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client went away in the middle of its body")
        body: bytes = message.get("body", b"")
        got += len(body)
        if got > most:
            raise TooLarge(f"the body is larger than {most} bytes")
        if body:
            yield body
        if not message.get("more_body", False):
            return


async def whole_body(receive: Receive, most: int) -> bytes:
    parts = [part async for part in chunks(receive, most)]
    return parts[0] if len(parts) == 1 else b"".join(parts)
