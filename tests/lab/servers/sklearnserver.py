"""KServe's scikit-learn server: its image's program is on no package registry, the framework that it is 60 lines around is.

So this is what that program does, on the real framework: the arguments, the one file that it looks for, and its answer when there is none.
"""

import argparse
from pathlib import Path
from typing import Any

import joblib
from kserve import Model, ModelServer, model_server
from kserve.utils.utils import get_predict_input, get_predict_response

ENDINGS = (".joblib", ".pkl", ".pickle")


class SklearnModel(Model):  # type: ignore[misc]
    """The one model file of a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self._folder = folder

    def load(self) -> bool:
        """Raises RuntimeError where there is not exactly one, and what joblib raises."""
        found = [path for path in self._folder.iterdir() if path.suffix in ENDINGS]
        if len(found) != 1:
            raise RuntimeError(f"{self._folder} has {len(found)} files that end in {', '.join(ENDINGS)}; wanted is one")
        self._model = joblib.load(found[0])
        self.ready = True
        return self.ready

    def predict(self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None) -> Any:
        """The class of each row."""
        return get_predict_response(payload, self._model.predict(get_predict_input(payload)), self.name)


def main() -> None:
    """Ends where the model cannot be loaded, as a container should."""
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir", required=True)
    given, _ = parser.parse_known_args()
    model = SklearnModel(given.model_name, Path(given.model_dir))
    model.load()
    ModelServer().start([model])


if __name__ == "__main__":
    main()
