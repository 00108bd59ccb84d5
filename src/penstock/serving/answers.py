"""An answer as something that can be compared: tensors, text, JSON or bytes. Pure.

What differs between any two answers to one question is left out: identifiers, times, the version's own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.serving.reply import HEADER_LENGTH, Reply, Unreadable, unpacked

_OPENAI = frozenset({"chat.completion", "text_completion", "chat.completion.chunk"})
_DTYPES: dict[str, str] = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """``values``: numbers of any type, or strings as Python objects (BYTES)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensors:
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """What a language model said, by choice; of a stream, all of it put together."""

    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Json:
    value: Any


@dataclass(frozen=True, slots=True)
class Bytes:
    data: bytes


Answer = Tensors | Text | Json | Bytes


def read(reply: Reply) -> Answer:
    """Raises Unreadable."""
    body = unpacked(reply)
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return _stream(body)
    length = reply.headers.get(HEADER_LENGTH)
    if length is not None:
        return _binary(body, length)
    if kind == "application/json" or kind.endswith("+json") or (not kind and body[:1] in (b"{", b"[")):
        return _of_json(_parsed(body))
    if kind.startswith("text/"):
        return Text((body.decode("utf-8", "replace"),))
    return Bytes(body) if kind else _untold(body)


def _untold(body: bytes) -> Answer:
    """Nobody says what it is: text, where it is one."""
    try:
        return Text((body.decode(),))
    except ValueError:
        return Bytes(body)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is no JSON: {error!s:.100}") from error


def _of_json(value: Any) -> Answer:
    if not isinstance(value, dict):
        return Json(value)
    outputs = value.get("outputs")
    if isinstance(outputs, list) and outputs and all(isinstance(one, dict) and "datatype" in one for one in outputs):
        return Tensors(tuple(_tensor(one, one.get("data")) for one in outputs))
    if value.get("object") in _OPENAI and isinstance(value.get("choices"), list):
        return Text(tuple(_said(choice, "message") for choice in value["choices"]))
    if value.get("object") == "list" and isinstance(value.get("data"), list):  # embeddings
        return Json([one.get("embedding") if isinstance(one, dict) else one for one in value["data"]])
    return Json(value)


def _said(choice: Any, where: str) -> str:
    """The text of a choice; of calls of tools, their names and arguments as well."""
    if not isinstance(choice, dict):
        return ""
    part = choice.get(where)
    if not isinstance(part, dict):
        return str(choice.get("text") or "")
    calls = part.get("tool_calls") or []
    named = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    told = "".join(f"{one.get('name') or ''}{one.get('arguments') or ''}" for one in named if isinstance(one, dict))
    return str(part.get("content") or "") + told


def _stream(body: bytes) -> Answer:
    """Server-sent events: of a language model, the text; of others, the data of all events."""
    events = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            events.append(b"\n".join(lines))
    said: dict[int, list[str]] = {}
    for event in events:
        if event.strip() == b"[DONE]":
            continue
        try:
            value = json.loads(event)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            return Text(tuple(one.decode("utf-8", "replace") for one in events))
        for choice in value["choices"]:
            if isinstance(choice, dict):
                index = choice.get("index", 0)
                said.setdefault(index if isinstance(index, int) else 0, []).append(_said(choice, "delta"))
    return Text(tuple("".join(said[index]) for index in sorted(said)))


def _binary(body: bytes, length: str) -> Answer:
    """JSON, then the tensors' contents one after the other (Triton's binary tensor extension)."""
    if not length.isdigit() or int(length) > len(body):
        raise Unreadable(f"its JSON is said to have {length:.20} of {len(body)} bytes")
    value = _parsed(body[: int(length)])
    outputs = value.get("outputs") if isinstance(value, dict) else None
    if not isinstance(outputs, list):
        raise Unreadable("it names no outputs")
    at = int(length)
    found = []
    for one in outputs:
        if not isinstance(one, dict):
            raise Unreadable("an output is no object")
        parameters = one.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            found.append(_tensor(one, one.get("data")))
            continue
        if not isinstance(size, int) or not 0 <= size <= len(body) - at:
            raise Unreadable(f"output {one.get('name')!r}: its tensor is cut off")
        found.append(_tensor(one, body[at : at + size]))
        at += size
    return Tensors(tuple(found))


def _tensor(one: Mapping[str, Any], data: Any) -> Tensor:
    name, datatype, shape = str(one.get("name")), str(one.get("datatype")), one.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise Unreadable(f"output {name!r}: its shape is {shape!r:.60}")
    count = prod(shape)
    values: NDArray[Any]
    try:
        if datatype == "BYTES":
            flat = _strings(data) if isinstance(data, bytes) else _flat(data)
            values = np.empty(len(flat), dtype=object)
            values[:] = flat
        elif isinstance(data, bytes):
            values = np.frombuffer(data, dtype=_DTYPES[datatype])
        else:
            values = np.asarray(_flat(data), dtype=_DTYPES[datatype])
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise Unreadable(f"output {name!r}: no {datatype:.20}: {error!s:.80}") from error
    if values.size != count:
        raise Unreadable(f"output {name!r}: {values.size} values in the shape {shape}")
    return Tensor(name, datatype, tuple(shape), values.reshape(shape))


def _flat(data: Any) -> list[Any]:
    """JSON's lists, of any depth, as one."""
    if not isinstance(data, list):
        raise Unreadable("an output has no data")
    out: list[Any] = []
    stack: list[Any] = [iter(data)]
    while stack:
        for one in stack[-1]:
            if isinstance(one, list):
                stack.append(iter(one))
                break
            out.append(float("nan") if one is None else one)
        else:
            stack.pop()
    return out


def _strings(data: bytes) -> Sequence[str]:
    out, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + size > len(data):
            raise Unreadable("its strings are cut off")
        out.append(data[at : at + size].decode("utf-8", "surrogateescape"))
        at += size
    return out
