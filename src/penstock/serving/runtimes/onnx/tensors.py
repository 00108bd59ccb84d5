"""Tensors as the Open Inference Protocol names them, and their one inner form.

Inside, a tensor's content is what Triton's binary extension says: numbers in little-endian, row by row; BYTES as a
length of four bytes before each element. So a batch is its requests' contents, one after the other, whatever the type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from penstock.serving.runtimes.onnx.errors import invalid

Content = bytes | memoryview

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
NUMBERS = frozenset({int, float})
MAX_RANK = 32
MAX_ELEMENTS = 1 << 40


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model declares of an input or output; -1 is any size. ``batch``: the first axis' own word, where it has one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Content


def shape_of(given: object, where: str) -> tuple[int, ...]:
    """A request's ``shape``, checked: a short list of sizes whose product fits anything."""
    if not isinstance(given, list | tuple) or len(given) > MAX_RANK:
        raise invalid(f"{where}: shape: is a list of at most {MAX_RANK} sizes")
    for size in given:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            raise invalid(f"{where}: shape: {size!r:.40} is no size")
    shape = tuple(given)
    if prod(shape) > MAX_ELEMENTS:
        raise invalid(f"{where}: shape: {list(shape)} has too many elements")
    return shape


def check(spec: TensorSpec, datatype: object, shape: tuple[int, ...], where: str) -> None:
    """Whether the model takes this type and shape."""
    if datatype != spec.datatype:
        raise invalid(f"{where}: datatype: is {datatype!s:.40}, the model takes {spec.datatype}")
    fits = len(shape) == len(spec.shape) and all(want in (-1, has) for want, has in zip(spec.shape, shape, strict=True))
    if not fits:
        raise invalid(f"{where}: shape: is {list(shape)}, the model takes {list(spec.shape)}")


def check_content(datatype: str, shape: tuple[int, ...], content: Content, where: str) -> None:
    """Whether the bytes are as many as type and shape say; of BYTES, whether each length leads to the next."""
    if datatype != "BYTES":
        want = prod(shape) * SIZES[datatype]
        if len(content) != want:
            raise invalid(f"{where}: has {len(content)} bytes of data; {datatype} of shape {list(shape)} has {want}")
        return
    count = sum(1 for _ in elements(content, where))
    if count != prod(shape):
        raise invalid(f"{where}: has {count} elements; shape {list(shape)} has {prod(shape)}")


def elements(content: Content, where: str) -> Iterable[Content]:
    """The elements of a BYTES tensor."""
    at, end = 0, len(content)
    while at < end:
        if at + 4 > end:
            raise invalid(f"{where}: ends in the middle of an element's length")
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        if at + size > end:
            raise invalid(f"{where}: an element of {size} bytes begins {end - at} bytes before the end")
        yield content[at : at + size]
        at += size


def join(parts: Iterable[bytes]) -> bytes:
    """A BYTES tensor's content of its elements."""
    return b"".join(chain.from_iterable((struct.pack("<I", len(part)), part) for part in parts))


def from_numbers(datatype: str, flat: Sequence[Any], where: str) -> bytes:
    """Content of JSON values, none of which is bent: a fraction is no integer, a word no number, 1e300 no FP32."""
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        if not kinds <= {str}:
            raise invalid(f"{where}: data: BYTES are given as text")
        return join(text.encode("utf-8", "surrogatepass") for text in flat)
    dtype = DTYPES[datatype]
    allowed = {bool} if datatype == "BOOL" else NUMBERS if dtype.kind == "f" else {int}
    if not kinds <= allowed:
        odd = next(value for value in flat if type(value) not in allowed)
        raise invalid(f"{where}: data: {odd!r:.40} is no {datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype)
    except (OverflowError, ValueError) as error:
        raise invalid(f"{where}: data: {error!s:.100}") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise invalid(f"{where}: data: {flat[int(np.argmin(np.isfinite(array)))]!r:.40} is beyond {datatype}")
    return array.tobytes()


def flatten(data: object, shape: tuple[int, ...], where: str) -> list[Any]:
    """JSON data, nested as the shape says or flat, as one flat list."""
    if not isinstance(data, list):
        raise invalid(f"{where}: data: is a list")
    if len(shape) < 2 or (data and not isinstance(data[0], list)):
        if len(data) != prod(shape):
            raise invalid(f"{where}: data: has {len(data)} elements; shape {list(shape)} has {prod(shape)}")
        return data
    rows: list[Any] = [data]
    for axis, size in enumerate(shape):
        for row in rows:
            if not isinstance(row, list) or len(row) != size:
                has = f"{len(row)} elements" if isinstance(row, list) else "no list"
                raise invalid(f"{where}: data: {has} at depth {axis}; shape {list(shape)} has {size}")
        rows = list(chain.from_iterable(rows))
    return rows


def to_json(tensor: Tensor) -> Any:
    """Flat values that orjson writes. Refuses what JSON cannot say: NaN, infinities, bytes that are no text."""
    if tensor.datatype == "BYTES":
        try:
            return [bytes(part).decode() for part in elements(tensor.content, tensor.name)]
        except UnicodeDecodeError as error:
            raise invalid(f"output {tensor.name}: holds bytes that are no text: ask for binary_data") from error
    array = np.frombuffer(tensor.content, DTYPES[tensor.datatype])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = int(np.argmin(np.isfinite(array)))
        raise invalid(
            f"output {tensor.name}: element {at} is {array[at]}, which JSON has no word for: ask for binary_data"
        )
    return array.tolist() if tensor.datatype == "FP16" else array


def rows_of(tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """A batch's output, cut along the first axis into the shares of its requests."""
    cuts: list[Tensor] = []
    content, rest = memoryview(tensor.content), tensor.shape[1:]
    if tensor.datatype == "BYTES":
        ends = _ends(content, prod(rest), sum(sizes), tensor.name)
    else:
        step = prod(rest) * SIZES[tensor.datatype]
        ends = [step * row for row in range(sum(sizes) + 1)]
    row = 0
    for size in sizes:
        cuts.append(Tensor(tensor.name, tensor.datatype, (size, *rest), content[ends[row] : ends[row + size]]))
        row += size
    return cuts


def _ends(content: memoryview, each: int, rows: int, where: str) -> list[int]:
    """Where each row of a BYTES tensor ends, the first number being where the first begins."""
    ends, at = [0], 0
    for seen, part in enumerate(elements(content, where), 1):
        at += 4 + len(part)
        if each and seen % each == 0:
            ends.append(at)
    return ends + [at] * (rows + 1 - len(ends))
