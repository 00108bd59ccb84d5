"""One loaded model version: the only process in which ONNX Runtime lives.

``python -m penstock.serving.runtimes.onnx.executor JSON`` with three descriptors: the socket to the front, and the shared
memory of what comes and what goes. It ends when the front does, so unloading is its end, and the memory is the kernel's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnxruntime as ort

from penstock.serving.runtimes.onnx.exchange import Reader, Region, aligned, pack
from penstock.serving.runtimes.onnx.tensors import DTYPES, elements, join

TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
KEEP_BYTES = 16 << 20  # of shared memory between batches
ALIKE = 1e-3
_PR_SET_PDEATHSIG = 1
_QUIET = 3  # ONNX Runtime's log: errors


class Unfit(Exception):
    """The file cannot be served; the message says why."""


def described(arguments: Iterable[Any]) -> list[list[Any]]:
    """[name, datatype, shape, word of the first axis] of each input or output."""
    found = []
    for argument in arguments:
        if argument.type not in TYPES:
            raise Unfit(f"{argument.name} is a {argument.type}, which the protocol has no word for")
        shape = [size if isinstance(size, int) and size >= 0 else -1 for size in argument.shape]
        word = argument.shape[0] if argument.shape and isinstance(argument.shape[0], str) else None
        found.append([argument.name, TYPES[argument.type], shape, word])
    return found


def batches(inputs: list[list[Any]], outputs: list[list[Any]]) -> bool:
    """Whether the first axis of everything is dynamic and, where it has a word, the same one."""
    every = [*inputs, *outputs]
    words = {word for *_, word in every if word is not None}
    return bool(inputs) and all(shape and shape[0] == -1 for _, _, shape, _ in every) and len(words) <= 1


class Model:
    """A session and what it takes and gives."""

    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = described(self.session.get_inputs())
        self.outputs = described(self.session.get_outputs())
        self.names = [name for name, *_ in self.outputs]
        self.batching = batches(self.inputs, self.outputs)

    def made_up(self, rows: int) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs of that many different rows, small enough to be an index; unknown axes are 1."""
        chance = np.random.default_rng(0)
        feeds = {}
        for name, datatype, declared, _ in self.inputs:
            shape = [1 if size == -1 else size for size in declared]
            if self.batching:
                shape[0] = rows
            if datatype == "BYTES":
                feeds[name] = np.full(shape, "", dtype=object)
            elif DTYPES[datatype].kind == "f":
                feeds[name] = chance.random(shape).astype(DTYPES[datatype])
            else:
                feeds[name] = np.zeros(shape, DTYPES[datatype])
        return feeds

    def warm(self, sizes: Iterable[int]) -> str:
        """A run of each size; then, whether rows that are computed together are as if alone. Answers what went wrong."""
        try:
            for rows in sizes if self.batching else (1,):
                self.session.run(self.names, self.made_up(rows))
            if self.batching and not self._rows_are_apart():
                self.batching = False
                return "rows of one batch change each other's answers, so requests are not put together"
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base; the model may still serve real inputs
            return f"made-up inputs did not run: {error!s:.300}"
        return ""

    def _rows_are_apart(self) -> bool:
        feeds = self.made_up(2)
        both = self.session.run(self.names, feeds)
        for row in range(2):
            alone = self.session.run(self.names, {name: array[row : row + 1] for name, array in feeds.items()})
            for together, single in zip(both, alone, strict=True):
                if len(together) != 2 or together[row : row + 1].shape != single.shape:
                    return False
                if not _alike(together[row : row + 1], single):
                    return False
        return True


def _alike(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.dtype.kind != "f":
        return bool((one == other).all())
    return bool(np.allclose(one, other, rtol=ALIKE, atol=ALIKE, equal_nan=True))


def read(model: Model, message: dict[str, Any], memory: memoryview) -> dict[str, np.ndarray[Any, Any]]:
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for (name, datatype, _, _), (offset, size, shape) in zip(model.inputs, message["in"], strict=True):
        content = memory[offset : offset + size]
        if datatype == "BYTES":
            words = [bytes(part).decode("utf-8", "surrogateescape") for part in elements(content, name)]
            feeds[name] = np.array(words, dtype=object).reshape(shape)
        else:
            feeds[name] = np.frombuffer(content, DTYPES[datatype]).reshape(shape)
    return feeds


def write(answers: Iterable[tuple[str, str, Any]], region: Region) -> tuple[list[Any], int]:
    """Lay the outputs into shared memory; answers [name, datatype, shape, offset, bytes] of each, and its size."""
    pieces: list[tuple[str, str, list[int], Any]] = []
    for name, datatype, array in answers:
        if datatype == "BYTES":
            content: Any = join(_word(value) for value in array.ravel())
        else:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        pieces.append((name, datatype, list(array.shape), content))
    offsets, end = aligned(len(content) for *_, content in pieces)
    memory = region.grow(end)
    told = []
    for offset, (name, datatype, shape, content) in zip(offsets, pieces, strict=True):
        memory[offset : offset + len(content)] = content
        told.append([name, datatype, shape, offset, len(content)])
    return told, region.size


def _word(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def compute(model: Model, message: dict[str, Any], coming: Region, going: Region) -> dict[str, Any]:
    """One batch: read, run, write. What the model refuses is an answer, not this process' end."""
    began = time.perf_counter_ns()
    wanted = message["out"] or model.names
    try:
        feeds = read(model, message, coming.view(message["size"]))
        ready = time.perf_counter_ns()
        results = model.session.run(wanted, feeds)
        done = time.perf_counter_ns()
        kinds = {name: datatype for name, datatype, *_ in model.outputs}
        told, size = write(((name, kinds[name], array) for name, array in zip(wanted, results, strict=True)), going)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base
        status = 400 if type(error).__name__ == "InvalidArgument" else 500
        return {"error": f"{error!s:.500}", "status": status}
    if size > KEEP_BYTES and sum(entry[-1] for entry in told) < KEEP_BYTES // 4:
        going.shrink(KEEP_BYTES // 4)
    return {"out": told, "size": size, "ns": [ready - began, done - ready, time.perf_counter_ns() - done]}


def serve(link: socket.socket, model: Model, coming: Region, going: Region) -> None:
    reader = Reader()
    while data := link.recv(1 << 16):
        for message in reader.feed(data):
            link.sendall(pack(compute(model, message, coming, going)))


def load(options: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> Model | None:
    """The model, warmed; None, and said why, where it cannot be served."""
    began = time.monotonic()
    try:
        model = Model(options["path"], options["threads"])
    except Exception as error:  # noqa: BLE001 - a file from anywhere: whatever it breaks, the front is told
        say({"refused": f"{error!s:.1000}"})
        return None
    loaded = time.monotonic()
    say({"loaded": loaded - began})
    note = model.warm(options["warm"])
    say({
        "ready": {"inputs": model.inputs, "outputs": model.outputs, "batching": model.batching, "note": note},
        "stages": {"load": loaded - began, "warm": time.monotonic() - loaded},
    })  # fmt: skip
    return model


def main() -> int:
    options = json.loads(sys.argv[1])
    # The front decides when it is over; a signal to the whole group must not cut off what it still answers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options["front"]:
        return 1
    link = socket.socket(fileno=options["link"])
    coming, going = Region(options["coming"]), Region(options["going"])
    model = load(options, lambda message: link.sendall(pack(message)))
    if model is None:
        return 1
    try:
        serve(link, model, coming, going)
    except (ConnectionError, struct.error):
        return 0  # the front has gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
