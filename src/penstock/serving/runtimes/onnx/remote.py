"""The gRPC side: the same questions, the same queue, the same refusals as HTTP's."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from penstock.serving.runtimes.onnx import protocol, rest
from penstock.serving.runtimes.onnx.errors import Refused, invalid, unavailable
from penstock.serving.runtimes.onnx.spans import follow
from penstock.serving.runtimes.onnx.tensors import DTYPES, Tensor, check, check_content, join, shape_of
from penstock.serving.runtimes.onnx.version import Version, arranged
from penstock.serving.runtimes.onnx.web import SERVER, Web, server_timing

Context = Any
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_ROOM = 1 << 20  # of a message beyond its tensors
METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip


class Remote:
    """One method for each call of the protocol; ``web`` has what they share."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.repository = web.repository
        self.port = 0
        most = web.max_body + _ROOM
        self._answers = {name: protocol.message(f"{name}Response") for name in METHODS}
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_metadata_size", 64 << 10),
            ],
            maximum_concurrent_rpcs=web.repository.limits.max_queue * 4,
        )
        served = {name: self._method(name) for name in METHODS}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(protocol.SERVICE, served)])

    async def start(self, address: str) -> None:
        """Raises RuntimeError where the port is taken."""
        self.port = self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        await self._server.stop(grace)

    def _method(self, name: str) -> Any:
        calls: dict[str, Callable[[Any, Context], Awaitable[Any]]] = {
            "ModelInfer": self._infer,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        call = calls.get(name)

        async def answer(request: Any, context: Context) -> Any:
            try:
                if call is not None:
                    return await call(request, context)
                return self._answers[name](**self._read(name, request))
            except Refused as error:
                if error.retry_after is not None:
                    context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
                await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=protocol.message(f"{name}Request").FromString,
            response_serializer=self._answers[name].SerializeToString,
        )

    def _read(self, name: str, request: Any) -> dict[str, Any]:
        """Every question that only looks; the answer's fields."""
        match name:
            case "ServerLive":
                return {"live": True}
            case "ServerReady":
                return {"ready": _holds(self.web.ready)}
            case "ModelReady":
                version = self.repository.version(request.name, request.version)
                return {"ready": version.ready and not self.web.stopping}
            case "ServerMetadata":
                return dict(SERVER)
            case "RepositoryIndex":
                return {"models": self.repository.index(ready=request.ready)}
            case "ModelStatistics":
                return {"model_stats": self._statistics(request.name, request.version)}
        version = self.repository.version(request.name, request.version)
        if not version.inputs:
            raise unavailable(f"{version.label} is {version.state}: {version.reason or 'it loads'}")
        if name == "ModelMetadata":
            return rest.metadata(version, [one.version for one in self.repository.versions(version.name)])
        return {"config": _config(version)}

    def _statistics(self, name: str, version: str) -> list[dict[str, Any]]:
        chosen = self.repository.counted(name, version) if name else list(self.repository.loaded())
        found = [one.statistics.to_dict(one.name, one.version) for one in chosen]
        for entry in found:
            del entry["memory_usage"]
        return found

    async def _load(self, request: Any, context: Context) -> Any:
        parameters = {key: _parameter(value) for key, value in request.parameters.items()}
        await self.repository.load(request.model_name, parameters)
        return self._answers["RepositoryModelLoad"]()

    async def _unload(self, request: Any, context: Context) -> Any:
        await self.repository.unload(request.model_name)
        return self._answers["RepositoryModelUnload"]()

    async def _infer(self, request: Any, context: Context) -> Any:
        version = self.repository.version(request.model_name, request.model_version)
        version.check_ready()
        try:
            tensors = parse(request, version)
            wanted = version.check_outputs(list(dict.fromkeys(output.name for output in request.outputs)))
            timeout = _timeout(request, context)
        except Refused:
            version.invalid()
            raise
        size = sum(len(tensor.content) for tensor in tensors)
        if self.web.held + size > self.web.most_held:
            raise unavailable(f"{self.web.held} bytes of requests are under way already")
        self.web.held += size
        try:
            begun = time.time_ns()
            outputs, timing = await version.infer(tensors, wanted, timeout, lambda: False)
        finally:
            self.web.held -= size
        parent = next((value for key, value in context.invocation_metadata() or () if key == "traceparent"), None)
        if self.web.exporter is not None:
            follow(self.web.exporter, parent, version.label, (begun, time.time_ns()), timing)
        if parent is not None:
            context.set_trailing_metadata((("server-timing", server_timing(timing)),))
        by_name = {out.name: out for out in outputs}
        told = [by_name[name] for name in wanted or by_name]
        return self._answers["ModelInfer"](
            model_name=version.name,
            model_version=version.version,
            id=request.id,
            outputs=[{"name": out.name, "datatype": out.datatype, "shape": out.shape} for out in told],
            raw_output_contents=[bytes(out.content) for out in told],
        )


def parse(request: Any, version: Version) -> list[Tensor]:
    """A request's inputs, checked, in the model's order. Raises Refused."""
    raw = request.raw_input_contents
    if not request.inputs:
        raise invalid("inputs: is a list of at least one tensor")
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"raw_input_contents: has {len(raw)} entries for {len(request.inputs)} inputs")
    specs = {spec.name: spec for spec in version.inputs}
    found: dict[str, Tensor] = {}
    for place, given in enumerate(request.inputs):
        spec = specs.get(given.name)
        if spec is None or given.name in found:
            what = "is named twice" if spec is not None else f"{version.label} takes {', '.join(specs)}"
            raise invalid(f"inputs[{place}]: name: {given.name!r:.100}: {what}")
        where = f"input {spec.name}"
        shape = shape_of(list(given.shape), where)
        check(spec, given.datatype, shape, where)
        if raw and given.HasField("contents"):
            raise invalid(f"{where}: has contents beside raw_input_contents")
        content = raw[place] if raw else _contents(given, where)
        check_content(spec.datatype, shape, content, where)
        found[spec.name] = Tensor(spec.name, spec.datatype, shape, content)
    return arranged(version, found)


def _contents(given: Any, where: str) -> bytes:
    field = _CONTENTS.get(given.datatype)
    if field is None:
        raise invalid(f"{where}: {given.datatype} is given in raw_input_contents")
    values: Sequence[Any] = getattr(given.contents, field)
    if given.datatype == "BYTES":
        return join(values)
    try:
        return np.array(values, DTYPES[given.datatype]).tobytes()
    except (OverflowError, ValueError) as error:
        raise invalid(f"{where}: contents: {error!s:.100}") from error


def _parameter(value: Any) -> Any:
    which = value.WhichOneof("parameter_choice")
    return getattr(value, which) if which else None


def _timeout(request: Any, context: Context) -> float:
    """The shorter of the call's deadline and the request's own (microseconds); 0: neither."""
    given: Mapping[str, Any] = request.parameters
    timeout = _parameter(given["timeout"]) if "timeout" in given else 0
    if type(timeout) is not int or timeout < 0:
        raise invalid("parameters: timeout: is a number of microseconds")
    times = [timeout / 1e6] if timeout else []
    left = context.time_remaining()
    if left is not None:
        times.append(max(left, 0.001))
    return min(times, default=0.0)


def _holds(check_ready: Callable[[], None]) -> bool:
    try:
        check_ready()
    except Refused:
        return False
    return True


def _config(version: Version) -> dict[str, Any]:
    """Of the configuration that HTTP tells, what the table has fields for."""
    told = rest.config(version)
    kept = ("name", "platform", "backend", "max_batch_size", "input", "output", "default_model_filename")
    config = {key: told[key] for key in kept}
    batching = told.get("dynamic_batching")
    if batching is not None:
        config["dynamic_batching"] = {
            key: batching[key] for key in ("preferred_batch_size", "max_queue_delay_microseconds")
        }
    return config
