"""ONNX files of a few nodes, each with the one property that its test is about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 8
Shape = Sequence[int | str]


def save(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Any = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(list(nodes), "model", list(inputs), list(outputs), list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.save(model, str(path))
    return path


def value(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def constant(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def mlp(path: Path, sizes: Sequence[int], seed: int = 0) -> Path:
    """Layers of these sizes, x to y: [batch, first] to [batch, last]."""
    chance = np.random.default_rng(seed)
    nodes, constants, at = [], [], "x"
    for place, (into, out) in enumerate(pairwise(sizes)):
        weights = chance.standard_normal((into, out)) / np.sqrt(into)
        constants += [constant(f"w{place}", weights.astype("f4")), constant(f"b{place}", np.zeros(out, "f4"))]
        last = place == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [at, f"w{place}", f"b{place}"], ["y" if last else f"g{place}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{place}"], [f"h{place}"]))
        at = f"h{place}"
    return save(path, nodes, [value("x", ["batch", sizes[0]])], [value("y", ["batch", sizes[-1]])], constants)


def doubled(path: Path, shape: Shape = ("batch", 4), kind: int = TensorProto.FLOAT) -> Path:
    """y = x + x, of any type of number."""
    return save(
        path, [helper.make_node("Add", ["x", "x"], ["y"])], [value("x", shape, kind)], [value("y", shape, kind)]
    )


def words(path: Path) -> Path:
    """y = x, of text."""
    node = helper.make_node("Identity", ["x"], ["y"])
    text = TensorProto.STRING
    return save(path, [node], [value("x", ["batch", 2], text)], [value("y", ["batch", 2], text)])


def gather(path: Path) -> Path:
    """Row ``x`` of a table of ten: an index beyond it fails when it runs, and with it the whole batch."""
    table = constant("table", np.arange(20, dtype="f4").reshape(10, 2))
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return save(path, [node], [value("x", ["batch"], TensorProto.INT64)], [value("y", ["batch", 2])], [table])


def centred(path: Path) -> Path:
    """y = x less the mean over the batch: rows change each other's answers."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return save(path, nodes, [value("x", ["batch", 3])], [value("y", ["batch", 3])])


def two(path: Path) -> Path:
    """Two inputs, two outputs, types that differ: total = a + b, double = 2 a."""
    nodes = [
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "c"], ["total"]),
        helper.make_node("Add", ["a", "a"], ["double"]),
    ]
    inputs = [value("a", ["n", 2]), value("b", ["n", 2], TensorProto.INT32)]
    return save(path, nodes, inputs, [value("total", ["n", 2]), value("double", ["n", 2])])


def square(path: Path, start: int = 0) -> Path:
    """A run of as many steps as ``x`` says: slow on demand. y = x."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [64, 64]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["steps"], keepdims=0),
        helper.make_node("Loop", ["steps", "yes", "zeros"], ["done"], body=body),
        helper.make_node("ReduceMax", ["done"], ["nought"], keepdims=0),
        helper.make_node("Cast", ["nought"], ["none"], to=TensorProto.INT64),
        helper.make_node("Add", ["x", "none"], ["y"]),
    ]
    kind = TensorProto.INT64
    constants = [constant("yes", np.array(True)), constant("zeros", np.zeros((64, 64), "f4"))]
    return save(path, nodes, [value("x", ["batch", 1], kind)], [value("y", ["batch", 1], kind)], constants)
