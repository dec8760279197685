"""Plays the kubelet for the hub: the lab has no nodes, so something must start the hub's process again when it ends.

As a kubelet does, it waits a little longer after each quick end, and ends the process when its namespace is deleted.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from examples.digits.demo.story import Story
from tests.lab import LabError
from tests.lab.processes import Process, start_process, stop_processes

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # a kubelet's are 10 s and 5 min
NAME = "edgefleet-hub"


class HubPod:
    """Keeps one process running between `start` and `stop`; `restarts` counts how often it had to."""

    def __init__(self, command: Sequence[str | Path], run: Path, env: dict[str, str], story: Story) -> None:
        self._command, self._run, self._env, self._story = command, run, env, story
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: Process | None = None
        self.restarts = 0

    @property
    def log(self) -> Path:
        """What the hub said, over all its starts."""
        return self._run / f"{NAME}.log"

    def start(self) -> None:
        """Begin to keep it running."""
        self._ending.clear()
        self._thread = threading.Thread(target=self._keep_running, daemon=True, name="kubelet")
        self._thread.start()

    def stop(self) -> None:
        """End the process and start no other."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None

    def kill(self) -> None:
        """SIGKILL the process: no word, no clean-up. It is started again as after any end."""
        if self._process is not None and self._process.alive:
            os.kill(self._process.pid, signal.SIGKILL)

    def _keep_running(self) -> None:
        pause = FIRST_PAUSE
        while not self._ending.is_set():
            began = time.monotonic()
            self._run_once()
            if self._ending.is_set():
                return
            self.restarts += 1
            self._story.tell("stage", f"kubelet: the hub ended after {time.monotonic() - began:.0f} s; starting it again ({self.log})")
            self._ending.wait(pause)
            pause = FIRST_PAUSE if time.monotonic() - began > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)

    def _run_once(self) -> None:
        try:
            self._process = process = start_process(self._run, NAME, self._command, env=self._env)
        except LabError as error:  # it ended before it could be looked at
            self._story.tell("stage", str(error))
            return
        while process.alive and not self._ending.wait(0.2):
            pass
        stop_processes([process], grace=10)
