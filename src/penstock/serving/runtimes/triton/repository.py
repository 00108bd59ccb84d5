"""A model repository for Triton, as text: one folder a model with its ``config.pbtxt``. Pure.

Source of the names and of what they mean: triton-inference-server/common, protobuf/model_config.proto, and Triton's user guide,
"Model Configuration", "Ensemble Models", "Model Repository".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from penstock.base.errors import InvalidInput, Problem
from penstock.serving.runtimes.spec import Batching

Backend = Literal["onnxruntime", "python"]
# ONNX Runtime's word for a type -> Triton's (the datatype of the Open Inference Protocol, after TYPE_).
TYPES: Final = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}

_BATCHING: Final = Batching()


@dataclass(frozen=True, slots=True)
class Tensor:
    """``shape`` with the batch; -1 stands for any size. ``type`` is ONNX Runtime's word."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batched(self) -> bool:
        """Whether the first axis of all of them is any size, so that Triton may put requests together."""
        return all(tensor.shape[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True)
class Step:
    """One model of an ensemble: the model's own name of a tensor -> the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Settings:
    """``instances``: how many at once on each device; ``gpus`` empty: on the processors. ``packages``: of the Python backend."""

    backend: Backend
    batching: Batching = _BATCHING
    instances: int = 1
    gpus: tuple[int, ...] = ()
    threads: int = 1
    packages: str = ""


def config(name: str, signature: Signature, settings: Settings) -> str:
    """``config.pbtxt`` of one ONNX model. Raises InvalidInput for a type that Triton does not have."""
    problems = [
        Problem(f"{name}.{tensor.name}", f"Triton has no type for {tensor.type}")
        for tensor in (*signature.inputs, *signature.outputs)
        if tensor.type not in TYPES
    ]
    if problems:
        raise InvalidInput(f"Triton cannot serve {name}", details=problems)
    batched = signature.batched
    group = f"count: {settings.instances}, kind: {'KIND_GPU' if settings.gpus else 'KIND_CPU'}"
    group += f", gpus: {list(settings.gpus)}" if settings.gpus else ""
    lines = [
        f"name: {_text(name)}",
        f"backend: {_text(settings.backend)}",
        f"max_batch_size: {settings.batching.most if batched else 0}",
        *_tensors("input", signature.inputs, batched=batched),
        *_tensors("output", signature.outputs, batched=batched),
        f"instance_group [ {{ {group} }} ]",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{settings.threads}" }} }}',
    ]
    if batched and settings.batching.most > 1:
        preferred = list(settings.batching.preferred)
        words = [f"max_queue_delay_microseconds: {round(settings.batching.delay * 1e6)}"]
        words += [f"preferred_batch_size: {preferred}"] if preferred else []
        lines.append("dynamic_batching { " + " ".join(words) + " }")
    return "\n".join(lines) + "\n"


def ensemble(name: str, steps: Sequence[Step], of: Mapping[str, Signature], most: int) -> str:
    """``config.pbtxt`` of an ensemble: its inputs are what no step makes, its outputs what no step takes.

    Raises InvalidInput with everything that does not fit together.
    """
    inputs, outputs = joined(steps, of)
    batched = all(of[step.model].batched for step in steps)
    lines = [
        f"name: {_text(name)}",
        'platform: "ensemble"',
        f"max_batch_size: {most if batched else 0}",
        *_tensors("input", inputs, batched=batched),
        *_tensors("output", outputs, batched=batched),
        "ensemble_scheduling {",
    ]
    for step in steps:
        lines.append(f"  step {{ model_name: {_text(step.model)} model_version: -1")
        for word, named in (("input_map", step.inputs), ("output_map", step.outputs)):
            lines += [f"    {word} {{ key: {_text(own)} value: {_text(theirs)} }}" for own, theirs in named.items()]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def joined(steps: Sequence[Step], of: Mapping[str, Signature]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What an ensemble takes and gives. Raises InvalidInput with everything that is wrong."""
    problems = [] if steps else [Problem("steps", "an ensemble has at least one step")]
    made: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        path = f"steps[{number}]"
        if step.model not in of:
            problems.append(
                Problem(f"{path}.model", f"there is no model {step.model!r}; there are {', '.join(sorted(of))}")
            )
            continue
        for word, there, named in (
            ("inputs", of[step.model].inputs, step.inputs),
            ("outputs", of[step.model].outputs, step.outputs),
        ):
            problems += _unknown(f"{path}.{word}", step.model, there, named)
        for tensor in of[step.model].outputs:
            name = step.outputs.get(tensor.name)
            if name in made:
                problems.append(Problem(f"{path}.outputs", f"{name!r} is made by two steps"))
            elif name is not None:
                made[name] = Tensor(name, tensor.type, tensor.shape)
    taken: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        for tensor in of[step.model].inputs if step.model in of else ():
            name = step.inputs.get(tensor.name)
            given = None if name is None else made.get(name, taken.get(name))
            if name is not None and given is None:
                taken[name] = Tensor(name, tensor.type, tensor.shape)
            elif name is not None and given is not None and not _fit(given, tensor):
                words = f"{name!r} is {given.type}{list(given.shape)}, and {step.model} takes {tensor.type}{list(tensor.shape)}"
                problems.append(Problem(f"steps[{number}].inputs.{tensor.name}", words))
    problems += _circles(steps)
    if problems:
        raise InvalidInput("the ensemble does not fit together", details=problems)
    used = {name for step in steps for name in step.inputs.values()}
    return tuple(taken.values()), tuple(tensor for name, tensor in made.items() if name not in used)


def _unknown(path: str, model: str, there: Sequence[Tensor], named: Mapping[str, str]) -> Iterable[Problem]:
    names = {tensor.name for tensor in there}
    word = path.rpartition(".")[2]
    for name in named:
        if name not in names:
            yield Problem(f"{path}.{name}", f"{model} has no such tensor; it has {', '.join(sorted(names))}")
    if word == "inputs":
        for name in sorted(names - set(named)):
            yield Problem(path, f"says nothing of {model}'s input {name!r}")


def _fit(given: Tensor, taken: Tensor) -> bool:
    return (
        given.type == taken.type
        and len(given.shape) == len(taken.shape)
        and all(a == b or -1 in (a, b) for a, b in zip(given.shape, taken.shape, strict=True))
    )


def _circles(steps: Sequence[Step]) -> list[Problem]:
    makers = {name: number for number, step in enumerate(steps) for name in step.outputs.values()}
    ready: set[int] = set()
    while True:
        more = {
            number
            for number, step in enumerate(steps)
            if number not in ready and all(makers.get(name, -1) in ready | {-1} for name in step.inputs.values())
        }
        if not more:
            break
        ready |= more
    left = [number for number in range(len(steps)) if number not in ready]
    return [Problem(f"steps[{number}]", "waits, by way of others, for its own outputs") for number in left]


def _tensors(word: str, tensors: Sequence[Tensor], *, batched: bool) -> list[str]:
    lines = []
    for tensor in tensors:
        dims = list(tensor.shape[1:] if batched else tensor.shape)
        # Triton has no scalars: a tensor without an axis of its own has one of size 1, which is taken off for the model.
        reshape = "" if dims else " reshape { shape: [ ] }"
        lines.append(
            f"{word} [ {{ name: {_text(tensor.name)} data_type: {TYPES[tensor.type]} dims: {dims or [1]}{reshape} }} ]"
        )
    return lines


def _text(value: str) -> str:
    """A string of protobuf's text format."""
    made = "".join(f"\\{ord(c):03o}" if ord(c) < 0x20 or c in '"\\' else c for c in value)
    return f'"{made}"'
