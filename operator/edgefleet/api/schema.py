"""From the pydantic kinds to CustomResourceDefinitions: structural schemas with bounds, CEL rules and printer columns.

Decides how a kind looks to `kubectl`. Defaults stand only in specs: one inside status would invent facts. The one exception says that
nothing was observed yet; without it kstatus takes an object that the hub has not seen for finished, and those who wait for it go on too
early. What pydantic says in JSON Schema and a structural schema may not say (references, null, const, property names) is rewritten or
dropped here.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from edgefleet.api.assignment import SiteAssignment
from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import GROUP, VERSION, Kind
from edgefleet.api.model import EdgeModel
from edgefleet.api.policy import RolloutPolicy
from edgefleet.api.rollout import ModelRollout
from edgefleet.api.site import EdgeSite

_DROPPED = {"title", "const", "propertyNames", "discriminator", "$defs", "additionalProperties"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`; priority 1 shows only with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class KindEntry:
    """How one kind is registered."""

    model: type[Kind]
    plural: str
    short: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS = (
    KindEntry(
        EdgeModel,
        "edgemodels",
        ("emodel",),
        True,
        (
            Column("Tag", ".spec.source.tag"),
            Column("Verified", ".status.release.version"),
            Column("Seq", ".status.release.seq", "integer"),
            Column("Source", _condition("SourceVerified", "status")),
            Column("Reason", _condition("SourceVerified", "reason")),
            Column("Message", _condition("SourceVerified", "message"), priority=1),
            _AGE,
        ),
    ),
    KindEntry(
        EdgeFleet,
        "edgefleets",
        ("efleet",),
        True,
        (
            Column("Model", ".spec.modelRef.name"),
            Column("Stable", ".status.stableVersion"),
            Column("Target", ".status.targetVersion"),
            Column("Sites", ".status.sites.desired", "integer"),
            Column("Updated", ".status.sites.updated", "integer"),
            Column("Failed", ".status.sites.failed", "integer"),
            Column("Skipped", ".status.sites.skipped", "integer"),
            Column("Ready", _condition("Ready", "status")),
            Column("Reason", _condition("Ready", "reason")),
            Column("Progress", _condition("Progressing", "reason")),
            Column("Message", _condition("Ready", "message"), priority=1),
            _AGE,
        ),
    ),
    KindEntry(
        RolloutPolicy,
        "rolloutpolicies",
        ("rpolicy",),
        True,
        (
            Column("FirstWave", ".spec.waves[0].name"),
            Column("Soak", ".spec.soak.min"),
            Column("OnFailure", ".spec.onFailure"),
            _AGE,
        ),
    ),
    KindEntry(
        EdgeSite,
        "edgesites",
        ("esite",),
        False,
        (
            Column("Region", ".spec.region"),
            Column("Arch", ".status.hardware.arch"),
            Column("Features", ".status.hardware.features"),
            Column("Connected", _condition("Connected", "status")),
            Column("Ready", _condition("Ready", "status")),
            Column("Reason", _condition("Ready", "reason")),
            Column("Agent", ".status.agentVersion", priority=1),
            Column("Heard", _condition("Connected", "message"), priority=1),
            _AGE,
        ),
    ),
    KindEntry(
        ModelRollout,
        "modelrollouts",
        ("mrollout",),
        True,
        (
            Column("Version", ".spec.revision.version"),
            Column("Phase", ".status.phase"),
            Column("Wave", ".status.wave"),
            Column("Sites", ".status.sites.desired", "integer"),
            Column("Updated", ".status.sites.updated", "integer"),
            Column("Failed", ".status.sites.failed", "integer"),
            Column("Back", ".status.sites.rolledBack", "integer"),
            Column("Waiting", ".status.waitingFor"),
            Column("Outcome", ".status.outcome"),
            Column("Reason", ".status.reason"),
            Column("Since", ".status.since", "date", priority=1),
            Column("Message", ".status.message", priority=1),
            _AGE,
        ),
    ),
    KindEntry(
        SiteAssignment,
        "siteassignments",
        ("assignment",),
        True,
        (
            Column("Model", ".spec.model"),
            Column("Assigned", ".spec.version"),
            Column("Variant", ".spec.variant"),
            Column("State", ".status.state"),
            Column("Serving", ".status.active.version"),
            Column("Reason", ".status.reason"),
            Column("Seq", ".spec.sequence", "integer"),
            Column("Since", ".status.since", "date", priority=1),
            Column("Message", ".status.message", priority=1),
            _AGE,
        ),
    ),
)


def custom_resource_definition(entry: KindEntry) -> dict[str, Any]:
    """The CRD of one kind, as YAML would show it."""
    name = entry.model.__name__
    fields = entry.model.model_fields
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": structural_schema(_inner(fields["spec"].annotation)),
    }
    version: dict[str, Any] = {"name": VERSION, "served": True, "storage": True}
    if "status" in fields:
        properties["status"] = structural_schema(_inner(fields["status"].annotation), defaults=False)
        if "observedGeneration" in properties["status"]["properties"]:
            properties["status"]["default"] = {"observedGeneration": 0}
        version["subresources"] = {"status": {}}
    schema: dict[str, Any] = {
        "type": "object",
        "description": (entry.model.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": properties,
    }
    if name in ("EdgeModel", "EdgeFleet", "RolloutPolicy", "EdgeSite"):
        schema["x-kubernetes-validations"] = [
            {
                "rule": "size(self.metadata.name) <= 40 && !self.metadata.name.contains('.')",
                "message": "metadata.name must be a DNS label of at most 40 characters: other names are made from it",
            }
        ]
    version["schema"] = {"openAPIV3Schema": schema}
    version["additionalPrinterColumns"] = [
        {"name": c.name, "type": c.type, "jsonPath": c.path, **({"priority": c.priority} if c.priority else {})} for c in entry.columns
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{entry.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": entry.plural,
                "singular": name.lower(),
                "shortNames": list(entry.short),
                "categories": ["edge"],
            },
            "scope": "Namespaced" if entry.namespaced else "Cluster",
            "versions": [version],
        },
    }


def structural_schema(model: type[BaseModel], *, defaults: bool = True) -> dict[str, Any]:
    """A Kubernetes structural schema of one pydantic model."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    result: dict[str, Any] = _structural(schema, schema.get("$defs", {}), defaults)
    return result


def _structural(node: dict[str, Any], definitions: dict[str, Any], defaults: bool) -> dict[str, Any]:
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        # A field's default and description stand beside the reference.
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise TypeError(f"a structural schema has no unions: {node}")
        node = {**options[0], **{key: value for key, value in node.items() if key not in ("anyOf", "default")}}
        return _structural(node, definitions, defaults)
    out = {key: value for key, value in node.items() if key not in _DROPPED and key not in ("properties", "items", "default")}
    if "properties" in node:
        out["properties"] = {name: _structural(child, definitions, defaults) for name, child in node["properties"].items()}
    if "items" in node:
        out["items"] = _structural(node["items"], definitions, defaults)
    if isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _structural(node["additionalProperties"], definitions, defaults)
    if defaults and node.get("default") not in (None, []):
        default = node["default"]
        # The fields inside an object bring their own defaults: an empty object is enough, and cannot disagree with them.
        out["default"] = {} if isinstance(default, dict) else default
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    return out


def _inner(annotation: Any) -> type[BaseModel]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise TypeError(f"spec and status must be models, not {annotation!r}")
    return annotation
