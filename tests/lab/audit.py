"""Which rights were really used: read from the audit logs that the lab's API servers write of everybody but themselves and administrators.

A request that was refused for want of a right is none of them. What a right is worth is for tests to judge.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUDIT_LOG = "audit.log"
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:masters", "system:nodes", "system:serviceaccounts:kube-system", "system:unauthenticated"]},
        {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """As RBAC asks for it; `resource` is `plural` or `plural/subresource`."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


@dataclass(frozen=True, slots=True)
class Use:
    """One request that was let through, with the right that it needed; `agent` is the program by its own word, `uri` its path and query."""

    agent: str
    user: str
    groups: tuple[str, ...]
    right: Right
    namespace: str
    name: str
    uri: str


def read_uses(cluster_folder: Path) -> Iterator[Use]:
    """All requests for resources so far at the API server whose files are in this folder."""
    with (cluster_folder / AUDIT_LOG).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield from _read(json.loads(line))


def _read(event: dict[str, Any]) -> Iterator[Use]:
    asked, code = event.get("objectRef"), (event.get("responseStatus") or {}).get("code", 0)
    decision = (event.get("annotations") or {}).get("authorization.k8s.io/decision")
    if not asked or "resource" not in asked or decision != "allow" or code == 403:
        return
    verbs = [event["verb"]]
    if verbs == ["patch"] and code == 201:
        verbs.append("create")  # by server-side apply, which asks for both rights then
    for verb in verbs:
        sub = asked.get("subresource")
        right = Right(asked.get("apiGroup", ""), f"{asked['resource']}/{sub}" if sub else asked["resource"], verb)
        who = event["user"]
        agent, groups = event.get("userAgent", ""), tuple(who.get("groups", ()))
        yield Use(agent, who["username"], groups, right, asked.get("namespace", ""), asked.get("name", ""), event["requestURI"])
