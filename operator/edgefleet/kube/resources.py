"""The kinds that we read or write, and their paths."""

from dataclasses import dataclass
from urllib.parse import quote

from edgefleet.api.meta import API_VERSION


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: `api_version` as in YAML, plural as in URLs."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of one object, or of the collection when `name` is None (over all namespaces when `namespace` is, too)."""
        parts = ["api" if "/" not in self.api_version else "apis", self.api_version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(parts)


EDGE_MODELS = Resource(API_VERSION, "EdgeModel", "edgemodels", True)
EDGE_FLEETS = Resource(API_VERSION, "EdgeFleet", "edgefleets", True)
ROLLOUT_POLICIES = Resource(API_VERSION, "RolloutPolicy", "rolloutpolicies", True)
EDGE_SITES = Resource(API_VERSION, "EdgeSite", "edgesites", False)
MODEL_ROLLOUTS = Resource(API_VERSION, "ModelRollout", "modelrollouts", True)
SITE_ASSIGNMENTS = Resource(API_VERSION, "SiteAssignment", "siteassignments", True)
OUR_KINDS = (EDGE_MODELS, EDGE_FLEETS, ROLLOUT_POLICIES, EDGE_SITES, MODEL_ROLLOUTS, SITE_ASSIGNMENTS)

NAMESPACES = Resource("v1", "Namespace", "namespaces", False)
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps", True)
SECRETS = Resource("v1", "Secret", "secrets", True)
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases", True)
SERVICE_ACCOUNTS = Resource("v1", "ServiceAccount", "serviceaccounts", True)
CERTIFICATE_REQUESTS = Resource("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests", False)
EVENTS = Resource("v1", "Event", "events", True)
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", True)
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", True)
PODS = Resource("v1", "Pod", "pods", True)
