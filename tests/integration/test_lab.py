"""The lab itself, against its promises: real servers, apart from each other, and ended by whoever asks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import LabError, binaries, cluster
from tests.lab.cluster import Lab
from tests.lab.processes import POLL, list_processes, start_process, stop_processes
from tests.lab.server import ServerEnvironment, start_model_server

ROOT = Path(__file__).parents[2]


def test_every_cluster_is_ready_and_of_the_release_that_was_asked_for(lab: Lab) -> None:
    for member in (lab.hub, *lab.sites.values()):
        assert member.kubectl("get", "--raw", "/readyz") == "ok"
        said = json.loads(member.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        assert said.startswith(f"v{binaries.chosen_release()}."), member.name


def test_site_clusters_share_nothing(lab: Lab) -> None:
    lab.sites["east"].kubectl("create", "configmap", "only-east")
    names = {site.name: site.kubectl("get", "configmaps", "-o", "name") for site in lab.sites.values()}
    lab.sites["east"].kubectl("delete", "configmap", "only-east")
    assert "configmap/only-east" in names["east"]
    assert "configmap/only-east" not in names["west"]


def test_a_client_certificate_is_somebody_at_its_own_cluster_only(lab: Lab) -> None:
    config = lab.client_kubeconfig("hub", "site:berlin", ["sites"])
    assert config.stat().st_mode & 0o777 == 0o600
    hub = dataclasses.replace(lab.hub, kubeconfig=config)
    who = json.loads(hub.kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]
    assert (who["username"], who["groups"]) == ("site:berlin", ["sites", "system:authenticated"])
    with pytest.raises(LabError, match='User "site:berlin" cannot list resource "secrets"'):
        hub.kubectl("get", "secrets", "-A")
    elsewhere = ["--server", lab.sites["east"].url, "--insecure-skip-tls-verify"]
    with pytest.raises(LabError, match=r"(?i)logged in|Unauthorized"):
        hub.kubectl("get", "--raw", "/api", *elsewhere)


def test_the_controller_manager_signs_requests(lab: Lab) -> None:
    lab.require_controllers()
    foreign = dataclasses.replace(lab.hub, authority=None)  # as for an existing cluster, whose CA key nobody has
    config = foreign.client_kubeconfig("site:oslo", ["sites"])
    who = dataclasses.replace(lab.hub, kubeconfig=config).kubectl("auth", "whoami", "-o", "json")
    assert json.loads(who)["status"]["userInfo"]["username"] == "site:oslo"


def test_a_deleted_namespace_goes(lab: Lab) -> None:
    lab.hub.kubectl("create", "namespace", "brief")
    lab.hub.kubectl("create", "configmap", "inside", "-n", "brief")
    lab.hub.kubectl("delete", "namespace", "brief", "--wait", "--timeout=30s")
    assert lab.hub.kubectl("get", "namespace", "brief", "--ignore-not-found") == ""


def test_down_ends_a_lab_whose_starter_was_killed(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    command = [sys.executable, "-m", "tests.lab", "up", "--dir", str(folder), "--sites", "1"]
    with (tmp_path / "up.log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as starter:
        _wait(lambda: (folder / "run" / "east-apiserver.pid").exists() or starter.poll() is not None)
        starter.kill()
        assert starter.wait(10) == -signal.SIGKILL, (tmp_path / "up.log").read_text()
    assert _running_in(folder)
    ended = cluster.down(folder)
    assert {"etcd", "east-apiserver"} <= set(ended)
    assert _running_in(folder) == []
    assert cluster.down(folder) == []
    assert lab.hub.kubectl("get", "--raw", "/readyz") == "ok"  # the lab beside it never noticed


def test_a_second_up_in_the_same_folder_is_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="a lab already runs in"):
        Lab.start(lab.folder)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "etcd" / "member"
    precious.mkdir(parents=True)
    assert cluster.down(tmp_path) == []
    with pytest.raises(LabError, match="is no lab, but holds etcd"):
        Lab.start(tmp_path)
    assert precious.exists()


def test_a_recycled_pid_is_not_killed(tmp_path: Path) -> None:
    process = start_process(tmp_path / "run", "sleeper", ["sleep", "60"])
    record = tmp_path / "run" / "sleeper.pid"
    _wait(record.exists)
    assert [found.pid for found in list_processes(tmp_path / "run")] == [process.pid]
    record.write_text(record.read_text().replace(f" {process.started} ", f" {process.started - 100} "))
    (tmp_path / ".edgefleet-lab").touch()
    assert cluster.down(tmp_path) == []
    assert process.alive
    stop_processes([process])
    assert not process.alive


def test_a_process_that_ignores_term_is_killed(tmp_path: Path) -> None:
    process = start_process(tmp_path, "stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    process.wait_until(lambda: process.log.read_text() == "ready\n", "ready", 10)
    stop_processes([process], grace=0.2)
    assert not process.alive


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    process = start_process(tmp_path, "broken", ["sh", "-c", "echo no such flag; exit 3"])
    with pytest.raises(LabError, match=r"(?s)broken ended before ready; its log:.*no such flag"):
        process.wait_until(lambda: False, "ready", 10)
    stop_processes([process])


def test_labs_of_dead_sessions_are_swept(tmp_path: Path) -> None:
    left = tmp_path / "left"
    process = start_process(left / "run", "sleeper", ["sleep", "60"])
    _wait((left / "run" / "sleeper.pid").exists)
    (left / ".edgefleet-lab").touch()
    (left / "lab.json").write_text(json.dumps({"owner": [os.getpid(), 1]}))  # this pid, but a process of long ago
    cluster.sweep(tmp_path)
    stop_processes([process])  # reaps what sweep ended
    assert not left.exists()
    assert not process.alive


def test_kubebuilder_assets_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("EDGEFLEET_KUBERNETES", raising=False)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(LabError, match="has no etcd and no kube-apiserver"):
        binaries.fetch_control_plane()
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch()
    assert binaries.fetch_control_plane() == binaries.ControlPlane(tmp_path / "etcd", tmp_path / "kube-apiserver", None)
    assert "certificate requests are not signed" in capsys.readouterr().err


def test_a_release_that_is_not_built_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_KUBERNETES", "1.20")
    with pytest.raises(LabError, match=f"there are {binaries.NEWEST} and {binaries.OLDEST}"):
        binaries.fetch_control_plane()
    monkeypatch.setenv("EDGEFLEET_KUBERNETES", binaries.OLDEST)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "/nowhere")
    with pytest.raises(LabError, match="unset one"):
        binaries.fetch_control_plane()


def test_a_model_server_is_ready_and_empty(server_env: ServerEnvironment, tmp_path: Path) -> None:
    server = start_model_server(server_env, tmp_path / "run", "server", tmp_path / "models", tmp_path / "runtime")
    try:
        assert list((tmp_path / "models").iterdir()) == [tmp_path / "models" / "settings.json"]
        assert server.process.alive
    finally:
        server.stop()
    assert not server.process.alive


def _running_in(folder: Path) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def _wait(fact: Callable[[], bool], limit: float = 30) -> None:
    deadline = time.monotonic() + limit
    while not fact():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(POLL)
