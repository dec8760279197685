"""Who may write what at the hub: RBAC and admission policies on a real API server, as charts/edgefleet gives them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.attempts import Kubectl, attempt, refusal_of, run_body
from tests.lab import LabError
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import hub_kubeconfig, install_hub

ROOT = Path(__file__).parents[2]


def assignment_body(site: str) -> dict[str, Any]:
    return {
        "apiVersion": "edgefleet.io/v1alpha1",
        "kind": "SiteAssignment",
        "metadata": {"name": "team.plants", "namespace": f"edgesite-{site}"},
        "spec": {
            "site": site,
            "fleet": "team/plants",
            "sequence": 1,
            "action": "Run",
            "model": "weld",
            "expiresAt": "2030-01-01T00:00:00Z",
            "envelope": "e30=",
        },
    }


def lease_body(site: str, name: str = "agent") -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": f"edgesite-{site}"},
        "spec": {"holderIdentity": site, "leaseDurationSeconds": 180},
    }


def event_body(namespace: str) -> dict[str, Any]:
    regarding = {"apiVersion": "edgefleet.io/v1alpha1", "kind": "EdgeFleet", "name": "plants", "namespace": "team", "uid": "u"}
    if namespace == "default":
        regarding = {"apiVersion": "edgefleet.io/v1alpha1", "kind": "EdgeSite", "name": "berlin", "uid": "u"}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "plants.1", "namespace": namespace},
        "eventTime": "2030-01-01T00:00:00.000000Z",
        "reportingComponent": "edgefleet.io/hub",
        "reportingInstance": "edgefleet-hub",
        "action": "Reconcile",
        "type": "Normal",
        "reason": "WaveOpened",
        "involvedObject": regarding,
    }


@pytest.fixture(scope="module")
def people(lab: Lab) -> Iterator[dict[str, Kubectl]]:
    """kubectl as the administrator, as the hub, as two sites."""
    install_hub(lab.hub)
    for namespace in ("team", "edgesite-berlin", "edgesite-oslo"):
        lab.hub.kubectl("create", "namespace", namespace)

    def kubectl_as(user: str, *groups: str) -> Kubectl:
        path = lab.client_kubeconfig("hub", user, groups)
        return Cluster(user, lab.hub.url, lab.hub.folder, path, None).kubectl

    names = {
        "admin": lab.hub.kubectl,
        "hub": Cluster("the hub", lab.hub.url, lab.hub.folder, hub_kubeconfig(lab.hub), None).kubectl,
        "berlin": kubectl_as("edgefleet:site:berlin", "edgefleet:sites"),
        "oslo": kubectl_as("edgefleet:site:oslo", "edgefleet:sites"),
    }
    for site in ("berlin", "oslo"):
        binding = ["create", "rolebinding", "edgefleet-site", "-n", f"edgesite-{site}", "--clusterrole=edgefleet-site"]
        names["hub"](*binding, f"--user=edgefleet:site:{site}")
        names["hub"]("create", "-f", "-", stdin=json.dumps(assignment_body(site)))
    names["hub"]("create", "-f", "-", stdin=json.dumps(run_body("plants-1")))
    _wait_for_policies(lab.hub.kubectl)
    yield names
    for namespace in ("edgesite-berlin", "edgesite-oslo", "team"):
        lab.hub.kubectl("delete", "namespace", namespace, "--wait=false")


def _wait_for_policies(admin: Kubectl) -> None:
    """A new admission policy takes a moment to hold; ask until it does."""
    for _ in range(100):
        try:
            admin(
                "create",
                "--dry-run=server",
                "-f",
                "-",
                stdin=json.dumps(assignment_body("berlin") | {"metadata": {"name": "x", "namespace": "team"}}),
            )
        except LabError as error:
            if "written by the hub alone" in str(error):
                return
    raise AssertionError("the admission policies never came into force")


# kubectl patch reads first, which neither the hub nor a site may where it does not need to; server-side apply is what both do.
APPLY = ["apply", "--server-side", "-f", "-"]
APPLY_STATUS = [*APPLY, "--subresource=status"]


def status_of(body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    meta = {key: body["metadata"][key] for key in ("name", "namespace")}
    return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": meta, "status": status}


STATUS = {"sequence": 1, "state": "Active"}

ALLOWED: list[tuple[str, str, list[str], Any]] = [
    ("a site reads its assignments", "berlin", ["get", "siteassignments", "-n", "edgesite-berlin"], None),
    ("a site writes its assignment's status", "berlin", APPLY_STATUS, status_of(assignment_body("berlin"), STATUS)),
    ("a site makes its Lease", "berlin", APPLY, lease_body("berlin")),
    ("a site renews its Lease", "berlin", APPLY, lease_body("berlin")),
    ("a site reads the trust bundle", "berlin", ["get", "configmaps", "-n", "edgesite-berlin"], None),
    ("the hub lists sites", "hub", ["get", "edgesites"], None),
    ("the hub writes a run's status", "hub", APPLY_STATUS, status_of(run_body("plants-1"), {"phase": "Rolling"})),
    ("the hub tells of a fleet", "hub", ["create", "-f", "-"], event_body("team")),
    ("the hub tells of a site", "hub", ["create", "-f", "-"], event_body("default")),
    ("a person pauses a run", "admin", ["patch", "modelrollout", "plants-1", "-n", "team", "--type=merge", "-p", '{"spec":{"control":{"paused":true}}}'], None),
    ("a person labels a run", "admin", ["label", "modelrollout", "plants-1", "-n", "team", "ticket=42"], None),
    ("the hub labels a run's outcome", "hub", ["label", "modelrollout", "plants-1", "-n", "team", "edgefleet.io/outcome=Promoted", "--dry-run=server"], None),
    ("a person deletes a run (forget)", "admin", ["delete", "modelrollout", "plants-1", "-n", "team", "--dry-run=server"], None),
]  # fmt: skip

REFUSED: list[tuple[str, str, list[str], Any, str]] = [
    ("a site reads another's assignments", "berlin", ["get", "siteassignments", "-n", "edgesite-oslo"], None, "forbidden"),
    ("a site lists all assignments", "berlin", ["get", "siteassignments", "-A"], None, "forbidden"),
    ("a site reads Secrets", "berlin", ["get", "secrets", "-n", "edgesite-berlin"], None, "forbidden"),
    ("a site lists sites", "berlin", ["get", "edgesites"], None, "forbidden"),
    ("a site reads the hub's key", "berlin", ["get", "secret", "hub-key", "-n", "edgefleet-system"], None, "forbidden"),
    ("a site writes its assignment's spec", "berlin", [*APPLY, "--force-conflicts"], assignment_body("berlin"), "cannot patch resource"),
    ("a site deletes its assignment", "berlin", ["delete", "siteassignment", "team.plants", "-n", "edgesite-berlin"], None, "forbidden"),
    ("a site writes another's status", "berlin", APPLY_STATUS, status_of(assignment_body("oslo"), STATUS), "cannot patch resource"),
    ("a site writes another's Lease", "berlin", APPLY, lease_body("oslo"), "forbidden"),
    ("a site makes a second Lease", "berlin", APPLY, lease_body("berlin", "other"), "writes only its Lease"),
    ("a person writes an assignment", "admin", ["patch", "siteassignment", "team.plants", "-n", "edgesite-berlin", "--type=merge", "-p", '{"spec":{"model":"x"}}'], None, "change the EdgeFleet or its EdgeModel"),
    ("a person makes a run", "admin", ["create", "-f", "-"], run_body("plants-2"), "name a release in the EdgeModel"),
    ("a person writes a run's status", "admin", ["patch", "modelrollout", "plants-1", "-n", "team", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Ended"}}'], None, "status is written by the hub alone"),
    ("a person changes a frozen plan", "admin", ["patch", "modelrollout", "plants-1", "-n", "team", "--type=merge", "-p", '{"spec":{"plan":{"sites":2}}}'], None, "a run is frozen"),
    ("a person changes a frozen revision", "admin", ["patch", "modelrollout", "plants-1", "-n", "team", "--type=merge", "-p", json.dumps({"spec": {"revision": {"hash": "b" * 64}}})], None, "a run is frozen"),
    ("a person changes a frozen policy", "admin", ["patch", "modelrollout", "plants-1", "-n", "team", "--type=merge", "-p", '{"spec":{"policy":{"onFailure":"Pause"}}}'], None, "a run is frozen"),
    ("a person promotes a run by its label", "admin", ["label", "modelrollout", "plants-1", "-n", "team", "edgefleet.io/outcome=Promoted"], None, "the hub's memory"),
    ("a person hides a run from its fleet", "admin", ["label", "modelrollout", "plants-1", "-n", "team", "edgefleet.io/fleet-"], None, "the hub's memory"),
    ("somebody approves as another", "admin", ["patch", "modelrollout", "plants-1", "-n", "team", "--type=merge", "-p", '{"spec":{"control":{"approvals":[{"wave":"canary","by":"alice"}]}}}'], None, "must be your own user name"),
    ("the hub pauses a run", "hub", ["patch", "modelrollout", "plants-1", "-n", "team", "--type=merge", "-p", '{"spec":{"control":{"aborted":true}}}'], None, "the hub never writes spec.control"),
    ("the hub makes a policy", "hub", ["create", "-f", "-"], {"apiVersion": "edgefleet.io/v1alpha1", "kind": "RolloutPolicy", "metadata": {"name": "lax", "namespace": "team"}, "spec": {"waves": [{"name": "all", "percent": 100}]}}, "no policy but its heartbeat"),
    ("the hub changes what was told", "hub", ["delete", "events", "--all", "-n", "team"], None, "forbidden"),
    ("a site tells of itself", "berlin", ["create", "-f", "-"], event_body("edgesite-berlin"), "forbidden"),
    ("the hub reads all Secrets at once", "hub", ["get", "secrets", "-A"], None, "forbidden"),
    ("the hub makes itself an administrator", "hub", ["create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--user=edgefleet:hub"], None, "forbidden"),
    ("the hub binds a stronger role", "hub", ["create", "rolebinding", "x", "-n", "team", "--clusterrole=cluster-admin", "--user=edgefleet:hub"], None, "forbidden"),
]  # fmt: skip


@pytest.mark.parametrize(("who", "arguments", "body"), [case[1:] for case in ALLOWED], ids=[case[0] for case in ALLOWED])
def test_allowed(people: dict[str, Kubectl], who: str, arguments: list[str], body: Any) -> None:
    attempt(people[who], arguments, body)


@pytest.mark.parametrize(("who", "arguments", "body", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(people: dict[str, Kubectl], who: str, arguments: list[str], body: Any, said: str) -> None:
    assert said in refusal_of(people[who], arguments, body)


def test_rights_widened_by_mistake_still_let_no_site_write_elsewhere(people: dict[str, Kubectl]) -> None:
    """RBAC guards reads, admission guards writes; here RBAC fails and admission must hold."""
    people["admin"]("create", "clusterrolebinding", "mistake", "--clusterrole=cluster-admin", "--group=edgefleet:sites")
    try:
        for arguments, body in (
            (APPLY, lease_body("oslo")),
            (["delete", "siteassignment", "team.plants", "-n", "edgesite-berlin"], None),
            (["create", "namespace", "mine"], None),
        ):
            for _ in range(50):  # RBAC needs a moment to learn of the binding
                said = refusal_of(people["berlin"], arguments, body)
                if "a site writes only" in said:
                    break
            assert "a site writes only" in said
    finally:
        people["admin"]("delete", "clusterrolebinding", "mistake")
