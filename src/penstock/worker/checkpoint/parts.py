"""What a training consists of (model, optimizer, scheduler, data position, random state), as tensors and plain data.

Tensors are named as people name them: ``model.layers.0.weight``, ``optimizer.layers.0.weight.exp_avg``. Names do not
depend on how many ranks there are, nor on wrappers, so that what N ranks saved M can load.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from penstock.worker.checkpoint.codec import decode, encode
from penstock.worker.checkpoint.errors import CheckpointError, OtherModel, Unencodable
from penstock.worker.checkpoint.manifest import Manifest
from penstock.worker.checkpoint.tensors import DTYPES, Placed, as_bytes, dtype_name, place, plain_name

_INLINE: Final = 4096  # bytes: smaller tensors of plain state stand in the manifest


@runtime_checkable
class Stateful(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


@dataclass(slots=True)
class Captured:
    """Tensors in a fixed order, and the plain rest."""

    placed: list[Placed] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Target:
    """Where a checkpoint's tensors go, and what is left to do once all of them are there."""

    placed: list[Placed] = field(default_factory=list)
    finish: list[Callable[[], object]] = field(default_factory=list)


class Part(Protocol):
    name: str

    def capture(self, into: Captured) -> None: ...
    def target(self, manifest: Manifest, into: Target) -> None:
        """Raises OtherModel where the checkpoint has no such part."""


def part_of(name: str, thing: Any, modules: Mapping[str, torch.nn.Module]) -> Part:
    if isinstance(thing, torch.nn.Module):
        return ModulePart(name, thing)
    if isinstance(thing, torch.optim.Optimizer):
        return OptimizerPart(name, thing, modules)
    if isinstance(thing, Stateful):
        return ObjectPart(name, thing)
    raise Unencodable(f"{name} has no state_dict() and load_state_dict()")


def _said(manifest: Manifest, name: str) -> Any:
    if name not in manifest.state:
        raise OtherModel(f"the checkpoint of step {manifest.step} has no {name!r}; it has {sorted(manifest.state)}")
    return manifest.state[name]


class ModulePart:
    """A model: loaded in place."""

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        self.module = unwrapped(module)

    def capture(self, into: Captured) -> None:
        rest = {}
        for key, value in self.module.state_dict().items():
            path = f"{self.name}.{plain_name(key)}"
            if isinstance(value, torch.Tensor):
                into.placed.append(place(path, value))
            else:
                rest[plain_name(key)] = encode(value, path, inline)
        into.state[self.name] = {"kind": "module", "rest": rest}

    def target(self, manifest: Manifest, into: Target) -> None:
        rest = _said(manifest, self.name)["rest"]
        keys = {}
        for key, value in self.module.state_dict().items():
            keys[plain_name(key)] = key
            if isinstance(value, torch.Tensor):
                into.placed.append(place(f"{self.name}.{plain_name(key)}", value))
        if rest:
            found = {keys[key]: decode(value, read_inline) for key, value in rest.items() if key in keys}
            into.finish.append(lambda: self.module.load_state_dict(found, strict=False))


class OptimizerPart:
    """An optimizer's state by the names of the parameters that it belongs to."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, modules: Mapping[str, torch.nn.Module]) -> None:
        self.name = name
        self.optimizer = optimizer
        several = len(modules) > 1
        self.names: dict[int, str] = {}
        for prefix, module in modules.items():
            for key, parameter in unwrapped(module).named_parameters():
                self.names[id(parameter)] = f"{prefix}.{plain_name(key)}" if several else plain_name(key)

    def _parameters(self) -> list[tuple[str, torch.Tensor]]:
        """In the order of the indices that an optimizer's state_dict uses."""
        flat = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return [(self.names.get(id(p), f"parameter{index}"), p) for index, p in enumerate(flat)]

    def capture(self, into: Captured) -> None:
        body = self.optimizer.state_dict()
        names = [name for name, _ in self._parameters()]
        state: dict[str, Any] = {}
        for index, values in body["state"].items():
            if not isinstance(index, int):
                raise Unencodable(f"{self.name} keeps state under {index!r}, which belongs to no parameter")
            said: dict[str, Any] = {"tensors": [], "values": {}}
            for key, value in values.items():
                path = f"{self.name}.{names[index]}.{key}"
                if isinstance(value, torch.Tensor):
                    into.placed.append(place(path, value))
                    said["tensors"].append(key)
                else:
                    said["values"][key] = encode(value, path, inline)
            state[names[index]] = said
        groups = [{**group, "params": [names[i] for i in group["params"]]} for group in body["param_groups"]]
        into.state[self.name] = {"kind": "optimizer", "state": state, "groups": encode(groups, self.name, inline)}

    def target(self, manifest: Manifest, into: Target) -> None:
        said = _said(manifest, self.name)
        groups = decode(said["groups"], read_inline)
        parameters = self._parameters()
        index_of = {name: index for index, (name, _) in enumerate(parameters)}
        theirs = [name for group in groups for name in group["params"]]
        if odd := sorted(set(theirs) ^ set(index_of)):
            whose = "this optimizer" if odd[0] in index_of else "the checkpoint"
            raise OtherModel(f"{self.name}: the parameter {odd[0]} is known to {whose} alone")
        shapes = manifest.by_name()
        present = self.optimizer.state_dict()["state"]
        state: dict[int, dict[str, Any]] = {}
        for name, row in said["state"].items():
            index = index_of[name]
            values = {key: decode(value, read_inline) for key, value in row["values"].items()}
            for key in row["tensors"]:
                path = f"{self.name}.{name}.{key}"
                tensor = present.get(index, {}).get(key)
                if path not in shapes:
                    raise OtherModel(f"the checkpoint lacks {path}")
                if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shapes[path].shape:
                    tensor = _room(parameters[index][1], shapes[path].shape, DTYPES[shapes[path].dtype])
                values[key] = tensor
                into.placed.append(place(path, tensor))
            state[index] = values
        for group in groups:
            group["params"] = [index_of[name] for name in group["params"]]
        into.finish.append(lambda: self.optimizer.load_state_dict({"state": state, "param_groups": groups}))


def _room(parameter: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory for one state tensor: as its parameter lies where the shapes agree, a counter on the host."""
    if tuple(parameter.shape) == shape:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    device = parameter.to_local().device if isinstance(parameter, DTensor) else parameter.device
    return torch.empty(shape, dtype=dtype, device=device if shape else "cpu")


class ObjectPart:
    """Anything else with a state_dict: plain data, and tensors that are the same on every rank."""

    def __init__(self, name: str, thing: Stateful) -> None:
        self.name = name
        self.thing = thing

    def capture(self, into: Captured) -> None:
        def leaf(path: str, value: Any) -> Any:
            if isinstance(value, torch.Tensor) and (value.nbytes > _INLINE or isinstance(value, DTensor)):
                into.placed.append(place(path, value))
                return {"$": "kept", "v": path}
            return inline(path, value)

        into.state[self.name] = {"kind": "object", "state": encode(self.thing.state_dict(), self.name, leaf)}

    def target(self, manifest: Manifest, into: Target) -> None:
        body = _said(manifest, self.name)["state"]
        shapes = manifest.by_name()
        kept: dict[str, torch.Tensor] = {}
        for path in _kept(body):
            kept[path] = torch.empty(shapes[path].shape, dtype=DTYPES[shapes[path].dtype])
            into.placed.append(place(path, kept[path]))

        def leaf(tagged: dict[str, Any]) -> Any:
            return kept[tagged["v"]] if tagged["$"] == "kept" else read_inline(tagged)

        into.finish.append(lambda: self.thing.load_state_dict(decode(body, leaf)))


def _kept(body: Any) -> Iterator[str]:
    if isinstance(body, list):
        for item in body:
            yield from _kept(item)
    elif isinstance(body, dict):
        if body.get("$") == "kept":
            yield body["v"]
        else:
            for item in body.values():
                yield from _kept(item)


def inline(path: str, value: Any) -> Any:
    """A small tensor, or a dtype or device, as JSON."""
    if isinstance(value, torch.Tensor) and not isinstance(value, DTensor):
        flat = value.detach().cpu().contiguous()
        body = base64.b64encode(as_bytes(flat).tobytes()).decode()
        return {"$": "inline", "dtype": dtype_name(path, value.dtype), "shape": list(value.shape), "v": body}
    if isinstance(value, torch.dtype):
        return {"$": "dtype", "v": dtype_name(path, value)}
    return NotImplemented


def read_inline(tagged: dict[str, Any]) -> Any:
    if tagged["$"] == "dtype":
        return DTYPES[tagged["v"]]
    if tagged["$"] == "inline":
        data = bytearray(base64.b64decode(tagged["v"]))
        if not data:
            return torch.empty(tagged["shape"], dtype=DTYPES[tagged["dtype"]])
        return torch.frombuffer(data, dtype=torch.uint8).view(DTYPES[tagged["dtype"]]).reshape(tagged["shape"])
    raise CheckpointError(f"state of the kind {tagged['$']!r} is not known to this Penstock")


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The user's own module below DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, DistributedDataParallel | torch.nn.DataParallel):
            inner = module.module
        if not isinstance(inner, torch.nn.Module):
            return module
        module = inner


# ------------------------------------------------------------------------------------------------ each rank's own


def random_state() -> dict[str, Any]:
    """Every generator that a script draws from without naming one."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),  # noqa: NPY002 - scripts that use the global generator need it back
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no type for it
        found["cuda"] = torch.cuda.get_rng_state()
    return {key: encode(value, f"random.{key}", inline) for key, value in found.items()}


def set_random_state(body: Mapping[str, Any]) -> None:
    found = {key: decode(value, read_inline) for key, value in body.items()}
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])  # noqa: NPY002 - as above
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])


class Position:
    """The data loader: each rank's own place in the data."""

    def __init__(self, name: str, loader: Stateful) -> None:
        self.name = name
        self.loader = loader

    def capture(self) -> Any:
        return encode(self.loader.state_dict(), self.name, inline)

    def restore(self, ranks: list[Any], rank: int, world_size: int) -> None:
        """``ranks`` is what each rank said when it was saved. Raises OtherModel rather than drop a position."""
        states = [decode(said, read_inline) for said in ranks]
        if len(ranks) == world_size:
            self.loader.load_state_dict(states[rank])
        elif hasattr(self.loader, "load_resharded"):
            self.loader.load_resharded(states, rank, world_size)
        elif all(said == ranks[0] for said in ranks):
            self.loader.load_state_dict(states[0])
        else:
            raise OtherModel(
                f"{self.name}: the data position differs between the {len(ranks)} ranks that saved it, and "
                f"{type(self.loader).__name__} cannot divide it among {world_size}: give it "
                "load_resharded(states, rank, world_size)"
            )
