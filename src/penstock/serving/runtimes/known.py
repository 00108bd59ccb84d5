"""Every runtime by its name; one is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from penstock.serving.runtimes.spec import Format, Runtime

_KNOWN = {
    "command": "penstock.serving.runtimes.command:Command",
    "onnx": "penstock.serving.runtimes.onnx.runtime:OnnxRuntime",
    "triton": "penstock.serving.runtimes.triton.runtime:TritonRuntime",
    "vllm": "penstock.serving.runtimes.vllm:Vllm",
}
# Which one serves what, where the service names none.
_BY_FORMAT = {Format.ONNX: "onnx", Format.TRITON: "triton", Format.HUGGING_FACE: "vllm"}


def runtime(name: str, health: str = "/health") -> Runtime:
    module, _, kind = _KNOWN[name].partition(":")
    made = getattr(import_module(module), kind)
    found: Runtime = made(health) if name == "command" else made()
    return found


def default_for(found: Format, command: Sequence[str]) -> str | None:
    """None: nothing here serves it."""
    return "command" if command else _BY_FORMAT.get(found)
