"""Trains the releases of the digits example and writes what `edgefleet model push` and `edgefleet golden push` take.

    python -m examples.digits.train OUT

    OUT/v1/fp32/{model.onnx,model-settings.json}     v1: few examples, fp32 only
    OUT/v2/{fp32,int8}/...                           v2: all examples; int8 for hardware with VNNI
    OUT/v3/fp32/...                                  v3: every label is off by one (a broken labelling job)
    OUT/v4, OUT/v5, OUT/v6                           as v2, fp32 only, other seeds: good models that something else is wrong with
    OUT/v7, OUT/v8                                   as v2, other seeds: right in the exam, and slow or failing in daily use (see RELEASES)
    OUT/golden.jsonl                                 the exam, in the format of `edgefleet golden push`
    OUT/live.jsonl                                   held-out digits for traffic.py, in the same format
    OUT/scores.json                                  {"v1": {"fp32": 0.95}, ...}: share of the golden set answered rightly

Runs in the environment of the model server (scikit-learn, skl2onnx, onnxruntime), takes seconds, and writes the same bytes for
the same versions of these packages. Signing is not its matter: who trains does not hold the keys.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from skl2onnx import to_onnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from examples.digits.data import Digits, Labels, Part, Pixels, split_digits

INPUT, OUTPUT = "pixels", "label"
IMPLEMENTATION = "onnx_digits.OnnxModel"


@dataclass(frozen=True)
class Release:
    """How one version is made. `examples` = how many of the training rows; `shift` is added to every label (modulo 10); `extra` are
    settings of the runtime (runtime/onnx_digits.py)."""

    version: str
    examples: int
    seed: int
    shift: int = 0
    int8: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


RELEASES = (
    Release("v1", examples=600, seed=1),
    Release("v2", examples=898, seed=2, int8=True),
    Release("v3", examples=898, seed=3, shift=1),
    Release("v4", examples=898, seed=4),
    Release("v5", examples=898, seed=5),
    Release("v6", examples=898, seed=6),
    # Both pass the exam: it asks for right answers, of which 90 % are enough, and has no clock.
    Release("v7", examples=898, seed=7, int8=True, extra={"pause": {"every": 20, "seconds": 0.25}}),  # 5 % of the answers are slow
    Release("v8", examples=898, seed=8, int8=True, extra={"maxInk": 382}),  # 3 % of the digits have more: errors
)


def main(out: Path) -> None:
    """Write everything under `out`."""
    digits = split_digits()
    scores = {release.version: _build(release, digits, out / release.version) for release in RELEASES}
    _write_lines(out / "golden.jsonl", digits.golden)
    _write_lines(out / "live.jsonl", digits.live)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    for version, variants in scores.items():
        print(version, *(f"{name} {score:.1%}" for name, score in variants.items()))


def _build(release: Release, digits: Digits, folder: Path) -> dict[str, float]:
    rows = digits.train.first(release.examples)
    network = MLPClassifier((32,), random_state=release.seed, learning_rate_init=0.005, max_iter=150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 150 rounds are enough for the score; the loss may still fall
        network.fit(rows.pixels / 16, (rows.labels + release.shift) % 10)
    # The division by 16 goes into the first layer, so that the graph takes pixels as they come.
    network.coefs_[0] = network.coefs_[0] / 16
    graph = to_onnx(network, rows.pixels[:1], options={"zipmap": False}, name="digits", target_opset=17)
    graph.graph.input[0].name, old = INPUT, graph.graph.input[0].name
    for node in graph.graph.node:
        node.input[:] = [INPUT if name == old else name for name in node.input]
    fp32 = _variant(folder / "fp32", release.extra)
    fp32.write_bytes(graph.SerializeToString())
    files = {"fp32": fp32}
    if release.int8:
        files["int8"] = _variant(folder / "int8", release.extra)
        _quantise(fp32, files["int8"], rows.pixels)
    return {name: _score(file, digits.golden) for name, file in files.items()}


def _variant(folder: Path, extra: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"name": "digits", "implementation": IMPLEMENTATION, "parameters": {"uri": "./model.onnx", "extra": extra}}
    (folder / "model-settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder / "model.onnx"


def _quantise(fp32: Path, int8: Path, calibration: Pixels) -> None:
    """Static int8 with ranges taken from training rows: both matrix products then run in 8-bit integers."""
    # Imported late: it pulls in onnx and sympy and says so loudly.
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[dict[str, Pixels]] = ({INPUT: row[np.newaxis]} for row in calibration[:200])

        def get_next(self) -> dict[str, Pixels] | None:
            return next(self._left, None)

    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(
        fp32,
        int8,
        Rows(),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )


def _score(file: Path, part: Part) -> float:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    labels: Labels = session.run([OUTPUT], {INPUT: part.pixels})[0]
    return float((labels == part.labels).mean())


def _write_lines(path: Path, part: Part) -> None:
    with path.open("w") as out:
        for pixels, label in zip(part.pixels, part.labels, strict=True):
            tensor = {"name": INPUT, "shape": [1, 64], "datatype": "FP32", "data": [float(pixel) for pixel in pixels]}
            out.write(json.dumps({"inputs": [tensor], "expect": {"output": OUTPUT, "label": int(label)}}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
