"""Real Flux keeps models, fleets, policies and sites: what a team pushes becomes rollouts, what goes from Git takes nothing from a site.

The sources, Kustomizations and accounts are those of docs/gitops.md; the hub is real, the sites are fakes. Building the controllers takes 7
minutes, so this is played only with EDGEFLEET_FLUX=1 in the environment (`make test-all`); else pytest counts it as deselected.
"""

import asyncio
import io
import json
import re
import shlex
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.api.meta import API_VERSION, site_namespace
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import (
    EDGE_FLEETS,
    EDGE_MODELS,
    EDGE_SITES,
    MODEL_ROLLOUTS,
    ROLLOUT_POLICIES,
    SITE_ASSIGNMENTS,
    Resource,
)
from edgefleet.oci import media
from edgefleet.oci.client import digest_of
from edgefleet.oci.push import push_blob, push_manifest
from edgefleet.oci.reference import Repository
from tests.integration.fakesites import Answer, FakeSites, activates
from tests.integration.world import POLICY, World, settled, versions
from tests.lab.cluster import Cluster, Lab
from tests.lab.flux import NAMESPACE, start_flux

PAGE = (Path(__file__).parents[2] / "docs" / "gitops.md").read_text().partition("\n## Flux\n")[2].partition("\n## ")[0]
SOURCES = "\n".join(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
ACCOUNTS = re.findall(r"^    kubectl (create .*)$", PAGE, re.MULTILINE)
KUSTOMIZATIONS = Resource("kustomize.toolkit.fluxcd.io/v1", "Kustomization", "kustomizations", True)
LOOKS = 3  # so often Flux must have looked again before "it stays so" is believed
LIMIT = 90.0  # seconds; a look takes one, or six where something is not yet Current at first
GOOD, UNHEALTHY, REFUSED = "ReconciliationSucceeded", "HealthCheckFailed", "ReconciliationFailed"
SLOW = {**POLICY, "soak": {"min": "168h", "max": "192h"}, "progressDeadline": "1000h"}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
Files = Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def flux(lab: Lab, hub_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both controllers at the hub's API server."""
    running = start_flux(tmp_path_factory.mktemp("flux"), hub_cluster)
    try:
        yield
    finally:
        running.stop()


class Git:
    """What the platform's people and a team push, and what Flux says of it. Looks are seconds apart here; nothing else differs from the
    page but names."""

    def __init__(self, world: World, sites: FakeSites) -> None:
        self.world, self.sites = world, sites
        self.platform: dict[str, dict[str, Any]] = {}
        self.team: dict[str, dict[str, Any]] = {}
        self.platform_name = f"sites-{world.mark}"

    def _named(self, text: str) -> str:
        names = {"edgefleet-sites": self.platform_name, "team-a": self.world.team, "registry.example": self.world.registry.host}
        for name, own in names.items():
            text = text.replace(name, own)
        return text

    async def set_up(self) -> None:
        """The page as it stands, but for names and waits; four sites that the hub has heard; then the team's first push: release 1."""
        for line in ACCOUNTS:
            await self._kubectl(*shlex.split(self._named(line)))
        objects = list(yaml.safe_load_all(self._named(SOURCES)))
        for body in objects:
            body["spec"]["interval"] = "2s"
            if body["kind"] == "OCIRepository":
                body["spec"]["insecure"] = True  # the lab's registry speaks HTTP
        await self._kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))
        for name in (self.world.site(f"s{n}") for n in range(4)):
            spec = {"region": "de", "allowedNamespaces": {"matchLabels": {"team": self.world.team}}}
            self.platform[f"{name}.yaml"] = self.body(EDGE_SITES, name, spec, labels={"line": self.world.mark})
        await self.until_applied(self.platform_name, self.push("sites", self.platform), NAMESPACE)
        for body in self.platform.values():
            await self.sites.add(body["metadata"]["name"])
        await self.world.until("all four sites are heard", self._all_heard, LIMIT)
        self.world.push("1")
        self.team["policy.yaml"] = self.body(ROLLOUT_POLICIES, "careful", POLICY)
        fleet = {"siteSelector": {"matchLabels": {"line": self.world.mark}}, "modelRef": {"name": "weld"}}
        self.team["fleet.yaml"] = self.body(EDGE_FLEETS, "plants", {**fleet, "rolloutPolicyRef": {"name": "careful"}})
        await self.until_applied("edgefleet", await self.name_release("1"))
        await self.world.until_ended(1, "Promoted", LIMIT)

    async def _all_heard(self) -> bool:
        bodies = await self.world.api.list(EDGE_SITES, labels=f"line={self.world.mark}")
        return len([body for body in bodies if body.get("status", {}).get("hardware")]) == len(self.platform)

    def body(self, kind: Resource, name: str, spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
        if kind.namespaced:
            meta["namespace"] = self.world.team
        return {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": {"name": name, **meta}, "spec": spec}

    async def name_release(self, tag: str) -> str:
        """Commit another tag to model.yaml and push; the revision that Flux gives it."""
        source = {"repository": str(self.world.repository), "tag": tag, "interval": "1s"}
        spec = {"source": source, "verify": {"keys": {"secretRef": "publishers"}}, "serving": [{"repository": {}}]}
        self.team["model.yaml"] = self.body(EDGE_MODELS, "weld", spec)
        return await self.push_team()

    async def push_team(self) -> str:
        return await asyncio.to_thread(self.push, self.world.team, self.team)

    def push(self, name: str, files: Files) -> str:
        """As `flux push artifact`: a tarball in an OCI artifact, under the tag that the page names; its revision."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tarball:
            for path, body in files.items():
                data = yaml.safe_dump(body).encode()
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tarball.addfile(entry, io.BytesIO(data))
        repository = Repository.parse(f"{self.world.registry.host}/gitops/{name}")
        parts = []
        for kind, data in (("config.v1+json", b"{}"), ("content.v1.tar+gzip", packed.getvalue())):
            push_blob(self.world.client, repository, data, digest_of(data))
            parts.append({"mediaType": f"application/vnd.cncf.flux.{kind}", "digest": digest_of(data), "size": len(data)})
        manifest = {"schemaVersion": 2, "mediaType": media.MANIFEST, "config": parts[0], "layers": parts[1:]}
        return "main@" + push_manifest(self.world.client, repository, json.dumps(manifest).encode(), media.MANIFEST, tag="main")

    async def kustomization(self, name: str = "edgefleet", namespace: str | None = None) -> dict[str, Any]:
        body = await self.world.api.get(KUSTOMIZATIONS, name, namespace or self.world.team)
        status: dict[str, Any] = body.get("status", {})
        return status

    async def until_applied(self, name: str, revision: str, namespace: str | None = None) -> None:
        """Until Flux says that it applied this revision and that all of it is healthy."""

        async def applied() -> bool:
            status = await self.kustomization(name, namespace)
            return status.get("lastAppliedRevision") == revision and ready(status)["status"] == "True"

        await self.world.until(f"{name} is Ready at {revision}", applied, LIMIT)

    async def until_failed(self, revision: str, reason: str, said: str) -> None:
        """Until Flux says that this revision failed, for this reason and with this in its message."""

        async def failed() -> bool:
            status = await self.kustomization()
            told = ready(status)
            return status.get("lastAttemptedRevision") == revision and told["reason"] == reason and said in told["message"]

        await self.world.until(f"the Kustomization fails at {revision} with {said}", failed, LIMIT)

    async def slow_down(self) -> None:
        """Push a policy by which each wave is watched for a week, before the tag: a run keeps the policy that it began with."""
        self.team["policy.yaml"]["spec"] = SLOW
        await self.until_applied("edgefleet", await self.push_team())

    async def until_soaks(self, wave: str) -> None:
        """Until this wave of the second run has reported and is only watched."""

        async def soaks() -> bool:
            status = (await self.world.run(2)).get("status", {})
            return (status.get("wave"), status.get("waitingFor")) == (wave, "Soaking")

        await self.world.until(f"wave {wave} soaks", soaks, LIMIT)

    async def looks(self) -> dict[str, int]:
        """How often Flux looked, by what came of it."""
        found: dict[str, int] = {}
        for one in (await self.kustomization()).get("history", ()):
            found[one["lastReconciledStatus"]] = found.get(one["lastReconciledStatus"], 0) + one["totalReconciliations"]
        return found

    async def until_looked(self, outcome: str) -> None:
        """Until Flux has looked some times more, each time with this outcome."""
        before = await self.looks()

        async def looked() -> bool:
            now = await self.looks()
            assert {name: count for name, count in now.items() if name != outcome} == {
                name: count for name, count in before.items() if name != outcome
            }, f"another outcome than {outcome}: {now}, before {before}"
            return now.get(outcome, 0) >= before.get(outcome, 0) + LOOKS

        await self.world.until(f"Flux looks {LOOKS} times more", looked, LIMIT)

    async def runs(self) -> dict[str, str | None]:
        bodies = await self.world.api.list(MODEL_ROLLOUTS, self.world.team)
        return {body["metadata"]["name"]: body.get("status", {}).get("outcome") for body in bodies}

    async def held(self) -> dict[str, int]:
        """What each site is told, by the generation of its assignment: no order is given twice under one."""
        names = [body["metadata"]["name"] for body in self.platform.values()]
        found = [await self.world.api.list(SITE_ASSIGNMENTS, site_namespace(name)) for name in names]
        return {body["metadata"]["namespace"]: body["metadata"]["generation"] for bodies in found for body in bodies}

    async def _kubectl(self, *words: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.world.lab.hub.kubectl, *words, stdin=stdin)

    async def kubectl(self, *words: str) -> str:
        """As a person with all rights types it in the team's namespace."""
        return await self._kubectl("-n", self.world.team, *words)

    async def leave(self) -> None:
        """Take both Kustomizations away, while Flux can still prune what they applied."""
        for name, namespace in (("edgefleet", self.world.team), (self.platform_name, NAMESPACE)):
            await self._kubectl("delete", "kustomization,ocirepository", name, "-n", namespace, "--timeout=50s", "--ignore-not-found")
        await self._kubectl("delete", "clusterrolebinding", self.platform_name, "--ignore-not-found")


def ready(status: dict[str, Any]) -> dict[str, Any]:
    return next((one for one in status.get("conditions", ()) if one["type"] == "Ready"), {"status": "Unknown", "reason": "", "message": ""})


def fails_golden(spec: SiteAssignmentSpec) -> Answer:
    """Version 2 is bad, all others are good."""
    if spec.version != "2":
        return activates(spec)
    return {"state": "Failed", "fault": "Revision", "reason": "GoldenSetFailed", "message": "31 % of 100 answers are right"}


@pytest.fixture
async def git(world: World, sites: FakeSites, flux: None) -> AsyncIterator[Git]:
    await world.api.delete(ROLLOUT_POLICIES, "careful", world.team)  # here it comes from Git
    one = Git(world, sites)
    try:
        await one.set_up()
        yield one
    finally:
        await one.leave()


async def test_another_tag_in_git_is_a_rollout(git: Git) -> None:
    world = git.world
    assert versions(git.sites) == ["1"] * 4
    owners = {entry["manager"] for entry in (await world.fleet())["metadata"]["managedFields"]}
    assert "kustomize-controller" in owners
    world.push("2")
    await git.until_applied("edgefleet", await git.name_release("2"))
    await world.until_ended(2, "Promoted", LIMIT)
    await world.until("the fleet is settled", lambda: settled(world, "2"), LIMIT)
    assert versions(git.sites) == ["2"] * 4
    await git.until_looked(GOOD)
    assert await git.runs() == {"plants-1": "Promoted", "plants-2": "Promoted"}


async def test_a_wait_stays_true_through_a_rollout_of_days(git: Git) -> None:
    """Each look may take a minute at most and this run takes three weeks: a look that waited for it would fail."""
    world = git.world
    await git.slow_down()
    world.push("2")
    await git.until_applied("edgefleet", await git.name_release("2"))
    await git.until_soaks("canary")
    await git.until_looked(GOOD)
    assert ready(await git.kustomization())["status"] != "False"
    assert await git.runs() == {"plants-1": "Promoted", "plants-2": None}
    assert versions(git.sites) == ["1", "1", "1", "2"]
    for wave in ("half", "all"):
        await world.say("rollout", "promote", "plants-2")
        await git.until_soaks(wave)
    await git.until_looked(GOOD)
    await world.say("rollout", "promote", "plants-2")
    await world.until_ended(2, "Promoted", LIMIT)
    await git.until_looked(GOOD)
    assert set(await git.looks()) == {GOOD}, "no look ever failed"


async def test_a_release_that_is_taken_back_fails_until_git_names_another(git: Git) -> None:
    world = git.world
    for site in git.sites.sites.values():
        site.behaviour = fails_golden
    world.push("2")
    second = await git.name_release("2")
    await world.until_ended(2, "RolledBack", LIMIT)
    await git.until_failed(second, UNHEALTHY, f"EdgeFleet/{world.team}/plants status: 'Failed'")
    told = await git.kubectl("get", "edgefleet", "plants", "-o", "wide")
    assert "GoldenSetFailed" in told
    assert "31 % of 100 answers are right" in told
    await git.until_looked(UNHEALTHY)
    assert await git.runs() == {"plants-1": "Promoted", "plants-2": "RolledBack"}, "looking again tries nothing again"

    await git.until_applied("edgefleet", await git.name_release("1"))
    assert set(await git.runs()) == {"plants-1", "plants-2"}, "what is stable needs no run"

    world.push("4", signed=False)
    await git.until_failed(await git.name_release("4"), UNHEALTHY, f"EdgeModel/{world.team}/weld status: 'Failed'")

    world.push("3")
    await git.until_applied("edgefleet", await git.name_release("3"))
    await world.until_ended(3, "Promoted", LIMIT)
    await world.until("the fleet is settled", lambda: settled(world, "3"), LIMIT)
    assert versions(git.sites) == ["3"] * 4


async def test_an_edit_by_hand_is_put_back_and_starts_nothing(git: Git) -> None:
    world = git.world
    before = await git.held()
    edits = (
        ("edgefleet", "plants", '{"spec":{"siteSelector":{"matchLabels":{"line":"elsewhere"}}}}'),
        ("rolloutpolicy", "careful", '{"spec":{"soak":{"min":"9h","max":"10h"}}}'),
        ("edgemodel", "weld", '{"spec":{"source":{"interval":"3s"}}}'),
    )
    wanted = {kind: await spec_of(git, kind, name) for kind, name, _ in edits}
    for kind, name, patch in edits:
        await git.kubectl("patch", kind, name, "--type=merge", "-p", patch)
    for kind, name, _ in edits:

        async def back(kind: str = kind, name: str = name) -> bool:
            return bool(await spec_of(git, kind, name) == wanted[kind])

        await world.until(f"{kind} {name} is as in Git", back, LIMIT)
    await git.until_looked(GOOD)
    await world.until("the fleet is settled", lambda: settled(world, "1"), LIMIT)
    assert await git.held() == before
    assert await git.runs() == {"plants-1": "Promoted"}


async def spec_of(git: Git, kind: str, name: str) -> Any:
    return yaml.safe_load(await git.kubectl("get", kind, name, "-o", "yaml"))["spec"]


async def test_a_tag_that_is_changed_by_hand_ends_where_git_is(git: Git) -> None:
    """Flux looks away meanwhile (`flux suspend`), so that the hub sees the tag."""
    world = git.world
    await git.slow_down()
    world.push("2")
    await git.kubectl("patch", "kustomization", "edgefleet", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    await git.kubectl("patch", "edgemodel", "weld", "--type=merge", "-p", '{"spec":{"source":{"tag":"2"}}}')
    await git.until_soaks("canary")
    await git.kubectl("patch", "kustomization", "edgefleet", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    await world.until_ended(2, "TargetChanged", LIMIT)
    await world.until("the fleet is settled", lambda: settled(world, "1"), LIMIT)
    await git.until_looked(GOOD)
    assert versions(git.sites) == ["1"] * 4
    assert sorted(len(site.orders) for site in git.sites.sites.values()) == [1, 1, 1, 3], "there and back, and nobody else"
    assert await git.runs() == {"plants-1": "Promoted", "plants-2": "TargetChanged"}


async def test_what_goes_from_git_is_taken_from_no_site(git: Git) -> None:
    world = git.world
    before, orders = await git.held(), {name: len(site.orders) for name, site in git.sites.sites.items()}
    assert len(before) == 4
    team, platform = dict(git.team), dict(git.platform)

    del git.team["policy.yaml"]
    await git.until_failed(await git.push_team(), UNHEALTHY, f"EdgeFleet/{world.team}/plants status: 'Failed'")
    assert "PolicyNotFound" in await git.kubectl("get", "edgefleet", "plants", "-o", "yaml")
    del git.team["fleet.yaml"], git.platform[f"{world.site('s3')}.yaml"]
    await git.until_applied("edgefleet", await git.push_team())
    with pytest.raises(NotFound):
        await world.fleet()
    await git.until_applied(git.platform_name, git.push("sites", git.platform), NAMESPACE)
    with pytest.raises(NotFound):
        await world.api.get(EDGE_SITES, world.site("s3"))
    git.platform = platform
    assert await git.held() == before

    git.team = team
    await git.until_applied(git.platform_name, git.push("sites", git.platform), NAMESPACE)
    await git.until_applied("edgefleet", await git.push_team())
    await world.until("the fleet takes up what runs", lambda: settled(world, "1"), LIMIT)
    await git.until_looked(GOOD)
    assert await git.held() == before
    assert {name: len(site.orders) for name, site in git.sites.sites.items()} == orders
    assert await git.runs() == {"plants-1": "Promoted"}


async def test_a_kustomization_that_is_deleted_takes_nothing_from_a_site(git: Git) -> None:
    world = git.world
    before = await git.held()
    await git.kubectl("delete", "kustomization", "edgefleet", "--timeout=50s")
    with pytest.raises(NotFound):
        await world.fleet()
    with pytest.raises(NotFound):
        await world.api.get(EDGE_MODELS, "weld", world.team)
    assert await git.held() == before
    assert versions(git.sites) == ["1"] * 4


async def test_a_team_cannot_open_a_site(git: Git) -> None:
    world = git.world
    site = git.platform[f"{world.site('s0')}.yaml"]
    git.team["site.yaml"] = {**site, "metadata": {**site["metadata"], "name": world.site("mine")}}
    said = f'User "system:serviceaccount:{world.team}:flux" cannot'
    await git.until_failed(await git.push_team(), REFUSED, said)
    with pytest.raises(NotFound):
        await world.api.get(EDGE_SITES, world.site("mine"))
    del git.team["site.yaml"]
    await git.until_applied("edgefleet", await git.push_team())
    assert await git.runs() == {"plants-1": "Promoted"}
