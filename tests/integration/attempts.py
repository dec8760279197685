"""What people and programs try at the hub with kubectl, and what they are told: for the tests of rights and of teams."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.lab import LabError

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"
Kubectl = Callable[..., str]

REVISION: dict[str, Any] = {
    "hash": HEX,
    "model": "weld",
    "repository": "registry.example/weld",
    "digest": DIGEST,
    "version": "1",
    "seq": 1,
    "variants": [{"name": "fp32", "digest": DIGEST, "size": 1, "arch": "amd64"}],
    "serving": [{"repository": {}}],
}


def run_body(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "edgefleet.io/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": name, "namespace": "team", "labels": {"edgefleet.io/fleet": "plants"}},
        "spec": {
            "fleet": "plants",
            "number": 1,
            "revision": REVISION,
            "policy": {"waves": [{"name": "canary", "sites": 1}]},
            "plan": {"hash": HEX, "sites": 1, "chunks": 1},
        },
    }


def attempt(kubectl: Kubectl, arguments: Sequence[str], body: dict[str, Any] | None) -> None:
    """One command, with `body` as what it reads. Raises LabError with what it was told."""
    kubectl(*arguments, stdin=json.dumps(body) if body else None)


def refusal_of(kubectl: Kubectl, arguments: Sequence[str], body: dict[str, Any] | None) -> str:
    """What a command is told that must be refused."""
    with pytest.raises(LabError) as refusal:
        attempt(kubectl, arguments, body)
    return str(refusal.value)
