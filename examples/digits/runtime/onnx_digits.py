"""Serves an ONNX file in MLServer: the user's side of the contract, named by `implementation` in model-settings.json.

Two settings under `parameters.extra` make a release that answers as rightly as others and is still worse in daily use:

    pause: {every: 20, seconds: 0.25}    after every 20 answers it tidies its memory, and that customer waits (v7 of the example)
    maxInk: 382                          an image with more ink than this is an error, as of a buffer that is too small (v8)
"""

import asyncio
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort
from digits_confidence import CONFIDENCE
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import MLServerError
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    """One ONNX session; inputs and outputs keep the names that they have in the graph."""

    async def load(self) -> bool:
        """Read the file that `parameters.uri` names. One thread: a site's cores belong to its machines."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(await get_model_uri(self._settings), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._confidence = CONFIDENCE.labels(self.name)
        self._extra = self._settings.parameters.extra or {}
        self._count = itertools.count(1)
        # Threads of its own: who waits here keeps no other model of this server waiting.
        self._elsewhere = ThreadPoolExecutor(8, self.name)
        return True

    async def unload(self) -> bool:
        """Let the threads go."""
        self._elsewhere.shutdown(wait=False)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """All outputs of the graph for the tensors of the request."""
        inputs = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        limit = self._extra.get("maxInk")
        if limit and any(pixels.sum(axis=1).max() > limit for pixels in inputs.values()):
            raise MLServerError(f"an image has more ink than {limit}", 500)
        answers = dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        for sure in answers["probabilities"].max(axis=1):
            self._confidence.observe(sure)
        pause = self._extra.get("pause")
        if pause and next(self._count) % pause["every"] == 0:
            # A wait and not work: the example's sites share one machine, and only this release shall be slow.
            await asyncio.get_running_loop().run_in_executor(self._elsewhere, time.sleep, pause["seconds"])
        outputs = [NumpyCodec.encode_output(name, answer) for name, answer in answers.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
