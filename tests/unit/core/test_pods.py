"""What a site allows in a pod template, and what pods say of a revision."""

from typing import Any

import pytest
from pydantic import ValidationError

from edgefleet.api.model import DeploymentRuntime, PodTemplate
from edgefleet.api.policy import HardChecks
from edgefleet.core.pods import Place, PodFacts, PodHistory, Trouble, find_forbidden, judge_history, judge_start, plan_deployment
from edgefleet.core.site import Cause

IMAGE = "registry.example/server@sha256:" + "1" * 64
PLACE = Place("plant-7", "edgefleet-pods", "edgefleet-store", "state/pods")


def template(container: dict[str, Any] | None = None, **spec: Any) -> PodTemplate:
    return PodTemplate.model_validate({"spec": {"containers": [{"name": "server", "image": IMAGE, **(container or {})}], **spec}})


@pytest.mark.parametrize("image", ["registry.example/server:2.0", "registry.example/server", "registry.example/server@sha256:12"])
def test_an_image_without_a_digest_is_refused(image: str) -> None:
    with pytest.raises(ValidationError, match="image"):
        template({"image": image})


def test_a_template_is_bounded() -> None:
    with pytest.raises(ValidationError, match="at most 16384"):
        template({"args": ["x" * 17_000]})


def test_what_a_server_needs_is_allowed() -> None:
    one = template(
        {
            "args": ["--port=8080"],
            "env": [{"name": "N", "value": "1"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "ports": [{"containerPort": 8080}],
            "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": 1}},
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
            "securityContext": {"runAsUser": 1000, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        },
        volumes=[{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
        runtimeClassName="nvidia",
    )
    assert find_forbidden(one) == ""


@pytest.mark.parametrize(
    ("container", "spec", "named"),
    [
        ({}, {"hostNetwork": True}, "spec.hostNetwork"),
        ({}, {"hostPID": True}, "spec.hostPID"),
        ({}, {"serviceAccountName": "admin"}, "spec.serviceAccountName"),
        ({}, {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "hostPath; allowed is only emptyDir"),
        ({}, {"volumes": [{"name": "x", "secret": {"secretName": "pull"}}]}, "secret; allowed is only emptyDir"),
        ({}, {"securityContext": {"runAsUser": 0}}, "runAsUser: 0"),
        ({}, {"securityContext": {"sysctls": []}}, "securityContext.sysctls"),
        ({"securityContext": {"privileged": True}}, {}, "privileged: True"),
        ({"securityContext": {"allowPrivilegeEscalation": True}}, {}, "allowPrivilegeEscalation"),
        ({"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}, {}, "capabilities"),
        ({"securityContext": {"procMount": "Unmasked"}}, {}, "procMount"),
        ({"ports": [{"containerPort": 1, "hostPort": 1}]}, {}, "hostPort 1"),
        ({"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}, {}, "secretKeyRef"),
        ({"envFrom": [{"secretRef": {"name": "a"}}]}, {}, "envFrom"),
        ({"volumeDevices": []}, {}, "volumeDevices"),
        ({"volumeMounts": [{"name": "edgefleet-model", "mountPath": "/all"}]}, {}, "the site itself mounts"),
        ({"livenessProbe": {"httpGet": {"host": "192.0.2.1", "port": 80}}}, {}, "names a host"),
        ({}, {"initContainers": [{"name": "i", "image": IMAGE, "securityContext": {"privileged": True}}]}, "initContainers[0]"),
    ],
)
def test_what_reaches_out_of_the_pod_is_refused_by_name(container: dict[str, Any], spec: dict[str, Any], named: str) -> None:
    assert named in find_forbidden(template(container, **spec))


def test_the_deployment_mounts_the_files_and_gives_no_rights() -> None:
    runtime = DeploymentRuntime(template=template({"securityContext": {"runAsUser": 7}}), port=8080, mount_path="/models")
    body = plan_deployment("weld--aaaaaaaa", "weld", runtime, PLACE)
    spec = body["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["volumeMounts"] == [
        {"name": "edgefleet-model", "mountPath": "/models", "subPath": "state/pods/weld--aaaaaaaa", "readOnly": True}
    ]
    assert container["securityContext"] == {"runAsUser": 7, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["volumes"] == [{"name": "edgefleet-model", "persistentVolumeClaim": {"claimName": "edgefleet-store"}}]
    assert (spec["automountServiceAccountToken"], spec["securityContext"]["runAsNonRoot"]) == (False, True)
    assert body["spec"]["selector"]["matchLabels"].items() <= body["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (PodHistory(restarts=2), None),
        (PodHistory(restarts=3), "Restarted"),
        (PodHistory(oom_kills=1), "OOMKilled"),
        (PodHistory(restarts=3, oom_kills=1), "OOMKilled"),
    ],
)
def test_restarts_and_memory_are_the_revisions_fault(history: PodHistory, reason: str | None) -> None:
    found = judge_history(history, HardChecks(max_restarts=2, oom_killed=0))
    assert (found and (found.cause, found.reason)) == (reason and (Cause.POD, reason))


def test_what_keeps_pods_from_starting_is_the_sites() -> None:
    full = PodFacts(unschedulable="0/1 nodes are available: 1 Insufficient memory.")
    away = PodFacts(unschedulable="0/1 nodes are available: 1 node(s) had untolerated taint(s).")
    pulling = PodFacts(waiting=("ImagePullBackOff", "no route to host"))

    def judge(pod: PodFacts, refused: str = "", *, beside: bool = True, patient: bool = True) -> Trouble | None:
        return judge_start([pod], refused, beside=beside, patient=patient)

    assert [one and one.reason for one in (judge(full), judge(full, beside=False), judge(away), judge(pulling))] == [
        "NoRoomBeside",
        "NoRoom",
        None,
        None,
    ]
    beside, refused = judge(full), judge(PodFacts(), "violates PodSecurity")
    assert beside
    assert "switch: Replace" in beside.message
    assert beside.cause is Cause.SERVER
    assert refused
    assert refused.reason == "PodRefused"
    late = [judge(pod, patient=False) for pod in (away, pulling)]
    assert [one and (one.cause, one.reason) for one in late] == [(Cause.SERVER, "Unschedulable"), (Cause.FETCH, "ImageUnavailable")]
