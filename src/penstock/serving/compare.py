"""Whether two answers to one request agree, and where they first differ. Pure.

*exact*: equal, number by number. *tolerance*: numbers lie no more than ``tolerance`` apart, or that part of the larger one where
it is above 1; everything else is equal. *top1*: in each row of numbers (the last axis) the largest stands at the same place;
whole numbers and text are equal. NaN agrees with NaN alone. Text and text of a stream are equal or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.serving.answers import Answer, Bytes, Json, Tensor, Tensors, Text, read
from penstock.serving.reply import Reply, Unreadable

How = Literal["exact", "tolerance", "top1"]
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Rule:
    how: How = "tolerance"
    tolerance: float = 1e-3


def replies(stable: Reply, candidate: Reply, rule: Rule) -> str:
    """Empty when they agree, otherwise the first difference. Total: what cannot be read differs, unless it is the same."""
    if stable.status != candidate.status:
        return f"status {stable.status} against {candidate.status}"
    if stable.status >= 400:
        return ""  # both refuse it alike; messages are each one's own
    try:
        left = read(stable)
    except Unreadable as error:
        return "" if stable.body == candidate.body else f"the stable version's answer cannot be read: {error}"
    try:
        right = read(candidate)
    except Unreadable as error:
        return f"the candidate's answer cannot be read: {error}"
    return answers(left, right, rule)


def answers(left: Answer, right: Answer, rule: Rule) -> str:
    if isinstance(left, Tensors) and isinstance(right, Tensors):
        return _tensors(left, right, rule)
    if isinstance(left, Text) and isinstance(right, Text):
        return _texts(left, right)
    if isinstance(left, Json) and isinstance(right, Json):
        return _json(left.value, right.value, rule, "$")
    if isinstance(left, Bytes) and isinstance(right, Bytes):
        return "" if left.data == right.data else f"{len(left.data)} bytes against other {len(right.data)} bytes"
    return f"{type(left).__name__.lower()} against {type(right).__name__.lower()}"


def _texts(left: Text, right: Text) -> str:
    if len(left.choices) != len(right.choices):
        return f"{len(left.choices)} texts against {len(right.choices)}"
    for number, (a, b) in enumerate(zip(left.choices, right.choices, strict=True)):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"text {number}, character {at}: {a[at : at + _SHOWN]!r} against {b[at : at + _SHOWN]!r}"
    return ""


def _tensors(left: Tensors, right: Tensors, rule: Rule) -> str:
    ours, theirs = {one.name: one for one in left.outputs}, {one.name: one for one in right.outputs}
    if ours.keys() != theirs.keys():
        return f"outputs {sorted(ours)} against {sorted(theirs)}"
    return next((found for name in ours if (found := _tensor(ours[name], theirs[name], rule))), "")


def _tensor(a: Tensor, b: Tensor, rule: Rule) -> str:
    where = f"output {a.name!r}"
    if a.datatype != b.datatype:
        return f"{where}: type {a.datatype} against {b.datatype}"
    if a.shape != b.shape:
        return f"{where}: shape {list(a.shape)} against {list(b.shape)}"
    return _arrays(a.values, b.values, rule, where)


def _arrays(a: NDArray[Any], b: NDArray[Any], rule: Rule, where: str) -> str:
    """Of one shape and type."""
    floats = a.dtype.kind == "f"
    if rule.how == "top1" and floats and a.ndim and a.shape[-1] > 1:
        return _top1(a, b, where)
    if a.dtype.kind == "O":
        equal = np.fromiter((x == y for x, y in zip(a.flat, b.flat, strict=True)), bool, a.size).reshape(a.shape)
    elif rule.how == "tolerance" and a.dtype.kind in "fiu":
        equal = _near(a, b, rule.tolerance)
    else:
        equal = (a == b) | (np.isnan(a) & np.isnan(b)) if floats else np.asarray(a == b)
    if bool(equal.all()):
        return ""
    place = tuple(int(index) for index in np.argwhere(~equal)[0])
    spot = where + (str(list(place)) if place else "")
    count = int(equal.size - np.count_nonzero(equal))
    more = f" (and {count - 1} more of {equal.size})" if count > 1 else ""
    return f"{spot}: {_show(a[place])} against {_show(b[place])}{more}"


def _near(a: NDArray[Any], b: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = tolerance * np.maximum(1.0, np.maximum(np.abs(wide), np.abs(other)))
        near = np.isfinite(wide) & np.isfinite(other) & (np.abs(wide - other) <= bound)
    return np.asarray(near | (a == b) | (np.isnan(wide) & np.isnan(other)), dtype=np.bool_)


def _top1(a: NDArray[Any], b: NDArray[Any], where: str) -> str:
    if not a.size:
        return ""
    rows, others = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    bad, worse = np.isnan(rows).any(axis=1), np.isnan(others).any(axis=1)
    first, second = rows.argmax(axis=1), others.argmax(axis=1)
    differs = (first != second) | (bad != worse)
    if not bool(differs.any()):
        return ""
    row = int(np.argmax(differs))
    if bad[row] != worse[row]:
        return f"{where}, row {row}: NaN in {'the stable' if bad[row] else 'the candidate'} version's alone"
    count = int(np.count_nonzero(differs))
    more = f" ({count} of {len(rows)} rows)" if len(rows) > 1 else ""
    return f"{where}, row {row}: the largest is number {first[row]} against number {second[row]}{more}"


def _json(a: Any, b: Any, rule: Rule, where: str, depth: int = 0) -> str:
    if depth > 200:
        return f"{where:.{_SHOWN}}: nested too deep to be compared"
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            odd = min(a.keys() ^ b.keys())
            return f"{where}: {odd!r:.{_SHOWN}} is in {'the stable' if odd in a else 'the candidate'} version's alone"
        return next((found for key in a if (found := _json(a[key], b[key], rule, f"{where}.{key}", depth + 1))), "")
    if isinstance(a, list) and isinstance(b, list):
        return _lists(a, b, rule, where, depth)
    if _number(a) and _number(b):
        return "" if _equal(a, b, rule) else f"{where}: {_show(a)} against {_show(b)}"
    return "" if type(a) is type(b) and a == b else f"{where}: {_show(a)} against {_show(b)}"


def _lists(a: list[Any], b: list[Any], rule: Rule, where: str, depth: int) -> str:
    if len(a) != len(b):
        return f"{where}: {len(a)} elements against {len(b)}"
    floats = len(a) > 1 and all(map(_number, (*a, *b))) and any(isinstance(one, float) for one in (*a, *b))
    if floats:
        return _arrays(_array(a), _array(b), rule, where)
    return next(
        (
            found
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            if (found := _json(x, y, rule, f"{where}[{i}]", depth + 1))
        ),
        "",
    )


def _array(values: list[Any]) -> NDArray[Any]:
    return np.array([_float(one) for one in values], dtype=np.float64)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _equal(a: float, b: float, rule: Rule) -> bool:
    if a == b or (a != a and b != b):  # noqa: PLR0124 - NaN alone is not itself
        return True
    if rule.how != "tolerance":
        return False
    x, y = _float(a), _float(b)
    if math.isinf(x) or math.isinf(y):
        return False
    return abs(x - y) <= rule.tolerance * max(1.0, abs(x), abs(y))


def _show(value: Any) -> str:
    if isinstance(value, np.floating | float):
        return f"{float(value):.6g}"
    return f"{value!r:.{_SHOWN}}" if not isinstance(value, np.generic) else str(value.item())[:_SHOWN]
