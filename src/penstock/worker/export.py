"""Write a PyTorch model as ONNX, and prove before anybody serves it that it answers the same.

    penstock.export.to_onnx(model, example, "digits.onnx")
    python -m penstock.worker.export train:build --weights model.safetensors --input input:float32[1,8,8] --to digits.onnx

The first axis of every input and output is the batch. Parity: ONNX Runtime and PyTorch are given the same inputs, in batches
of several sizes; an element may differ by ``tolerance`` times 1 + its size. Where one differs by more, no file is left.
Needs the extra ``export``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import onnxruntime
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

BATCHES: Final = (1, 2, 5)
_INPUT = re.compile(r"(?:(?P<name>\w+):)?(?P<dtype>\w+)\[(?P<shape>[\d,\s]*)\]")


class ExportFailed(Exception):
    """What kept the model from being written, or from being trusted."""


@dataclass(frozen=True, slots=True)
class Parity:
    """``difference``: the largest that was met, as a share of ``tolerance``'s measure; ``samples`` inputs were compared."""

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    samples: int
    difference: float
    tolerance: float
    same_top1: float | None  # share of samples with the same largest output, where the first output is a matrix


def to_onnx(
    model: nn.Module,
    example: torch.Tensor | Sequence[torch.Tensor],
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = ("output",),
    tolerance: float = 1e-4,
) -> Parity:
    """Export ``model`` in evaluation mode. ``example``: one tensor (or several) whose first axis, of 2 or more, is the batch.

    The parity's inputs are the example's own values, in another order and mixed. Raises ExportFailed; ``path`` is written
    whole or not at all, and never where parity does not hold. The model's mode is as before afterwards.
    """
    given = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    names = tuple(inputs) or (("input",) if len(given) == 1 else tuple(f"input{n}" for n in range(len(given))))
    _check(given, names)
    training = model.training
    model.eval()
    target = os.path.abspath(path)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(target), prefix=".export-") as folder:
            made = os.path.join(folder, "model.onnx")
            _write(model, given, made, names, tuple(outputs))
            found = _parity(model, given, made, target, tolerance)
            with open(made, "rb") as file:
                os.fsync(file.fileno())
            os.replace(made, target)
            return found
    finally:
        model.train(training)


def _check(given: Sequence[torch.Tensor], names: Sequence[str]) -> None:
    if not given or len(names) != len(given):
        raise ExportFailed(f"{len(given)} example inputs, but {len(names)} names for them")
    for name, tensor in zip(names, given, strict=True):
        if tensor.ndim < 1 or tensor.shape[0] < 2:
            raise ExportFailed(
                f"the example {name} has shape {list(tensor.shape)}: give at least 2 samples along axis 0"
            )
    if len({tensor.shape[0] for tensor in given}) > 1:
        raise ExportFailed("the examples have different numbers of samples along axis 0")


def _write(
    model: nn.Module, given: tuple[torch.Tensor, ...], path: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                given,
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: batch} for _ in given),
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, TypeError, ValueError) as error:  # among them torch.onnx.OnnxExporterError
        raise ExportFailed(f"PyTorch could not write the model as ONNX: {type(error).__name__}: {error}") from error


def _parity(model: nn.Module, given: Sequence[torch.Tensor], made: str, path: str, tolerance: float) -> Parity:
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    names = tuple(item.name for item in session.get_inputs())
    worst, samples, agree, ranked = 0.0, 0, 0, 0
    for batch in (*BATCHES, given[0].shape[0]):
        fed = [_batch(tensor, batch) for tensor in given]
        with torch.no_grad():
            told = model(*fed)
        expected = [told] if isinstance(told, torch.Tensor) else list(told)
        answers = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, fed, strict=True)})
        if len(answers) != len(expected):
            raise ExportFailed(f"the model has {len(expected)} outputs, its export {len(answers)}")
        for output, theirs, ours in zip(session.get_outputs(), expected, answers, strict=True):
            worst = max(worst, _compared(output.name, theirs.numpy(), ours, tolerance))
        samples += batch
        if expected[0].ndim == 2 and expected[0].shape[1] > 1:
            ranked += batch
            agree += int((expected[0].argmax(1).numpy() == answers[0].argmax(1)).sum())
    outputs = tuple(item.name for item in session.get_outputs())
    return Parity(path, names, outputs, samples, worst, tolerance, agree / ranked if ranked else None)


def _batch(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` samples of the example's own values: other ones in each batch, and floats mixed of two."""
    order = torch.arange(count) * 7 + count
    first = tensor[order % tensor.shape[0]]
    return (first + tensor[(order + 1) % tensor.shape[0]]) / 2 if tensor.is_floating_point() else first


def _compared(name: str, theirs: Any, ours: Any, tolerance: float) -> float:
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        raise ExportFailed(
            f"output {name}: PyTorch gives {theirs.dtype}{list(theirs.shape)}, the export {ours.dtype}{list(ours.shape)}"
        )
    if not theirs.size:
        return 0.0
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    off = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b) / (1 + np.abs(a)))
    worst = float(np.nan_to_num(off, nan=np.inf).max())
    if worst > tolerance:
        at = np.unravel_index(int(np.nan_to_num(off, nan=np.inf).argmax()), off.shape)
        raise ExportFailed(
            f"output {name}{[int(i) for i in at]}: PyTorch says {float(a[at]):.6g}, the export {float(b[at]):.6g}:"
            f" more apart than {tolerance:g} allows"
        )
    return worst


# ------------------------------------------------------------------------------------------------- the command line


def example_of(text: str, count: int = 4) -> tuple[str, torch.Tensor]:
    """``name:float32[1,8,8]`` -> its name, and made-up samples of that shape. Raises ExportFailed."""
    found = _INPUT.fullmatch(text.strip())
    dtype = getattr(torch, found["dtype"], None) if found else None
    if found is None or not isinstance(dtype, torch.dtype):
        raise ExportFailed(
            f"{text!r} says no input: write NAME:TYPE[SIZES] without the batch, such as input:float32[1,8,8]"
        )
    shape = [int(word) for word in found["shape"].split(",") if word.strip()]
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        made = torch.randn(count, *shape, generator=generator).to(dtype)
    else:
        made = torch.randint(0, 2, (count, *shape), generator=generator).to(dtype)
    return found["name"] or "input", made


def built(factory: str) -> nn.Module:
    """``module:function`` -> the model that it makes. The current folder is looked into first."""
    module, _, name = factory.partition(":")
    if not name:
        raise ExportFailed(f"{factory!r}: write MODULE:FUNCTION, the function that builds the model")
    sys.path.insert(0, os.getcwd())
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ExportFailed(f"{factory} is not there: {error}") from error
    made = build()
    if not isinstance(made, nn.Module):
        raise ExportFailed(f"{factory} gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def load(model: nn.Module, weights: str, key: str | None) -> None:
    """Weights of safetensors, or of a torch.save file, which is read without running what it holds. Raises ExportFailed."""
    try:
        with open(weights, "rb") as file:
            archive = file.read(2) in (b"PK", b"\x80\x02")
        if archive:
            found = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            found = load_file(weights)
        for part in (key or "").split(".") if key else ():
            found = found[part]
        model.load_state_dict(found)
    except (OSError, KeyError, TypeError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ExportFailed(f"the weights of {weights} do not fit: {type(error).__name__}: {error}") from error


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m penstock.worker.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("factory", metavar="MODULE:FUNCTION", help="builds the model")
    parser.add_argument("--weights", metavar="FILE", help="safetensors, or torch.save; default: as it is built")
    parser.add_argument("--key", metavar="NAME", help="where in the file the model's state lies, such as `model`")
    parser.add_argument(
        "--input", action="append", required=True, metavar="NAME:TYPE[SIZES]", help="without the batch; repeat it"
    )
    parser.add_argument("--to", required=True, metavar="FILE")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    asked = parser.parse_args(words)
    try:
        examples = [example_of(text) for text in asked.input]
        model = built(asked.factory)
        if asked.weights:
            load(model, asked.weights, asked.key)
        names = [name for name, _ in examples]
        found = to_onnx(model, [tensor for _, tensor in examples], asked.to, inputs=names, tolerance=asked.tolerance)
    except ExportFailed as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
