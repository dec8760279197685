"""Each verb that the chart gives the hub is one that a line of the hub's source uses, and each that is used is given.

What the source asks for is read from its calls `api.VERB(KIND, ...)`; what has another reason stands in `ELSE` with it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgefleet
from edgefleet.kube import resources
from tests.lab.helm import render
from tests.lab.manifests import HUB_CHART, HUB_NAMESPACE, read_documents

SOURCE = Path(edgefleet.__file__).parent / "hub"
VERBS = {
    "get": {"get"},
    "list": {"list"},
    "ListWatch": {"list", "watch"},
    "create": {"create"},
    "patch": {"patch"},
    "apply": {"create", "patch"},  # server-side apply also makes what is not there
    "delete": {"delete"},
}
KOPF = ("edgemodels", "edgefleets", "rolloutpolicies", "modelrollouts")
BIND = "the API server lets nobody bind a role (edgefleet-site) with rights that he has not"
ELSE = {
    **{(kind, verb): "kopf watches it" for kind in KOPF for verb in ("list", "watch")},
    ("siteassignments/status", "patch"): BIND,
    ("signers", "approve"): "approving a certificate for this signer asks for it",
}


def used() -> dict[tuple[str, str], str]:
    """(resource, verb) to a line that uses it."""
    found: dict[tuple[str, str], str] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            kind = next(
                (
                    k
                    for one in call.args
                    if isinstance(one, ast.Name) and isinstance(k := getattr(resources, one.id, None), resources.Resource)
                ),
                None,
            )
            if name not in VERBS or kind is None:
                continue
            below = next(
                (word.value.value for word in call.keywords if word.arg == "subresource" and isinstance(word.value, ast.Constant)), ""
            )
            for verb in VERBS[name] - ({"create"} if below and name == "apply" else set()):
                found[f"{kind.plural}/{below}" if below else kind.plural, verb] = f"{file.name}:{call.lineno}"
    return found


def given() -> Iterator[tuple[str, str]]:
    """(resource, verb) of all roles that are bound to the hub's account."""
    rendered: list[dict[str, Any]] = read_documents(render(HUB_CHART, namespace=HUB_NAMESPACE))
    roles = {(one["kind"], one["metadata"]["name"]): one for one in rendered if one["kind"] in ("Role", "ClusterRole")}
    for binding in (one for one in rendered if one["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        if {"kind": "ServiceAccount", "name": "edgefleet-hub", "namespace": HUB_NAMESPACE} in binding["subjects"]:
            for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]["rules"]:
                yield from ((resource, verb) for resource in rule["resources"] for verb in rule["verbs"])


def test_the_hub_may_do_what_it_does_and_nothing_else() -> None:
    needed = used()
    allowed = set(given())
    assert {pair: line for pair, line in needed.items() if pair not in allowed} == {}, "used and not given"
    assert sorted(allowed - needed.keys() - ELSE.keys()) == [], "given and not used"
    assert sorted(ELSE.keys() - allowed) == [], "excused and not given"


def test_no_rule_gives_everything() -> None:
    assert not [pair for pair in given() if "*" in pair or pair[1] in ("escalate", "bind", "impersonate")]
