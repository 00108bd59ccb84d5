"""Runs inside Triton's Python backend, where Triton has no ONNX Runtime backend: requests of a batch in one run.

Copied into the repository as ``model.py``; nothing of Penstock is imported there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        options.inter_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.batched = config["max_batch_size"] > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        given = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs] for r in requests]
        shapes = {tuple(tensor.shape[1:] for tensor in tensors) for tensors in given}
        if not self.batched or len(shapes) > 1:
            return [self._alone(tensors) for tensors in given]
        sizes = [tensors[0].shape[0] for tensors in given]
        together = given[0] if len(given) == 1 else [np.concatenate(tensors) for tensors in zip(*given, strict=True)]
        try:
            answers = self._run(together)
        except Exception:  # the runtime's own errors are of many kinds: one request is at fault, so each for itself
            return [self._alone(tensors) for tensors in given]
        ends = np.cumsum(sizes)
        return [self._answer([a[end - size : end] for a in answers]) for size, end in zip(sizes, ends, strict=True)]

    def _run(self, tensors: Sequence[Any]) -> list[Any]:
        found: list[Any] = self.session.run(self.outputs, dict(zip(self.inputs, tensors, strict=True)))
        return found

    def _alone(self, tensors: Sequence[Any]) -> Any:
        try:
            return self._answer(self._run(tensors))
        except Exception as error:  # as above: told to whoever asked
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _answer(self, arrays: Sequence[Any]) -> Any:
        tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
        return pb_utils.InferenceResponse(tensors)
