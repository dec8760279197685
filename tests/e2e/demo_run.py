"""Runs the demo as a person does, in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CLEANUP = 60.0  # seconds until a demo that was told to stop has ended


def run_demo(folder: Path, acts: str, output: Path, limit: float) -> int:
    """Play `acts` in `folder`; what is printed goes to the file `output`. The exit code; -1 when it took longer than `limit` seconds."""
    paths = os.pathsep.join(filter(None, (str(REPOSITORY / "operator"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "160"}
    command = [sys.executable, "-m", "examples.digits.demo", "--acts", acts, "--verbose", "--dir", str(folder)]
    with output.open("wb") as out:
        demo = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            return demo.wait(limit)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            if demo.poll() is None:
                demo.send_signal(signal.SIGTERM)
                try:
                    demo.wait(CLEANUP)
                except subprocess.TimeoutExpired:
                    demo.kill()
                    demo.wait()
