"""Each verb that the charts give is one that a request of the product needed, and that request is refused without it.

Needed is what the API servers' audit logs say of fleets that live here: a release promoted and one taken back, a hub killed between two
writes, a fleet that is adopted and withdrawn, a run that is forgotten, a site that joins, leaves and joins again, pods, and registries.
Then each verb is taken from its role, one at a time, and the request is made again in the name of who made it. The gateway has no rights.
"""

import asyncio
import base64
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from edgefleet.api.model import Serving
from edgefleet.api.site import RegistryAccess
from edgefleet.cli.check_hub import ACCESS_REVIEWS
from edgefleet.kube.client import Api
from edgefleet.kube.connection import load_connection
from edgefleet.kube.resources import NAMESPACES, ROLE_BINDINGS, SECRETS, Resource
from edgefleet.site.agent import USER_AGENT
from edgefleet.site.registries import gather_access
from edgefleet.site.runtimes.deployment import Place as PodPlace
from edgefleet.site.runtimes.deployment import Pods
from edgefleet.trust.bundle import make_root
from edgefleet.trust.keys import PrivateKey
from tests.integration import test_join as joining
from tests.integration.ground import LAB_AGENTS, Releases, open_ground, prepare_clusters
from tests.integration.points import Point, list_settling, play
from tests.integration.site_rig import ROLES
from tests.lab import cluster
from tests.lab.audit import Right, Use, read_uses
from tests.lab.cluster import Cluster
from tests.lab.helm import render
from tests.lab.installed import HUB_ACCOUNT, site_rules
from tests.lab.manifests import AGENT_CHART, HUB_NAMESPACE, read_documents
from tests.lab.registry import Registry

CLUSTER_ROLES = Resource("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", False)
HUB_USER = f"system:serviceaccount:{HUB_NAMESPACE}:{HUB_ACCOUNT}"
POD_USER, POD_SPACE = "edgefleet:agent:pods", "served"
PROGRAMS = ("edgefleet", "kopf", "machine", "sweeper")
"""How the product calls itself, also where a test runs a part of it; other names are those of tests and people."""
LEARNS_SECONDS = 20.0  # until an API server knows of another rule
PATIENCE = 120.0  # seconds for each step of a fleet that lives here: what it writes matters, not how fast
METHODS = {"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}


@dataclass(frozen=True, slots=True)
class Held:
    """A role as it is at an API server, and whose requests show that it is needed."""

    kind: Resource
    namespace: str
    name: str
    needs: Callable[[Use], bool]


def by_hub(use: Use) -> bool:
    return use.user == HUB_USER


def by_agent(use: Use) -> bool:
    return use.user.startswith("edgefleet:agent:")


def by_newcomer(use: Use) -> bool:
    return not {"edgefleet:sites", "system:serviceaccounts:edgefleet-join"}.isdisjoint(use.groups)


AT_HUB = (
    Held(CLUSTER_ROLES, "", "edgefleet-hub", by_hub),
    Held(CLUSTER_ROLES, "", "edgefleet-hub-joining", by_hub),
    Held(ROLES, "edgefleet-join", "edgefleet-hub-joining", by_hub),
    Held(CLUSTER_ROLES, "", "edgefleet-site", lambda use: use.user.startswith("edgefleet:site:")),
    Held(CLUSTER_ROLES, "", "edgefleet-join", by_newcomer),
)
AT_SITE = (
    Held(CLUSTER_ROLES, "", LAB_AGENTS, by_agent),
    Held(ROLES, POD_SPACE, "edgefleet-agent-pods", by_agent),
    Held(ROLES, POD_SPACE, "edgefleet-agent-registries", by_agent),
)


@dataclass(frozen=True, slots=True)
class Try:
    """A request, in whose name, and what is said when it is refused for want of a right."""

    user: str
    groups: tuple[str, ...]
    method: str
    uri: str
    refusal: str
    body: Mapping[str, Any]


@pytest.fixture(scope="module")
def own() -> Iterator[cluster.Lab]:
    """A lab of its own: its roles are changed, and its logs tell of nobody else."""
    folder = Path(tempfile.mkdtemp(prefix="edgefleet-rights-"))
    lab = cluster.Lab.start(folder / "lab", ("east",))
    try:
        prepare_clusters(lab)
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(folder)


async def live(lab: cluster.Lab, registry: Registry, folder: Path) -> None:
    """All that needs rights."""
    releases = Releases(registry, folder)
    for version in ("1", "3", "4", "5"):
        releases.push(version)
    releases.push("2", bias=1)
    async with open_ground(lab, [lab.hub], releases, folder) as ground:
        for point in (Point("rollback"), list_settling()[0], Point("adoption"), Point("forgetting")):
            played = await play(ground, ground.lanes[0], replace(point, patience=PATIENCE), None)
            assert [one for one in played.violations if one.rule == "END"] == [], point
    await join(lab, folder)
    await serve_by_pods(lab.sites["east"], folder)


async def join(lab: cluster.Lab, folder: Path) -> None:
    key, root = PrivateKey.generate(), folder / "root.json"
    ends = datetime.now(UTC) + timedelta(days=30)
    root.write_bytes(make_root([key.public], signers=[key], threshold=1, version=1, expires_at=ends))
    hub = joining.SharedHub(lab.hub, folder)
    hub.start()
    try:
        async with Api.connect(lab.hub.kubeconfig, user_agent="person") as api:
            for scenario in (
                joining.test_who_left_has_no_rights_until_it_joins_again,
                joining.test_join_accounts_go_when_they_have_done_their_work,
            ):
                (own := folder / scenario.__name__).mkdir()
                await scenario(joining.Place(lab, hub, api, own), root)
    finally:
        hub.kill()


async def serve_by_pods(east: Cluster, folder: Path) -> None:
    """The parts of an agent that have rights of their own: pods, and the Secrets of registries."""
    login = base64.b64encode(json.dumps({"auths": {"registry.example": {"auth": base64.b64encode(b"a:b").decode()}}}).encode()).decode()
    async with Api.connect(east.kubeconfig, user_agent="person") as admin:
        await admin.apply(NAMESPACES, {"metadata": {"name": POD_SPACE}}, manager="person")
        for held in AT_SITE[1:]:
            await admin.apply(
                ROLES, {"metadata": {"name": held.name, "namespace": POD_SPACE}, "rules": site_rules(held.name)}, manager="person"
            )
            binding = {
                "metadata": {"name": held.name, "namespace": POD_SPACE},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": held.name},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": POD_USER}],
            }
            await admin.apply(ROLE_BINDINGS, binding, manager="person")
        secret = {"metadata": {"name": "pull", "namespace": POD_SPACE}, "type": "kubernetes.io/dockerconfigjson"}
        await admin.create(SECRETS, {**secret, "data": {".dockerconfigjson": login}})
    container = {"name": "server", "image": "registry.example/server@sha256:" + "5" * 64}
    template = {"template": {"spec": {"containers": [container]}}, "port": 8080, "mountPath": "/models"}
    wanted = Serving.model_validate({"deployment": template}).deployment
    assert wanted is not None
    async with Api.connect(east.client_kubeconfig(POD_USER), user_agent=USER_AGENT) as local:
        order: Any = SimpleNamespace(
            registries=[RegistryAccess.model_validate({"match": "registry.example", "secretRef": "pull"})], proxy=None
        )
        await gather_access(local, POD_SPACE, order)
        async with Pods(local, PodPlace("pods", POD_SPACE, "store", ""), folder / "pods") as pods:
            watching = asyncio.create_task(pods.run())
            synced = asyncio.Event()
            pods.on_change = synced.set
            async with asyncio.timeout(60):
                await synced.wait()
                await pods.apply("weld--aaaaaaaa", "weld", wanted)
                await pods.apply("weld--aaaaaaaa", "weld", wanted)
                await pods.unload("weld--aaaaaaaa")
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def given(rules: Sequence[Mapping[str, Any]]) -> Iterator[Right]:
    for rule in rules:
        for group in rule["apiGroups"]:
            yield from (Right(group, resource, verb) for resource in rule["resources"] for verb in rule["verbs"])


def without(rules: Sequence[Mapping[str, Any]], right: Right) -> list[dict[str, Any]]:
    """The rules but for one verb of one resource."""
    left = []
    for rule in rules:
        if right.group not in rule["apiGroups"] or right.resource not in rule["resources"]:
            left.append(dict(rule))
            continue
        others = [resource for resource in rule["resources"] if resource != right.resource]
        verbs = [verb for verb in rule["verbs"] if verb != right.verb]
        left += [{**rule, "resources": others}] * bool(others) + [{**rule, "resources": [right.resource], "verbs": verbs}] * bool(verbs)
    return left


def plan_try(use: Use) -> Try:
    """The request again, so that it changes nothing. One that server-side apply made an object with is tried as what makes one."""
    path, verb, (plural, _, below) = use.uri.partition("?")[0], use.right.verb, use.right.resource.partition("/")
    if verb == "create" and not below and use.name and path.endswith(f"/{use.name}"):
        path = path.rpartition("/")[0]
    query = {"list": "?limit=1", "watch": "?watch=1&timeoutSeconds=1", "get": ""}.get(verb, "?dryRun=All")
    refusal = f'cannot {verb} resource "{plural}{"/" if below else ""}{below}"'
    return Try(use.user, use.groups, METHODS[verb], path + query, refusal, {})


def other_needs(uses: Sequence[Use]) -> dict[Right, Try]:
    """What is asked for by other requests than those of its own verb."""
    approved = next(use for use in reversed(uses) if by_hub(use) and use.right.resource == "certificatesigningrequests/approval")
    binding = {
        "metadata": {"name": "edgefleet-site"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edgefleet-site"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "edgefleet:site:oslo"}],
    }
    bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings?dryRun=All"
    approval = f"{approved.uri.partition('?')[0]}?dryRun=All"
    return {
        Right("certificates.k8s.io", "signers", "approve"): Try(
            HUB_USER, approved.groups, "PATCH", approval, "not permitted to approve requests", joining.APPROVAL
        ),
        Right("edgefleet.io", "siteassignments/status", "patch"): Try(
            HUB_USER, approved.groups, "POST", bindings, "not currently held", binding
        ),
    }


class Server:
    """An API server, asked in anybody's name."""

    def __init__(self, api: Api, session: aiohttp.ClientSession, url: str) -> None:
        self._api, self._session, self._url = api, session, url

    async def is_refused(self, one: Try) -> bool:
        headers = CIMultiDict({"Impersonate-User": one.user, "Content-Type": "application/json"})
        if one.method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        for group in one.groups:
            headers.add("Impersonate-Group", group)
        body = None if one.method == "GET" else json.dumps(one.body)
        async with self._session.request(one.method, URL(self._url + one.uri, encoded=True), headers=headers, data=body) as answer:
            if answer.status != 403:
                return False
            return one.refusal in (await answer.json(content_type=None)).get("message", "")

    async def holds(self, right: Right, use: Use | Try, name: str, namespace: str) -> bool:
        resource, _, below = right.resource.partition("/")
        asked = {"group": right.group, "resource": resource, "subresource": below, "verb": right.verb, "namespace": namespace, "name": name}
        spec = {"user": use.user, "groups": list(use.groups), "resourceAttributes": asked}
        return bool((await self._api.create(ACCESS_REVIEWS, {"metadata": {}, "spec": spec}))["status"].get("allowed"))

    async def rules(self, held: Held) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._api.get(held.kind, held.name, held.namespace or None))["rules"]
        return found

    async def give(self, held: Held, rules: Sequence[Mapping[str, Any]]) -> None:
        await self._api.patch(held.kind, held.name, held.namespace or None, {"rules": list(rules)})


@asynccontextmanager
async def open_server(found: Cluster) -> AsyncIterator[Server]:
    connector = aiohttp.TCPConnector(ssl=load_connection(found.kubeconfig).tls or False)
    async with (
        Api.connect(found.kubeconfig, user_agent="person") as api,
        aiohttp.ClientSession(connector=connector, trust_env=False) as session,
    ):
        yield Server(api, session, found.url)


async def check_role(server: Server, held: Held, uses: Sequence[Use], others: Mapping[Right, Try]) -> list[str]:
    """What is wrong with it: one line a verb."""
    rules, troubles = await server.rules(held), []
    for right in given(rules):
        use = next((one for one in reversed(uses) if held.needs(one) and one.right == right), None)
        if use is None and right not in others:
            troubles.append(f"{held.name}: nobody needs {right}")
            continue
        attempt = plan_try(use) if use is not None else others[right]
        names = next((rule["resourceNames"][0] for rule in rules if "resourceNames" in rule and right.resource in rule["resources"]), "")
        name, namespace = (use.name, use.namespace) if use is not None else (names, held.namespace)
        if await server.is_refused(attempt):
            troubles.append(f"{held.name}: {right} is not enough for {attempt}")
        await server.give(held, without(rules, right))
        if not await _within(lambda: server.holds(right, attempt, name, namespace), wanted=False):  # noqa: B023
            troubles.append(f"{held.name}: {right} is given twice")
        elif not await server.is_refused(attempt):
            troubles.append(f"{held.name}: without {right} this is done all the same: {attempt}")
        else:
            print(f"{held.name}: {right}: needed by {attempt.method} {attempt.uri}")
        await server.give(held, rules)
        assert await _within(lambda: server.holds(right, attempt, name, namespace), wanted=True), f"{right} was not given back"  # noqa: B023
    return troubles


async def _within(fact: Callable[[], Any], *, wanted: bool) -> bool:
    """Whether it came to be as wanted."""
    deadline = time.monotonic() + LEARNS_SECONDS
    while await fact() is not wanted:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


@pytest.mark.timeout(1500)
async def test_each_verb_of_each_role_is_needed(own: cluster.Lab, registry: Registry, tmp_path: Path) -> None:
    await live(own, registry, tmp_path)
    await asyncio.sleep(1)  # an API server writes its log in batches
    troubles, count = [], 0
    for found, roles in ((own.hub, AT_HUB), (own.sites["east"], AT_SITE)):
        uses = [use for use in read_uses(found.folder) if use.agent.startswith(PROGRAMS)]
        others = other_needs(uses) if found is own.hub else {}
        async with open_server(found) as server:
            for held in roles:
                count += len([*given(await server.rules(held))])
                troubles += await check_role(server, held, uses, others)
    print(f"{count} verbs of {len(AT_HUB) + len(AT_SITE)} roles")
    assert troubles == [], "\n".join(troubles)


def test_each_role_of_a_sites_chart_is_among_them_and_the_gateway_has_none() -> None:
    rendered: list[dict[str, Any]] = read_documents(
        render(AGENT_CHART, namespace="x", settings=["site=oslo", "server.url=http://models:80"])
    )  # type: ignore[assignment]
    assert {one["metadata"]["name"] for one in rendered if one["kind"] in ("Role", "ClusterRole")} == {
        "edgefleet-agent",
        *(held.name for held in AT_SITE[1:]),
    }
    (gateway,) = (one for one in rendered if one["kind"] == "Deployment" and one["metadata"]["name"] == "edgefleet-gateway")
    pod = gateway["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
