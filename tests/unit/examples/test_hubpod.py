"""The demo's kubelet: it starts the hub again after any end, and not after its own."""

import threading
from pathlib import Path

from examples.digits.demo.hubpod import HubPod
from examples.digits.demo.story import Story


def test_a_killed_hub_is_started_again_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    story, restarted = Story(), threading.Event()
    story.listen(lambda event: restarted.set() if "starting it again" in event.text else None)
    pod = HubPod(["/bin/sh", "-c", "echo began; exec sleep 60"], tmp_path, {}, story)
    pod.start()
    try:
        _wait_for(pod, 1)
        pod.kill()
        assert restarted.wait(10)
        _wait_for(pod, 2)
        assert pod.restarts == 1
    finally:
        pod.stop()
    assert pod.restarts == 1


def _wait_for(pod: HubPod, starts: int) -> None:
    pause = threading.Event()
    for _ in range(200):
        if pod.log.exists() and pod.log.read_text().count("began") == starts:
            return
        pause.wait(0.05)
    raise AssertionError(f"not started {starts} times: {pod.log.read_text() if pod.log.exists() else 'no log'}")
