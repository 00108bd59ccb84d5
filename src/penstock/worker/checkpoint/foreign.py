"""Import what torch wrote: DCP's own folders, and ``torch.save`` files. No pickle of theirs runs code here.

DCP keeps its metadata in a pickle. It is read by an unpickler that knows the classes which such metadata consist of, and
nothing else; tensors and objects go through ``torch.load(weights_only=True)``, which is as strict.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from penstock.worker.checkpoint.codec import encode
from penstock.worker.checkpoint.errors import CheckpointError, Damaged, Unencodable
from penstock.worker.checkpoint.importing import Found
from penstock.worker.checkpoint.layout import Box
from penstock.worker.checkpoint.memory import Bytes
from penstock.worker.checkpoint.parts import inline
from penstock.worker.checkpoint.tensors import as_bytes, dtype_name, place, plain_name

METADATA: Final = ".metadata"
_REFUSED: Final = "Nothing of it was run. Save it again as safetensors, or with DCP, where it was made."
_KNOWN: Final[Mapping[tuple[str, str], Any]] = {
    (cls.__module__, cls.__name__): cls
    for cls in (
        metadata.Metadata,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING,  # noqa: SLF001 - DCP has no other name for it
        filesystem._StorageInfo,  # noqa: SLF001 - as above
    )
}


class _Metadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if (module, name) in {("torch", "Size"), ("collections", "OrderedDict")}:
            return getattr(torch, name) if module == "torch" else dict
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _layout
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module.startswith("pathlib") and name in {"PosixPath", "WindowsPath", "PurePosixPath"}:
            return _path
        raise pickle.UnpicklingError(f"{module}.{name}")


def _layout(name: str) -> torch.layout:
    found = {"torch.strided": torch.strided}.get(name)
    if found is None:
        raise pickle.UnpicklingError(f"a tensor of layout {name}")
    return found


def _member(owner: Any, name: str) -> Any:
    """How an enumeration's member is pickled; of nothing else is an attribute given."""
    if owner is not metadata._MEM_FORMAT_ENCODING:  # noqa: SLF001 - as above
        raise pickle.UnpicklingError("builtins.getattr")
    return metadata._MEM_FORMAT_ENCODING[name]  # noqa: SLF001 - as above


def _path(*parts: str) -> str:
    return "/".join(parts)


def read_metadata(folder: str) -> metadata.Metadata:
    """Raises CheckpointError where the pickle names anything that such metadata do not have."""
    path = os.path.join(folder, METADATA)
    try:
        with open(path, "rb") as file:
            found = _Metadata(file).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: it asks for {error}", hint=_REFUSED) from error
    except (OSError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise Damaged(f"{path} is not what DCP writes: {error}") from error
    if not isinstance(found, metadata.Metadata):
        raise Damaged(f"{path} is not what DCP writes")
    return found


def find_dcp(source: str, part: str) -> Found:
    """A folder that DCP's own writer made. Tensors that stand under no name of a part are those of ``part``."""
    said = read_metadata(source)
    found = Found(source)
    tree: dict[Any, Any] = {}
    stored = said.storage_data or {}
    paths: Mapping[str, Any] = said.planner_data or {}
    for name, about in said.state_dict_metadata.items():
        path = tuple(paths.get(name, (name,)))
        if isinstance(about, TensorStorageMetadata):
            value: Any = _Stored(source, name, about, stored)
        else:
            try:
                value = _loaded(_raw(source, stored, MetadataIndex(name)), f"{source}: {name}")
            except CheckpointError as error:
                found.left_out.append(f"{name}: {error.message}")
                continue
        _put(tree, path, value)
    _take(found, tree, part)
    return found


class _Stored:
    """A tensor of a DCP folder, which lies there in pieces."""

    def __init__(self, folder: str, name: str, about: TensorStorageMetadata, stored: Mapping[Any, Any]) -> None:
        self.name = name
        self.dtype = dtype_name(name, about.properties.dtype)
        self.shape = tuple(about.size)
        self.pieces = [
            (tuple(chunk.offsets), tuple(chunk.sizes), _info(stored, MetadataIndex(name, chunk.offsets, index)))
            for index, chunk in enumerate(about.chunks)
        ]
        self.folder = folder

    def boxes(self, name: str) -> list[tuple[Box, Callable[[], Bytes]]]:
        made = []
        for offsets, shape, info in self.pieces:
            box = Box(name, self.dtype, self.shape, offsets, shape)
            made.append((box, lambda info=info, shape=shape: self._bytes(info, shape)))
        return made  # type: ignore[return-value]  # mypy does not infer a lambda's default

    def whole(self) -> torch.Tensor:
        out = torch.empty(self.shape, dtype=getattr(torch, str(self._load(self.pieces[0][2]).dtype).split(".")[1]))
        for offsets, shape, info in self.pieces:
            out[tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))] = self._load(info)
        return out

    def _load(self, info: Any) -> torch.Tensor:
        value = _loaded(_slice(self.folder, info), f"{self.folder}: {self.name}")
        if not isinstance(value, torch.Tensor):
            raise Damaged(f"{self.folder}: {self.name} is no tensor")
        return value.detach()

    def _bytes(self, info: Any, shape: tuple[int, ...]) -> Bytes:
        value = self._load(info).contiguous()
        if tuple(value.shape) != shape or dtype_name(self.name, value.dtype) != self.dtype:
            raise Damaged(f"{self.folder}: {self.name} is {list(value.shape)}, and {list(shape)} in {METADATA}")
        return as_bytes(value)


def _info(stored: Mapping[Any, Any], index: MetadataIndex) -> Any:
    info = stored.get(index)
    if not isinstance(info, filesystem._StorageInfo):  # noqa: SLF001 - as above
        raise Damaged(f"{METADATA} does not say where {index.fqn} lies: is it of another storage writer?")
    if getattr(info, "transform_descriptors", None):
        raise CheckpointError(f"{index.fqn} was written through {info.transform_descriptors}, which is not read here")
    if os.path.basename(info.relative_path) != info.relative_path:
        raise Damaged(f"{METADATA} names {info.relative_path}, which lies outside the folder")
    return info


def _raw(source: str, stored: Mapping[Any, Any], index: MetadataIndex) -> bytes:
    return _slice(source, _info(stored, index))


def _slice(source: str, info: Any) -> bytes:
    path = os.path.join(source, info.relative_path)
    try:
        with open(path, "rb") as file:
            file.seek(info.offset)
            data = file.read(info.length)
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error
    if len(data) != info.length:
        raise Damaged(f"{path} ends before byte {info.offset + info.length}")
    return data


def _loaded(data: bytes, what: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{what} holds more than tensors and plain data: refused", hint=_REFUSED) from error
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        raise Damaged(f"{what} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise Damaged(f"{METADATA} has {path} below a value")
    tree[path[-1]] = value


# ------------------------------------------------------------------------------------------------------- torch.save


def find_torch(source: str, part: str) -> Found:
    """A file of ``torch.save``: a model's state, or a dictionary with one. Raises CheckpointError for other pickles."""
    try:
        # An old file is no archive, and cannot be mapped.
        tree = torch.load(source, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        said = f"{source} holds more than tensors and plain data: refused, never unpickled"
        raise CheckpointError(said, hint=_REFUSED) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError, AssertionError) as error:
        raise Damaged(
            f"{source} is no file of torch.save that can be read: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{source} holds a {type(tree).__name__}, not a dictionary of tensors")
    found = Found(source)
    _take(found, dict(tree), part)
    return found


# -------------------------------------------------------------------------------------------------------- as parts

_MODELS: Final = ("model", "state_dict", "model_state_dict", "module", "app")


def _take(found: Found, tree: dict[Any, Any], part: str) -> None:
    """Divide what was found into parts: a model, an optimizer by its parameters' names, and plain data."""
    loose = {key: value for key, value in tree.items() if _is_tensor(value)}
    if loose:
        _module(found, part, loose)
    for key, value in tree.items():
        if key in loose:
            continue
        name = part if key in _MODELS and part not in tree else str(key)
        if not isinstance(value, Mapping):
            found.left_out.append(f"{key}: it belongs to no part")
        elif {"state", "param_groups"} <= set(value):
            _optimizer(found, name, value)
        elif value and all(_is_tensor(item) for item in value.values()):
            _module(found, name, value)
        else:
            _object(found, name, value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | _Stored)


def _tensor(found: Found, name: str, value: Any) -> None:
    if isinstance(value, _Stored):
        found.boxes.extend(value.boxes(name))
        return
    box = place(name, value).box
    found.boxes.append((box, lambda: as_bytes(value.detach().resolve_conj().resolve_neg().contiguous())))


def _module(found: Found, part: str, tensors: Mapping[Any, Any]) -> None:
    wrapped = all(str(key).startswith("module.") for key in tensors)  # saved below DistributedDataParallel
    for key, value in tensors.items():
        _tensor(found, f"{part}.{plain_name(str(key).removeprefix('module.') if wrapped else str(key))}", value)
    found.state[part] = {"kind": "module", "rest": {}}


def _optimizer(found: Found, name: str, body: Mapping[Any, Any]) -> None:
    """By parameter names, as DCP keeps it; where it has numbers alone, nobody can tell whose state is whose."""
    groups = body["param_groups"]
    groups = [groups[key] for key in sorted(groups)] if isinstance(groups, Mapping) else list(groups)
    if any(not isinstance(key, str) for key in body["state"]):
        found.left_out.append(f"{name}: its state stands under numbers, which name no parameters")
        return
    state: dict[str, Any] = {}
    for parameter, values in body["state"].items():
        plain = plain_name(parameter)
        said: dict[str, Any] = {"tensors": [], "values": {}}
        for key, value in values.items():
            if _is_tensor(value):
                _tensor(found, f"{name}.{plain}.{key}", value)
                said["tensors"].append(key)
            else:
                said["values"][key] = encode(value, f"{name}.{plain}.{key}", inline)
        state[plain] = said
    groups = [{**group, "params": [plain_name(one) for one in group["params"]]} for group in groups]
    found.state[name] = {"kind": "optimizer", "state": state, "groups": encode(groups, name, inline)}


def _object(found: Found, name: str, body: Mapping[Any, Any]) -> None:
    def leaf(path: str, value: Any) -> Any:
        return inline(path, value.whole() if isinstance(value, _Stored) else value)

    try:
        found.state[name] = {"kind": "object", "state": encode(dict(body), name, leaf)}
    except Unencodable as error:
        found.left_out.append(f"{name}: {error.message}")
