"""A server of your own, in its smallest form: it answers on one port and finds its files under one folder. See custom.yaml.

`classes.json` in that folder lists `[upper bound, class]` by rising bound; a part's class is that of the first bound that is not below its
size. `POST /api/parts/infer` takes and gives the Open Inference Protocol v2, which is what a golden set needs.
"""

import argparse
import bisect
import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "parts"


class Handler(BaseHTTPRequestHandler):
    """`GET /healthz` and `POST /api/parts/infer`."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer goes out in one piece
    bounds: list[float]
    classes: list[int]

    def do_GET(self) -> None:
        """Whoever is listening has read its files."""
        self._answer(200 if self.path == "/healthz" else 404, {})

    def do_POST(self) -> None:
        """One size or more in, as many classes out."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/api/parts/infer":
            return self._answer(404, {"error": f"{self.path} is not served"})
        try:
            sizes = [float(size) for size in json.loads(body)["inputs"][0]["data"]]
            found = [self.classes[bisect.bisect_left(self.bounds, size)] for size in sizes]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return self._answer(400, {"error": repr(error)})
        output = {"name": "output-0", "datatype": "INT64", "shape": [len(found)], "data": found}
        return self._answer(200, {"model_name": NAME, "outputs": [output]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """A line for each request is the gateway's matter."""


def main() -> None:
    """Reads the files, then listens; files that cannot be read end it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--files", type=Path, required=True)
    given = parser.parse_args()
    table = json.loads((given.files / "classes.json").read_text())
    Handler.bounds, Handler.classes = [float(bound) for bound, _ in table], [int(found) for _, found in table]
    # Process 1 of a container is not ended by a TERM that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("0.0.0.0", given.port), Handler).serve_forever()  # noqa: S104


if __name__ == "__main__":
    main()
