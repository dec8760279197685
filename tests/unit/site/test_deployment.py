"""The files that pods mount, and what is counted of pods; the pods themselves are in tests/integration/test_deployment.py."""

from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.policy import HardChecks
from edgefleet.core.pods import MANAGED_LABEL, SERVED_LABEL, Place, judge_history
from edgefleet.site.runtimes import ServerUnreachable
from edgefleet.site.runtimes.deployment import PodRecord, Pods

NAME = "weld--aaaaaaaa"


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    """Nothing is watched yet."""
    api: Any = type("Api", (), {"server": "https://site.example"})()
    (tmp_path / "pods").mkdir()
    return Pods(api, Place("plant-7", "models", "store", "pods"), tmp_path / "pods")


async def test_files_are_links_and_stay_where_they_are_mounted(pods: Pods, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    files = {"1/model.onnx": blob}
    await pods.place(NAME, files)
    placed = tmp_path / "pods" / NAME / "1" / "model.onnx"
    assert placed.samefile(blob)
    assert (placed.parent.stat().st_mode & 0o777, placed.stat().st_mode & 0o777) == (0o755, 0o444)
    folder = (tmp_path / "pods" / NAME).stat().st_ino
    await pods.place(NAME, files)
    assert (tmp_path / "pods" / NAME).stat().st_ino == folder, "a pod may have mounted it"
    assert pods.placed() == {NAME}


async def test_what_a_crash_left_half_is_not_taken_for_whole(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "pods" / f"{NAME}.new").mkdir()
    (tmp_path / "pods" / f"{NAME}.new" / "half").touch()
    assert pods.placed() == set()
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    await pods.place(NAME, {"model.onnx": blob})
    assert {path.name for path in (tmp_path / "pods" / NAME).iterdir()} == {"model.onnx"}


def test_a_cluster_that_has_said_nothing_is_no_cluster_without_pods(pods: Pods) -> None:
    with pytest.raises(ServerUnreachable, match="has not said yet"):
        pods.ready_endpoint(NAME, 8080)


def pod(uid: str, restarts: int, ended: str | None = None, at: str = "2026-11-28T06:00:00Z") -> PodRecord:
    last = {"terminated": {"reason": ended, "exitCode": 137, "finishedAt": at}} if ended else {}
    container = {"name": "server", "restartCount": restarts, "lastState": last}
    metadata = {"name": uid, "uid": uid, "namespace": "models", "labels": {MANAGED_LABEL: "edgefleet", SERVED_LABEL: NAME}}
    return PodRecord.model_validate({"metadata": metadata, "status": {"containerStatuses": [container]}})


def test_restarts_are_summed_over_pods_and_a_kill_counts_once(pods: Pods) -> None:
    for one in (pod("a", 1, "OOMKilled"), pod("a", 1, "OOMKilled"), pod("b", 2, "Error")):
        pods._pod_changed(("models", one.metadata.name), None, one)
    history = pods.history(NAME)
    assert (history.restarts, history.oom_kills) == (3, 1)
    assert "exit code 137" in history.said
    trouble = judge_history(history, HardChecks())
    assert trouble is not None
    assert trouble.reason == "OOMKilled"
