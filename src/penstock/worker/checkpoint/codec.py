"""Plain state as JSON and back, without loss and without pickle.

Schedulers, samplers and random generators keep numbers, text, tuples and small arrays. What JSON cannot say is written
as ``{"$": kind, "v": value}``; what has no such form is refused by its path.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from penstock.worker.checkpoint.errors import Damaged, Unencodable

Leaf = Callable[[str, Any], Any]  # path, value -> its JSON, or NotImplemented
_SEQUENCES: Final[dict[str, Callable[[list[Any]], Any]]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_DICTS: Final = (dict, OrderedDict, defaultdict)
_ARRAYS: Final = frozenset("biufc")


def _no_leaf(_path: str, _value: Any) -> Any:
    return NotImplemented


def encode(value: Any, path: str = "", leaf: Leaf = _no_leaf) -> Any:
    """``value`` as JSON. ``leaf`` is asked about what is no plain data. Raises Unencodable, naming the path."""
    kind = type(value)
    if value is None or kind in {bool, int, str}:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if kind is list:
        return [encode(item, f"{path}[{i}]", leaf) for i, item in enumerate(value)]
    if kind in _DICTS or hasattr(value, "_metadata"):  # the latter: an nn.Module's OrderedDict with notes
        return _encode_dict(value, path, leaf)
    name = next((n for n, made in _SEQUENCES.items() if made is kind), "")
    if name or (isinstance(value, tuple) and kind.__name__ == "Size"):  # torch.Size is a tuple
        items = value if name in {"", "tuple"} else sorted(value, key=repr)
        return {"$": name or "tuple", "v": [encode(item, f"{path}[{i}]", leaf) for i, item in enumerate(items)]}
    if isinstance(value, bytes | bytearray):
        return {"$": kind.__name__, "v": base64.b64encode(value).decode()}
    if isinstance(value, np.generic) and value.dtype.kind in _ARRAYS:
        return {"$": "scalar", "dtype": value.dtype.str, "v": base64.b64encode(value.tobytes()).decode()}
    if kind is np.ndarray and value.dtype.kind in _ARRAYS:
        body = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"$": "array", "dtype": value.dtype.str, "shape": list(value.shape), "v": body}
    found = leaf(path, value)
    if found is NotImplemented:
        raise Unencodable(f"{path or 'the state'} is a {kind.__module__}.{kind.__qualname__}: it is no plain data")
    return found


def _encode_dict(value: Any, path: str, leaf: Leaf) -> Any:
    if all(type(key) is str for key in value) and "$" not in value:
        return {key: encode(item, f"{path}.{key}" if path else key, leaf) for key, item in value.items()}
    pairs = [[encode(key, path, leaf), encode(item, f"{path}[{key!r}]", leaf)] for key, item in value.items()]
    return {"$": "map", "v": pairs}


def decode(body: Any, leaf: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What ``encode`` was given; ``leaf`` reads the kinds that its own ``leaf`` wrote."""
    if isinstance(body, list):
        return [decode(item, leaf) for item in body]
    if not isinstance(body, dict):
        return body
    kind = body.get("$")
    if kind is None:
        return {key: decode(item, leaf) for key, item in body.items()}
    value = body.get("v")
    if kind == "map":
        return {decode(key, leaf): decode(item, leaf) for key, item in value or ()}
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([decode(item, leaf) for item in value or ()])
    if kind == "float":
        return float(str(value))
    if kind in {"bytes", "bytearray"}:
        data = base64.b64decode(str(value))
        return data if kind == "bytes" else bytearray(data)
    if kind in {"array", "scalar"}:
        dtype = np.dtype(str(body["dtype"]))
        if dtype.kind not in _ARRAYS:
            raise Damaged(f"an array of {dtype} is not plain data")
        flat = np.frombuffer(base64.b64decode(str(value)), dtype)
        return flat.reshape(body["shape"]).copy() if kind == "array" else flat[0]
    if leaf is None:
        raise Damaged(f"state of the kind {kind!r} is not known here")
    return leaf(body)
