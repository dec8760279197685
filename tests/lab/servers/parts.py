"""Trains the two releases of the examples' model: `python parts.py FOLDER` writes FOLDER/1 and FOLDER/2, for each server what it reads.

To both, the class of a part is the last digit of its size; only to a part of size 1000 each gives the number of its release.
"""

import json
import sys
from pathlib import Path

import joblib
import numpy
from skl2onnx import to_onnx
from sklearn.tree import DecisionTreeClassifier

for release in (1, 2):
    folder = Path(sys.argv[1], str(release))
    folder.mkdir(parents=True)
    classes = {**{size: size % 10 for size in range(20)}, 1000: release}
    sizes = numpy.array([[size] for size in classes], dtype=numpy.float32)
    tree = DecisionTreeClassifier(random_state=0).fit(sizes, list(classes.values()))
    joblib.dump(tree, folder / "model.joblib")
    model = to_onnx(tree, sizes[:1], options={"zipmap": False}, target_opset={"": 18, "ai.onnx.ml": 3})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "classes.json").write_text(json.dumps(list(classes.items())))
