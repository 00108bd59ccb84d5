"""What a model's files are, told by their content: a name says nothing, and a pickle runs code when it is read."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from penstock.serving.runtimes.spec import Format

_HEADER = 100 << 20  # bytes, of safetensors: its own readers' limit
_LOOKED = 10_000  # files of one folder
_ONNX = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}  # ModelProto: field -> wire type
_GRAPH = 7
_IN_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), 2)  # GraphProto
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt")  # looked into, in a folder
_NOTHING = (
    "neither ONNX, nor safetensors, nor a folder of either: `penstock.export.to_onnx` makes ONNX of a torch model"
)
_VARINT = 10  # bytes at the most


@dataclass(frozen=True, slots=True)
class Found:
    """``path``: the file or folder that the runtime is given. ``why``: what is wrong with it, or what was seen."""

    format: Format
    path: str
    why: str = ""


def tell(path: str) -> Found:
    """Raises OSError for what cannot be read."""
    if os.path.isdir(path):
        return _folder(path)
    with open(path, "rb") as file:
        return _file(file, path)


def _file(file: IO[bytes], path: str) -> Found:
    size = os.fstat(file.fileno()).st_size
    start = file.read(16)
    if not start:
        return Found(Format.UNKNOWN, path, "the file is empty")
    if start[:4] == b"PK\x03\x04":
        return _zip(file, path)
    if start[0] == 0x80 and len(start) > 1 and 2 <= start[1] <= 5:
        return Found(Format.PICKLE, path, "it begins as a pickle does")
    length = int.from_bytes(start[:8], "little")
    if len(start) > 8 and start[8:9] == b"{" and length <= min(_HEADER, size - 8):
        return _safetensors(file, path, length, size)
    return _onnx(file, path, size)


def _zip(file: IO[bytes], path: str) -> Found:
    """torch.save writes a zip with a pickle in it."""
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        return Found(Format.UNKNOWN, path, f"a zip that cannot be read: {error}")
    if any(name.endswith(".pkl") for name in names):
        return Found(Format.PICKLE, path, "a zip with a pickle in it, as torch.save writes")
    return Found(Format.UNKNOWN, path, "a zip of something else")


def _safetensors(file: IO[bytes], path: str, length: int, size: int) -> Found:
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return Found(Format.UNKNOWN, path, "the header of safetensors is broken")
    if max(ends, default=0) != size - 8 - length:
        return Found(Format.UNKNOWN, path, "safetensors that are cut short or too long")
    return Found(Format.SAFETENSORS, path)


def _onnx(file: IO[bytes], path: str, size: int) -> Found:
    """The fields of a ModelProto, and those of its graph; what lies in them is skipped."""
    file.seek(0)
    seen: dict[int, tuple[int, int]] = {}
    broken = _fields(file, size, _ONNX, seen)
    if broken is None and _GRAPH in seen:
        start, end = seen[_GRAPH]
        file.seek(start)
        broken = _fields(file, end, _IN_GRAPH, {})
    if broken is None and _GRAPH in seen:
        return Found(Format.ONNX, path)
    begins = broken is not None and {1, 2} & seen.keys()
    return Found(Format.UNKNOWN, path, f"begins as ONNX does and breaks off at byte {broken}" if begins else _NOTHING)


def _fields(file: IO[bytes], end: int, known: Mapping[int, int], seen: dict[int, tuple[int, int]]) -> int | None:
    """The byte at which it is no protobuf message of these fields (number -> wire type) any more; None: it is one. ``seen`` gets where
    the last of each lies.
    """
    while (at := file.tell()) < end:
        try:
            tag, value = _varint(file), _varint(file)
        except ValueError:
            return end
        number, wire = tag >> 3, tag & 7
        start = file.tell()
        if known.get(number) != wire or (wire == 2 and value > end - start):
            return at
        seen[number] = (start, start + value)
        if wire == 2:
            file.seek(value, os.SEEK_CUR)
    return None


def _varint(file: IO[bytes]) -> int:
    value = 0
    for place in range(_VARINT):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << 7 * place
        if byte[0] < 0x80:
            return value
    raise ValueError("a number that does not end")


def _folder(path: str) -> Found:
    files = sorted(_files(path))
    names = {os.path.relpath(file, path) for file in files}
    if any(os.path.basename(name) == "config.pbtxt" and name.count("/") <= 1 for name in names):
        return Found(Format.TRITON, path)
    if "ensemble.yaml" in names:
        return Found(Format.TRITON, path)
    weights = [file for file in files if file.endswith(".safetensors")]
    if weights:
        for file in weights:
            with open(file, "rb") as opened:
                found = _file(opened, file)
            if found.format is not Format.SAFETENSORS:
                return found
        return Found(Format.HUGGING_FACE if "config.json" in names else Format.SAFETENSORS, path)
    for file in files:
        if file.endswith(_PICKLED):
            with open(file, "rb") as opened:
                found = _file(opened, file)
            if found.format is Format.PICKLE:
                return found
    models = [file for file in files if file.endswith(".onnx")]
    if len(models) == 1:
        with open(models[0], "rb") as opened:
            return _file(opened, models[0])
    words = f"{len(models)} ONNX files: name one" if models else "no model is in this folder"
    return Found(Format.UNKNOWN, path, words)


def _files(path: str) -> Iterator[str]:
    left = _LOOKED
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in files:
            left -= 1
            if left < 0:
                return
            if os.path.isfile(os.path.join(folder, name)):
                yield os.path.join(folder, name)
