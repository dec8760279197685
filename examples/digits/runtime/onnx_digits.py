"""Serves an ONNX file in MLServer: the user's side of the contract, named by `implementation` in model-settings.json."""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
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
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """All outputs of the graph for the tensors of the request."""
        answers = self._session.run(self._names, {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs})
        outputs = [NumpyCodec.encode_output(name, answer) for name, answer in zip(self._names, answers, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
