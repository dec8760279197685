"""Triton's Python backend in the place of its ONNX Runtime backend, which is in no package: the model is model.onnx all the same."""

from pathlib import Path

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"])
        self._session = onnxruntime.InferenceSession(folder / "model.onnx")

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        sizes = triton.get_input_tensor_by_name(request, "input-0").as_numpy()
        classes = self._session.run(["label"], {"X": sizes})[0]
        return triton.InferenceResponse([triton.Tensor("output-0", classes)])
