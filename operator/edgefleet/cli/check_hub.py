"""What `edgefleet check` asks of the hub's API server. Each probe answers one or more lines; it raises ApiError where it cannot know."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from edgefleet import __version__
from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import GROUP, TRUST_BUNDLE, TRUST_BUNDLE_ENTRY, parse_time
from edgefleet.api.model import EdgeModel
from edgefleet.api.report import LEASE_NAME
from edgefleet.api.schema import KINDS, custom_resource_definition
from edgefleet.cli.check import Probe, in_thread
from edgefleet.cli.cluster import server_now
from edgefleet.core.preflight import (
    Level,
    Line,
    judge_agents,
    judge_clock,
    judge_kind,
    judge_lease,
    judge_policy,
    judge_server,
    judge_sites,
    judge_trust,
)
from edgefleet.core.skew import Skew, judge_skew
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_MODELS, EDGE_SITES, LEASES, SITE_ASSIGNMENTS, Resource
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import NotFound as NoSuchTag
from edgefleet.oci.errors import RegistryError, Unauthorised
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.transport import Patience
from edgefleet.trust.bundle import read_expiry
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PublicKey

CRDS = Resource("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", False)
POLICIES = Resource("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", False)
BINDINGS = Resource("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", False)
ACCESS_REVIEWS = Resource("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews", False)
HUB_ROLE = "edgefleet-hub"
LEADER_LEASE = "edgefleet-hub"
ASKED_AT_ONCE = 8


def _of_namespace(home: str) -> dict[str, Any]:
    """What the chart of this version installs in a namespace: `policies` and `bindings` (specs by name), and the hub's `rights`."""
    found: dict[str, Any] = json.loads((resources.files("edgefleet.cli") / "installed.json").read_text().replace("{namespace}", home))
    return found


class HubProbes:
    """One look at a hub; `namespace` holds its own objects."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    def probes(self) -> Mapping[str, Probe]:
        """By name, in the order of the lines; all may be asked at once."""
        return {
            "clock": self._clock,
            "kinds": self._kinds,
            "rights": self._rights,
            "policies": self._policies,
            "trust bundle": self._trust,
            "hub": self._hub,
            "hub key": self._hub_key,
            "registry": self._registries,
            "agents": self._sites,
        }

    async def server(self) -> Sequence[Line]:
        """Whether the API server answers, and which it is."""
        return [judge_server("api server", str((await self._api.get_raw("/version")).get("gitVersion", "")))]

    async def _clock(self) -> Sequence[Line]:
        await self._api.get_raw("/version")
        return [judge_clock("clock", self._api.clock_skew, "the API server's (by its Date header)")]

    async def _kinds(self) -> Sequence[Line]:
        wrong = [await look_at_kind(self._api, entry.plural) for entry in KINDS]
        return [line for line in wrong if line] or [
            Line("kinds", Level.OK, f"{len(KINDS)} kinds are served as version {__version__} has them")
        ]

    async def _rights(self) -> Sequence[Line]:
        user, home = await self._find_account()
        rights = _of_namespace(home)["rights"]
        missing = await find_missing(self._api, user, _groups(user), rights)
        return [judge_rights("rights", user, missing, len(rights))]

    async def _find_account(self) -> tuple[str, str]:
        """The hub's user, and the namespace of its account."""
        for subject in (await self._api.get(CLUSTER_ROLE_BINDINGS, HUB_ROLE)).get("subjects") or ():
            if subject["kind"] == "ServiceAccount":
                return f"system:serviceaccount:{subject['namespace']}:{subject['name']}", subject["namespace"]
            return subject["name"], self._namespace
        raise NotFound(404, f"ClusterRoleBinding {HUB_ROLE} binds nobody")

    async def _policies(self) -> Sequence[Line]:
        _, home = await self._find_account()
        installed = _of_namespace(home)
        wrong = []
        for resource, field in ((POLICIES, "policies"), (BINDINGS, "bindings")):
            for name, spec in installed[field].items():
                try:
                    served = (await self._api.get(resource, name))["spec"]
                except NotFound:
                    served = None
                wrong.append(judge_policy(f"{resource.kind} {name}", served, spec))
        fine = Line("policies", Level.OK, f"{len(installed['policies'])} admission policies are bound and as the chart has them")
        return [line for line in wrong if line] or [fine]

    async def _trust(self) -> Sequence[Line]:
        text = await self._fetch_bundle()
        missing = (
            f"`edgefleet trust init` makes one; then kubectl -n {self._namespace} create configmap {TRUST_BUNDLE} "
            f"--from-file={TRUST_BUNDLE_ENTRY}"
        )
        try:
            ends = read_expiry(text.encode()) if text else None
        except Rejected as error:
            return [Line("trust bundle", Level.FAIL, error.message, "put the file that `edgefleet trust` wrote into it again")]
        return [judge_trust("trust bundle", ends, server_now(self._api), missing=missing)]

    async def _fetch_bundle(self) -> str:
        try:
            return str((await self._api.get(CONFIG_MAPS, TRUST_BUNDLE, self._namespace)).get("data", {}).get(TRUST_BUNDLE_ENTRY, ""))
        except NotFound:
            return ""

    async def _hub(self) -> Sequence[Line]:
        remedy = "start `edgefleet hub`, or read its log: see docs/runbooks/hub-deaf.md"
        beat = await self._fetch_lease(LEASE_NAME)
        lines = [judge_lease("hub", *read_renewal(beat), server_now(self._api), who="the hub", remedy=remedy)]
        leader = await self._fetch_lease(LEADER_LEASE)
        if leader is not None:
            who = f"the leader {leader['spec'].get('holderIdentity') or '(nobody)'}"
            lines.append(judge_lease("leader", *read_renewal(leader), server_now(self._api), who=who, remedy=remedy))
        return lines

    async def _fetch_lease(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._api.get(LEASES, name, self._namespace)
        except NotFound:
            return None

    async def _hub_key(self) -> Sequence[Line]:
        """By what it signed: the key itself is a secret, and no business of this command."""
        newest: dict[str, Any] | None = None
        async for page in self._api.list_pages(SITE_ASSIGNMENTS):
            found = json.loads(page).get("items") or []
            newest = max(found, key=lambda body: str(body["spec"].get("expiresAt", "")), default=None)
            break
        secret = f"Secret {self._namespace}/hub-key"
        if newest is None:
            return [Line("hub key", Level.OK, f"no order was signed yet; a hub that runs has found {secret}")]
        envelope = json.loads(base64.b64decode(newest["spec"]["envelope"]))
        signer = str(envelope["signatures"][0]["keyid"])
        text = await self._fetch_bundle()
        if not text:
            return [
                Line(
                    "hub key",
                    Level.WARN,
                    f"orders are signed by {signer[:19]}; no bundle says whether sites believe it",
                    "publish a bundle",
                )
            ]
        believed = {PublicKey.from_pem(pem).id for pem in json.loads(text)["trust"]["hubKeys"]}
        if signer in believed:
            return [Line("hub key", Level.OK, f"{signer[:19]} signs, and the trust bundle names it")]
        remedy = f"restore {secret} from the backup, or sign a bundle that names the new key; until then sites refuse new orders"
        return [Line("hub key", Level.FAIL, f"orders are signed by {signer[:19]}, which the trust bundle does not name", remedy)]

    async def _registries(self) -> Sequence[Line]:
        models = [EdgeModel.parse(body) for body in await self._api.list(EDGE_MODELS)]
        if not models:
            return [Line("registry", Level.OK, "no EdgeModel names one yet")]
        gate = asyncio.Semaphore(ASKED_AT_ONCE)
        return await asyncio.gather(*(_look_at_source(model, gate) for model in models))

    async def _sites(self) -> Sequence[Line]:
        skews: Counter[Skew] = Counter()
        silent: Counter[str] = Counter()
        bodies = await self._api.list(EDGE_SITES)
        for body in bodies:
            status = body.get("status") or {}
            if status.get("agentVersion"):
                skews[judge_skew(status["agentVersion"], __version__)] += 1
            if any(one["type"] == "Connected" and one["reason"] == "HeartbeatLost" for one in status.get("conditions", ())):
                silent[body["spec"].get("region") or "none"] += 1
        return [judge_agents(skews, __version__), judge_sites(silent, len(bodies))]


async def look_at_kind(api: Api, plural: str) -> Line | None:
    """One kind at an API server against this version; None if it is as it should be."""
    entry = next(one for one in KINDS if one.plural == plural)
    wanted = custom_resource_definition(entry)
    name = f"{plural}.{GROUP}"
    try:
        return judge_kind(name, await api.get(CRDS, name), wanted)
    except NotFound:
        return judge_kind(name, None, wanted)


async def find_missing(api: Api, user: str, groups: Sequence[str], rights: Sequence[Mapping[str, str]]) -> list[str]:
    """The rights, as `verb resource`, that a user does not have. Raises Denied where the caller may not ask for others."""

    async def ask(right: Mapping[str, str]) -> str:
        body = {"metadata": {}, "spec": {"user": user, "groups": list(groups), "resourceAttributes": dict(right)}}
        allowed = (await api.create(ACCESS_REVIEWS, body))["status"].get("allowed", False)
        path = "/".join(part for part in (right["resource"], right.get("subresource")) if part)
        return "" if allowed else f"{right['verb']} {path}"

    return sorted({missing for missing in await asyncio.gather(*(ask(right) for right in rights)) if missing})


def judge_rights(check: str, user: str, missing: Sequence[str], total: int) -> Line:
    """What a user lacks of what it needs."""
    if not missing:
        return Line(check, Level.OK, f"{user} has the {total} rights that it needs")
    listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    return Line(check, Level.FAIL, f"{user} lacks {listed}", "install the chart of this version again: its roles were changed")


def _groups(user: str) -> list[str]:
    if not user.startswith("system:serviceaccount:"):
        return ["system:authenticated"]
    return ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}", "system:authenticated"]


def read_renewal(lease: Mapping[str, Any] | None) -> tuple[datetime | None, int]:
    """When a Lease was last renewed, and for how many seconds that is good."""
    spec = (lease or {}).get("spec") or {}
    return (parse_time(spec["renewTime"]) if spec.get("renewTime") else None, int(spec.get("leaseDurationSeconds") or 15))


async def _look_at_source(model: EdgeModel, gate: asyncio.Semaphore) -> Line:
    source, name = model.spec.source, f"{model.metadata.namespace}/{model.metadata.name}"
    away = find_condition(model.status.conditions, "FetchFailed")
    if away is not None:
        said = f"EdgeModel {name}: the hub cannot fetch {source.repository} ({away.reason}): {away.message}"
        return Line("registry", Level.FAIL, said, "repair the way from the hub to that registry, or its credentials")

    def ask() -> str:
        with RegistryClient(patience=Patience(connect=3, read=5, attempts=1)) as client:
            try:
                client.resolve(Reference(Repository.parse(source.repository), tag=source.tag or "latest"))
            except Unauthorised:
                return "answers, and wants credentials"
            except NoSuchTag:
                return "answers" if source.digest else "has no such tag"
            return "answers"

    try:
        async with gate:
            said = await in_thread(ask)
    except RegistryError as error:
        found = f"EdgeModel {name}: {source.repository} does not answer from here ({error.reason}); the hub has met no trouble"
        return Line("registry", Level.WARN, found, "nothing, if it is only to be reached from the hub")
    if said == "has no such tag":
        found = f"EdgeModel {name}: {source.repository} has no tag {source.tag}"
        return Line("registry", Level.FAIL, found, "push it, or correct spec.source in Git")
    return Line("registry", Level.OK, f"EdgeModel {name}: {source.repository} {said}")
