"""`python -m tests.lab.expected`: writes what `edgefleet check` takes for installed, from charts/install.yaml.

Admission policies and their bindings are kept whole, the hub's roles as single rights. The hub's namespace is kept as `{namespace}`.
"""

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "charts" / "install.yaml"
TARGET = ROOT / "operator" / "edgefleet" / "cli" / "installed.json"
NAMESPACE = "edgefleet-system"
ACCOUNT = "edgefleet-hub"


def plan_expected(text: str) -> str:
    """The content of installed.json for the rendered chart."""
    bodies = [body for body in yaml.safe_load_all(text) if body]
    found = {
        "policies": _specs(bodies, "ValidatingAdmissionPolicy"),
        "bindings": _specs(bodies, "ValidatingAdmissionPolicyBinding"),
        "rights": _rights(bodies),
    }
    return json.dumps(found, indent=1).replace(NAMESPACE, "{namespace}") + "\n"


def _specs(bodies: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return {body["metadata"]["name"]: body["spec"] for body in bodies if body["kind"] == kind}


def _rights(bodies: list[dict[str, Any]]) -> list[dict[str, str]]:
    roles = {(body["kind"], body["metadata"]["name"]): body for body in bodies if body["kind"] in ("Role", "ClusterRole")}
    rights: dict[str, dict[str, str]] = {}
    for body in bodies:
        if body["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if not any(one["kind"] == "ServiceAccount" and one["name"] == ACCOUNT for one in body["subjects"]):
            continue
        where = {"namespace": body["metadata"]["namespace"]} if body["kind"] == "RoleBinding" else {}
        for rule in roles[body["roleRef"]["kind"], body["roleRef"]["name"]]["rules"]:
            for right in _expand(rule):
                rights[json.dumps({**right, **where})] = {**right, **where}
    return list(rights.values())


def _expand(rule: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    for group in rule.get("apiGroups", []):
        for path in rule.get("resources", []):
            resource, _, subresource = path.partition("/")
            for name in rule.get("resourceNames", [""]):
                for verb in rule["verbs"]:
                    right = {"group": group, "resource": resource, "subresource": subresource, "name": name, "verb": verb}
                    found.append({key: value for key, value in right.items() if value})
    return found


def main() -> None:
    """Write it."""
    TARGET.write_text(plan_expected(INSTALL.read_text()))


if __name__ == "__main__":
    main()
