"""The API server itself refuses wrong objects, and says which field and what is allowed."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import LabError
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import install_hub

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "a" * 64
NAMESPACE = "kinds"

MODEL: dict[str, Any] = {
    "apiVersion": "edgefleet.io/v1alpha1",
    "kind": "EdgeModel",
    "metadata": {"name": "weld", "namespace": NAMESPACE},
    "spec": {
        "source": {"repository": "registry.example/vision/weld", "tag": "1.0"},
        "verify": {"keys": {"secretRef": "publishers"}},
        "golden": {"repository": "registry.example/vision/weld-golden", "digest": DIGEST, "min": "90%"},
        "serving": [{"match": {"arch": "amd64"}, "repository": {}}],
        "revoked": [{"digest": DIGEST}],
    },
}
WORKFLOW = {"issuer": "https://token.test", "subject": "https://github.com/acme/weld"}
KEYLESS = {"identities": [WORKFLOW], "trustedRootRef": "sigstore"}
MIXED = {"keys": {"secretRef": "publishers", "threshold": 2}, "keyless": KEYLESS}
FLEET: dict[str, Any] = {
    "apiVersion": "edgefleet.io/v1alpha1",
    "kind": "EdgeFleet",
    "metadata": {"name": "plants", "namespace": NAMESPACE},
    "spec": {
        "siteSelector": {"matchLabels": {"line": "weld"}},
        "modelRef": {"name": "weld"},
        "residency": {"allowedRegions": ["kz", "de"]},
    },
}
POLICY: dict[str, Any] = {
    "apiVersion": "edgefleet.io/v1alpha1",
    "kind": "RolloutPolicy",
    "metadata": {"name": "careful", "namespace": NAMESPACE},
    "spec": {
        "waves": [{"name": "canary", "sites": 1, "perVariant": True}, {"name": "half", "percent": 50}, {"name": "all", "percent": 100}]
    },
}
SITE: dict[str, Any] = {
    "apiVersion": "edgefleet.io/v1alpha1",
    "kind": "EdgeSite",
    "metadata": {"name": "berlin"},
    "spec": {"region": "de", "allowedNamespaces": {}, "hold": {"until": "2030-01-01T00:00:00Z", "reason": "stocktaking"}},
}


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set `path` (dots and indexes) to `value`; `...` deletes it."""

    def apply(body: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = body
        for part in parents:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return apply


def identity(**fields: Any) -> dict[str, Any]:
    """KEYLESS with other fields of its identity; `...` leaves one out."""
    return {**KEYLESS, "identities": [{name: value for name, value in {**WORKFLOW, **fields}.items() if value is not ...}]}


WRONG: list[tuple[str, dict[str, Any], Callable[[dict[str, Any]], None], tuple[str, ...]]] = [
    ("no spec", MODEL, change("spec", ...), ("spec", "Required")),
    ("no verify", MODEL, change("spec.verify", ...), ("spec.verify", "Required")),
    ("verify without keys", MODEL, change("spec.verify.keys", ...), ("spec.verify", "needs keys, keyless or both")),
    ("keyless without a root", MODEL, change("spec.verify.keyless", {"identities": [WORKFLOW]}), ("keyless.trustedRootRef", "Required")),
    ("keyless without identities", MODEL, change("spec.verify.keyless", {**KEYLESS, "identities": []}), ("keyless.identities", "at least 1")),
    ("an identity of any issuer", MODEL, change("spec.verify.keyless", identity(issuer=...)), ("identities[0].issuer", "Required")),
    ("an identity without subject", MODEL, change("spec.verify.keyless", identity(subject=...)), ("identities[0]", "exactly one of subject")),
    ("an identity named twice", MODEL, change("spec.verify.keyless", identity(subjectRegex="x")), ("identities[0]", "exactly one of subject")),
    ("two thresholds", MODEL, change("spec.verify", {**MIXED, "threshold": 2}), ("spec.verify", "write verify.threshold")),
    ("keys without a Secret", MODEL, change("spec.verify.keys.secretRef", ...), ("spec.verify.keys.secretRef", "Required")),
    ("threshold 0", MODEL, change("spec.verify.keys.threshold", 0), ("spec.verify.keys.threshold", "greater than or equal to 1")),
    ("threshold 9", MODEL, change("spec.verify.keys.threshold", 9), ("spec.verify.keys.threshold", "less than or equal to 8")),
    ("negative minReleaseSeq", MODEL, change("spec.verify.minReleaseSeq", -1), ("spec.verify.minReleaseSeq", "greater than or equal to 0")),
    ("warn-only", MODEL, change("spec.verify.warnOnly", True), ("spec.verify.warnOnly", "unknown field")),
    ("no source", MODEL, change("spec.source", ...), ("spec.source", "Required")),
    ("tag and digest", MODEL, change("spec.source.digest", DIGEST), ("spec.source", "exactly one of source.tag and source.digest")),
    ("neither tag nor digest", MODEL, change("spec.source.tag", ...), ("spec.source", "exactly one of source.tag and source.digest")),
    ("short digest", MODEL, change("spec.source", {"repository": "r.example/a", "digest": "sha256:ab"}), ("spec.source.digest", "should match")),
    ("repository without a registry", MODEL, change("spec.source.repository", "weld"), ("spec.source.repository", "should match")),
    ("repository with a tag", MODEL, change("spec.source.repository", "r.example/weld:1"), ("spec.source.repository", "should match")),
    ("tag with a slash", MODEL, change("spec.source.tag", "a/b"), ("spec.source.tag", "should match")),
    ("interval in words", MODEL, change("spec.source.interval", "ten minutes"), ("spec.source.interval", "should match")),
    ("interval of nothing", MODEL, change("spec.source.interval", "0s"), ("spec.source", "interval must be 1s or longer")),
    ("interval as a number", MODEL, change("spec.source.interval", 600), ("spec.source.interval", "must be of type string")),
    ("plain HTTP switch", MODEL, change("spec.source.insecure", True), ("spec.source.insecure", "unknown field")),
    ("no serving entry", MODEL, change("spec.serving", []), ("spec.serving", "at least 1 items")),
    ("17 serving entries", MODEL, change("spec.serving", [{"repository": {}}] * 17), ("spec.serving", "16")),
    ("serving without a runtime", MODEL, change("spec.serving", [{"match": {}}]), ("spec.serving[0]", "exactly one of repository and deployment")),
    ("a URL from the hub", MODEL, change("spec.serving.0.repository.url", "http://x"), ("spec.serving[0].repository.url", "unknown field")),
    ("golden without min", MODEL, change("spec.golden.min", ...), ("spec.golden.min", "Required")),
    ("golden min as a fraction", MODEL, change("spec.golden.min", "0.9"), ("spec.golden.min", "should match")),
    ("golden min of 101%", MODEL, change("spec.golden.min", "101%"), ("spec.golden.min", "should match")),
    ("one digest revoked twice", MODEL, change("spec.revoked", [{"digest": DIGEST}, {"digest": DIGEST}]), ("spec.revoked[1]", "Duplicate value")),
    ("10 MB string", MODEL, change("spec.revoked.0.reason", "x" * 10_000_000), ("too large",)),
    ("2 kB reason", MODEL, change("spec.revoked.0.reason", "x" * 2000), ("spec.revoked[0].reason", "1024")),
    ("model name with a dot", MODEL, change("metadata.name", "weld.qc"), ("metadata.name", "at most 40 characters")),
    ("model name of 41 characters", MODEL, change("metadata.name", "w" * 41), ("metadata.name", "at most 40 characters")),
    ("fleet without a model", FLEET, change("spec.modelRef", ...), ("spec.modelRef", "Required")),
    ("fleet without a selector", FLEET, change("spec.siteSelector", ...), ("spec.siteSelector", "Required")),
    ("unknown operator", FLEET, change("spec.siteSelector.matchExpressions", [{"key": "a", "operator": "Is"}]), ("matchExpressions[0].operator", "supported values")),
    ("empty residency", FLEET, change("spec.residency.allowedRegions", []), ("spec.residency.allowedRegions", "at least 1 items")),
    ("a region twice", FLEET, change("spec.residency.allowedRegions", ["kz", "kz"]), ("spec.residency.allowedRegions[1]", "Duplicate value")),
    ("onDelete Destroy", FLEET, change("spec.onDelete", "Destroy"), ("spec.onDelete", "Retain", "Withdraw")),
    ("suspend as text", FLEET, change("spec.suspend", "yes"), ("spec.suspend", "must be of type boolean")),
    ("policy without waves", POLICY, change("spec.waves", []), ("spec.waves", "at least 1 items")),
    ("17 waves", POLICY, change("spec.waves", [{"name": f"w{n}", "sites": 1} for n in range(17)]), ("spec.waves", "16")),
    ("duplicate wave", POLICY, change("spec.waves.2.name", "half"), ("spec.waves[2]", "Duplicate value")),
    ("wave with sites and percent", POLICY, change("spec.waves.0.percent", 5), ("spec.waves[0]", "exactly one of sites and percent")),
    ("wave with neither", POLICY, change("spec.waves.0.sites", ...), ("spec.waves[0]", "exactly one of sites and percent")),
    ("wave of 0 percent", POLICY, change("spec.waves.1.percent", 0), ("spec.waves[1].percent", "greater than or equal to 1")),
    ("wave of 101 percent", POLICY, change("spec.waves.2.percent", 101), ("spec.waves[2].percent", "less than or equal to 100")),
    ("percent that falls", POLICY, change("spec.waves.2.percent", 20), ("spec", "cumulative")),
    ("share without a sign", POLICY, change("spec.maxFailed.later", "5"), ("spec.maxFailed.later", "should match")),
    ("soak in days", POLICY, change("spec.soak.min", "1d"), ("spec.soak.min", "should match")),
    ("onFailure Retry", POLICY, change("spec.onFailure", "Retry"), ("spec.onFailure", "RollbackAll")),
    ("windows, which do not exist yet", POLICY, change("spec.windows", []), ("spec.windows", "unknown field")),
    ("approval by nobody", POLICY, change("spec.waves.1.approval", {"required": 0}), ("spec.waves[1].approval.required", "greater than or equal to 1")),
    ("region in capitals", SITE, change("spec.region", "KZ"), ("spec.region", "should match")),
    ("hold without a reason", SITE, change("spec.hold.reason", ...), ("spec.hold.reason", "Required")),
    ("hold until some day", SITE, change("spec.hold.until", "soon"), ("spec.hold.until", "date-time")),
    ("keeping one revision", SITE, change("spec.storage.keep", 1), ("spec.storage.keep", "greater than or equal to 2")),
    ("storage in bytes per second", SITE, change("spec.storage.limit", "20GiB"), ("spec.storage.limit", "should match")),
    ("one taint twice", SITE, change("spec.taints", [{"key": "a"}, {"key": "a"}]), ("spec.taints[1]", "Duplicate value")),
]  # fmt: skip


@pytest.fixture(scope="module")
def hub(lab: Lab) -> Cluster:
    install_hub(lab.hub)
    lab.hub.kubectl(
        "apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    )
    return lab.hub


@pytest.mark.parametrize("body", [MODEL, FLEET, POLICY, SITE], ids=lambda body: body["kind"])
def test_the_right_object_is_accepted(hub: Cluster, body: dict[str, Any]) -> None:
    hub.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))


@pytest.mark.parametrize(("body", "mutate", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_object_is_refused_with_field_and_remedy(
    hub: Cluster, body: dict[str, Any], mutate: Callable[[dict[str, Any]], None], said: tuple[str, ...]
) -> None:
    wrong = copy.deepcopy(body)
    mutate(wrong)
    with pytest.raises(LabError) as refusal:
        hub.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(wrong))
    for fragment in said:
        assert fragment in str(refusal.value)[:4000], f"the refusal does not say {fragment!r}"


def test_the_model_of_a_fleet_cannot_be_changed(hub: Cluster) -> None:
    hub.kubectl("create", "-f", "-", stdin=json.dumps(FLEET))
    try:
        with pytest.raises(LabError, match="modelRef is immutable: make another EdgeFleet"):
            hub.kubectl("patch", "edgefleet", "plants", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"modelRef":{"name":"other"}}}')
    finally:
        hub.kubectl("delete", "edgefleet", "plants", "-n", NAMESPACE)


def shown_to_people() -> list[tuple[str, str]]:
    """Every YAML file of examples/, and every YAML block of README."""
    files = [(str(path.relative_to(ROOT)), path.read_text()) for path in sorted((ROOT / "examples").rglob("*.yaml"))]
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    return files + [(f"README.md block {n}", block) for n, block in enumerate(blocks, start=1)]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in shown_to_people()])
def test_every_example_is_accepted(hub: Cluster, text: str) -> None:
    for body in yaml.safe_load_all(text):
        if not isinstance(body, dict) or "apiVersion" not in body:
            continue
        namespace = body["metadata"].get("namespace")
        if namespace:
            named = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            hub.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(named))
        hub.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
