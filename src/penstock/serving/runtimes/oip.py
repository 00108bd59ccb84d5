"""What runtimes that speak the Open Inference Protocol are asked: to describe a model, and to compute once. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, Final

from penstock.serving.runtimes.spec import Model, Request

_ZERO: Final[Mapping[str, Any]] = {"BOOL": False, "BYTES": ""}
_MOST: Final = 1 << 20  # elements of a request that is made up


def described_at(model: Model | None) -> Request | None:
    return None if model is None else Request("GET", f"/v2/models/{model.name}")


def zeros(model: Model | None, described: Mapping[str, object]) -> Request | None:
    """Zeros of the model's own shapes; None where it was not described, or where they would be too large to send."""
    given = described.get("inputs")
    if model is None or not isinstance(given, list) or not given:
        return None
    inputs = []
    for entry in given:
        shape = [1 if size == -1 else size for size in entry["shape"]]
        data = [_ZERO.get(entry["datatype"], 0)] * min(prod(shape), _MOST + 1)
        inputs.append({"name": entry["name"], "datatype": entry["datatype"], "shape": shape, "data": data})
    if sum(len(entry["data"]) for entry in inputs) > _MOST:
        return None
    body = json.dumps({"inputs": inputs}).encode()
    return Request("POST", f"/v2/models/{model.name}/infer", body, {"content-type": "application/json"})
