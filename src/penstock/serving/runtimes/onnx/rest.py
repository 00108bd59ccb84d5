"""Open Inference Protocol over HTTP: a body to tensors, answers to a body. JSON, and Triton's binary tensors behind it.

orjson, since the standard library takes 110 us for 512 numbers, as long as a small model: it also knows no NaN.

Pure: bytes in, bytes out; whatever the bytes are, the answer is a value or ``Refused``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from penstock.serving.runtimes.onnx.errors import Refused, invalid
from penstock.serving.runtimes.onnx.tensors import (
    Tensor,
    TensorSpec,
    check,
    check_content,
    flatten,
    from_numbers,
    shape_of,
    to_json,
)
from penstock.serving.runtimes.onnx.version import Version, arranged

MAX_TENSORS = 1000
_UNSERVED = ("shared_memory_region", "classification", "sequence_id", "sequence_start", "sequence_end")


@dataclass(slots=True)
class Asked:
    """An inference request, checked against the model. ``binary``: how the caller wants each output that it named."""

    id: str
    tensors: list[Tensor]
    outputs: tuple[str, ...]
    binary: dict[str, bool]
    binary_default: bool
    timeout: float


def read_json(body: bytes | memoryview) -> dict[str, Any]:
    """A JSON object. Raises Refused."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the JSON cannot be read: {error!s:.200}") from error
    if not isinstance(found, dict):
        raise invalid("the JSON is no object")
    return found


def parse(body: bytes, header_length: int | None, version: Version) -> Asked:
    """A request's body. ``header_length``: how much of it is JSON, where binary tensors follow."""
    if header_length is None:
        header, binary = read_json(body), memoryview(b"")
    else:
        if header_length > len(body):
            raise invalid(f"Inference-Header-Content-Length: is {header_length}, the body has {len(body)} bytes")
        if header_length == 0:
            raise invalid("Inference-Header-Content-Length: is 0: a request begins with its JSON")
        whole = memoryview(body)
        header, binary = read_json(whole[:header_length]), whole[header_length:]
    parameters = _parameters(header, "parameters")
    tensors, used = _inputs(header.get("inputs"), binary, version)
    if used != len(binary):
        raise invalid(f"{len(binary) - used} bytes of binary data belong to no input")
    outputs, wanted = _outputs(header.get("outputs"), version)
    identity = header.get("id", "")
    if not isinstance(identity, str):
        raise invalid("id: is text")
    binary_default = parameters.get("binary_data_output", False)
    if type(binary_default) is not bool:
        raise invalid("parameters: binary_data_output: is true or false")
    return Asked(identity, tensors, outputs, wanted, binary_default, _timeout(parameters))


def _parameters(part: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = part.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise invalid(f"{where}: is an object")
    for name in _UNSERVED:
        if parameters.get(name):
            raise invalid(f"{where}: {name}: is not served here")
    return parameters


def _timeout(parameters: Mapping[str, Any]) -> float:
    """Triton's parameter, in microseconds; 0: none of the caller's own."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise invalid("parameters: timeout: is a number of microseconds")
    return min(timeout, 1 << 50) / 1e6


def _inputs(given: object, binary: memoryview, version: Version) -> tuple[list[Tensor], int]:
    if not isinstance(given, list) or not given:
        raise invalid("inputs: is a list of at least one tensor")
    if len(given) > MAX_TENSORS:
        raise invalid(f"inputs: more than {MAX_TENSORS}")
    specs = {spec.name: spec for spec in version.inputs}
    found: dict[str, Tensor] = {}
    at = 0
    for place, entry in enumerate(given):
        if not isinstance(entry, dict):
            raise invalid(f"inputs[{place}]: is an object")
        name = entry.get("name")
        spec = specs.get(name) if isinstance(name, str) else None
        if spec is None or spec.name in found:
            what = "is named twice" if spec is not None else f"{version.label} takes {', '.join(specs)}"
            raise invalid(f"inputs[{place}]: name: {name!r:.100}: {what}")
        tensor, size = _input(entry, spec, binary[at:])
        found[spec.name] = tensor
        at += size
    return arranged(version, found), at


def _input(entry: Mapping[str, Any], spec: TensorSpec, rest: memoryview) -> tuple[Tensor, int]:
    """One tensor, and how many of the binary bytes were its own."""
    where = f"input {spec.name}"
    shape = shape_of(entry.get("shape"), where)
    check(spec, entry.get("datatype"), shape, where)
    parameters = _parameters(entry, f"{where}: parameters")
    size = parameters.get("binary_data_size")
    if size is None:
        content = from_numbers(spec.datatype, flatten(entry.get("data"), shape, where), where)
        return Tensor(spec.name, spec.datatype, shape, content), 0
    if type(size) is not int or size < 0:
        raise invalid(f"{where}: parameters: binary_data_size: is a number of bytes")
    if "data" in entry:
        raise invalid(f"{where}: has both data and binary_data_size")
    if size > len(rest):
        raise invalid(f"{where}: binary_data_size: is {size}, but only {len(rest)} bytes are left")
    part = rest[:size]
    check_content(spec.datatype, shape, part, where)
    return Tensor(spec.name, spec.datatype, shape, part), size


def _outputs(given: object, version: Version) -> tuple[tuple[str, ...], dict[str, bool]]:
    if given is None or given == []:
        return (), {}
    if not isinstance(given, list) or len(given) > MAX_TENSORS:
        raise invalid(f"outputs: is a list of at most {MAX_TENSORS}")
    binary: dict[str, bool] = {}
    names: list[str] = []
    for place, entry in enumerate(given):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise invalid(f"outputs[{place}]: is an object with a name")
        name: str = entry["name"]
        parameters = _parameters(entry, f"outputs[{place}]: parameters")
        if "binary_data" in parameters:
            if type(parameters["binary_data"]) is not bool:
                raise invalid(f"outputs[{place}]: parameters: binary_data: is true or false")
            binary[name] = parameters["binary_data"]
        if name not in names:
            names.append(name)
    return version.check_outputs(names), binary


def render(version: Version, asked: Asked, outputs: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The answer's body, and how much of it is JSON where binary tensors follow."""
    told: list[dict[str, Any]] = []
    parts: list[Any] = [b""]
    by_name = {out.name: out for out in outputs}
    for name in asked.outputs or by_name:
        out = by_name[name]
        entry: dict[str, Any] = {"name": name, "datatype": out.datatype, "shape": out.shape}
        if asked.binary.get(name, asked.binary_default):
            entry["parameters"] = {"binary_data_size": len(out.content)}
            parts.append(out.content)
        else:
            try:
                entry["data"] = to_json(out)
            except Refused as error:
                raise Refused(500, f"{version.label}: {error.message}") from error
        told.append(entry)
    answer: dict[str, Any] = {"model_name": version.name, "model_version": version.version, "outputs": told}
    if asked.id:
        answer["id"] = asked.id
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(parts) == 1:
        return header, None
    parts[0] = header
    return b"".join(parts), len(header)


def json_body(value: Any) -> bytes:
    return orjson.dumps(value)


def inflate(body: bytes, encoding: str, most: int) -> bytes:
    """A compressed body, of at most ``most`` bytes: what unfolds to more is refused before it does. Raises Refused."""
    if encoding not in ("gzip", "deflate"):
        raise Refused(415, f"Content-Encoding: {encoding:.40}: gzip and deflate are taken")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either form, by its first bytes
    try:
        whole = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise invalid(f"the body is no {encoding}: {error}") from error
    if len(whole) > most:
        raise Refused(413, f"the body unfolds to more than {most} bytes")
    if not stream.eof or stream.unused_data:
        raise invalid(f"the {encoding} body is cut off, or goes on after its end")
    return whole


def deflate(body: bytes, encoding: str) -> bytes:
    bits = zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS
    stream = zlib.compressobj(1, wbits=bits)
    return stream.compress(body) + stream.flush()


def metadata(version: Version, versions: Sequence[str]) -> dict[str, Any]:
    return {
        "name": version.name,
        "versions": list(versions),
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(spec) for spec in version.inputs],
        "outputs": [_tensor(spec) for spec in version.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def config(version: Version) -> dict[str, Any]:
    """Triton's model configuration, as far as it says something here."""
    policy = version.limits.policy
    most = policy.most if version.batching else 0
    skip = 1 if most else 0
    found: dict[str, Any] = {
        "name": version.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(version.version)]}},
        "max_batch_size": most,
        "input": [_configured(spec, skip) for spec in version.inputs],
        "output": [_configured(spec, skip) for spec in version.outputs],
        "instance_group": [{"name": version.name, "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": "model.onnx",
    }
    if most:
        found["dynamic_batching"] = {
            "preferred_batch_size": list(policy.preferred),
            "max_queue_delay_microseconds": round(policy.delay * 1e6),
            "default_queue_policy": {
                "default_timeout_microseconds": round(version.limits.request_timeout * 1e6),
                "max_queue_size": version.limits.max_queue,
            },
        }
    return found


def _configured(spec: TensorSpec, skip: int) -> dict[str, Any]:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": datatype, "dims": list(spec.shape[skip:])}
