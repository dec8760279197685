"""Teams share one hub: whose fleets may use a site, what each role may do, who must approve, and who said what."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from edgefleet.kube.resources import EDGE_FLEETS, EDGE_SITES, ROLLOUT_POLICIES
from tests.integration.attempts import Kubectl, attempt, refusal_of, run_body
from tests.integration.fakesites import FakeSites
from tests.integration.world import POLICY, World, four_sites, versions
from tests.lab import LabError
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import hub_kubeconfig, install_hub

ROLES = {
    "vic": ("viewer",),
    "ada": ("author", "approver"),
    "oto": ("operator",),
    "bob": ("approver",),
    "cyd": ("approver",),
    "eve": (),
}
NAMESPACE = "welding"


def person(lab: Lab, name: str) -> Cluster:
    return Cluster(name, lab.hub.url, lab.hub.folder, lab.client_kubeconfig("hub", name, ()), None)


def grant(admin: Kubectl, namespace: str) -> None:
    for name, roles in ROLES.items():
        for role in roles:
            admin("create", "rolebinding", f"{name}-{role}", "-n", namespace, f"--clusterrole=edgefleet-{role}", f"--user={name}")
    admin("create", "rolebinding", "eve-edit", "-n", namespace, "--clusterrole=edit", "--user=eve")


@pytest.fixture(scope="module")
def people(lab: Lab) -> Iterator[dict[str, Kubectl]]:
    """kubectl as each person, in a namespace with one run that the hub made."""
    admin = install_hub(lab.hub).kubectl
    admin("create", "namespace", NAMESPACE)
    grant(admin, NAMESPACE)
    names = {name: person(lab, name).kubectl for name in ROLES}
    hub = Cluster("the hub", lab.hub.url, lab.hub.folder, hub_kubeconfig(lab.hub), None).kubectl
    body = run_body("plants-1")
    body["metadata"]["namespace"] = NAMESPACE
    body["spec"]["author"] = "ada"
    body["spec"]["control"] = {"approvals": [{"wave": "canary", "by": "bob", "reason": "seen"}]}
    hub("create", "-f", "-", stdin=json.dumps(body))
    admin("create", "-f", "-", stdin=json.dumps(model_body()))
    said = ""
    for _ in range(100):  # aggregation, bindings and policies take a moment to hold
        try:
            names["eve"]("get", "edgemodels", "-n", NAMESPACE)
            names["bob"]("annotate", "--dry-run=server", "modelrollout", "plants-1", "-n", NAMESPACE, "x=y")
        except LabError as error:
            said = str(error)
            if "needs the verb control" in said:
                break
    else:
        raise AssertionError(f"roles and policies never came into force: {said}")
    yield names
    admin("delete", "namespace", NAMESPACE, "--wait=false")


def model_body(author: str = "", tag: str = "1") -> dict[str, Any]:
    return {
        "apiVersion": "edgefleet.io/v1alpha1",
        "kind": "EdgeModel",
        "metadata": {"name": "weld", "namespace": NAMESPACE, "annotations": {"edgefleet.io/author": author} if author else {}},
        "spec": {
            "source": {"repository": "registry.example/weld", "tag": tag},
            "verify": {"keys": {"secretRef": "publishers"}},
            "serving": [{"repository": {}}],
        },
    }


def control(**said: Any) -> list[str]:
    patch = json.dumps({"spec": {"control": said}})
    return ["patch", "modelrollout", "plants-1", "-n", NAMESPACE, "--dry-run=server", "--type=merge", "-p", patch]


def approvals(*people: str, reason: str = "seen") -> list[str]:
    return control(approvals=[{"wave": "canary", "by": by, "reason": reason} for by in people])


DRY = ["--dry-run=server", "-n", NAMESPACE]
WRITE = ["apply", "--server-side", "--force-conflicts", *DRY, "-f", "-"]
EDIT_MODEL = ["patch", "edgemodel", "weld", *DRY, "--type=merge", "-p"]
POLICY_BODY = {
    "apiVersion": "edgefleet.io/v1alpha1",
    "kind": "RolloutPolicy",
    "metadata": {"name": "lax", "namespace": NAMESPACE},
    "spec": {"waves": [{"name": "all", "percent": 100}]},
}
SITE_BODY = {"apiVersion": "edgefleet.io/v1alpha1", "kind": "EdgeSite", "metadata": {"name": "mine"}, "spec": {"region": "de"}}
FLEET_BODY = {**POLICY_BODY, "kind": "EdgeFleet", "spec": {"siteSelector": {}, "modelRef": {"name": "weld"}}}
PATCH_AUTHOR = ["patch", "modelrollout", "plants-1", *DRY, "--type=merge", "-p", '{"spec":{"author":"cyd"}}']

ALLOWED: list[tuple[str, str, list[str], Any]] = [
    ("a viewer reads runs", "vic", ["get", "modelrollouts", "-n", NAMESPACE], None),
    ("whoever may view the namespace reads runs", "eve", ["get", "modelrollouts", "-n", NAMESPACE], None),
    ("whoever may edit the namespace names a release", "eve", WRITE, model_body("eve", "2")),
    ("an author names a release in their own name", "ada", WRITE, model_body("ada", "2")),
    ("an author names a release without a name", "ada", WRITE, model_body("", "2")),
    ("an author takes a release on", "ada", ["annotate", "edgemodel", "weld", *DRY, "edgefleet.io/author=ada"], None),
    ("an operator writes a policy", "oto", WRITE, POLICY_BODY),
    ("an operator pauses in their own name", "oto", control(paused=True, by="oto"), None),
    ("an operator pauses and leaves no name", "oto", control(paused=True), None),
    ("an operator labels a run", "oto", ["label", "modelrollout", "plants-1", *DRY, "ticket=42"], None),
    ("an operator forgets a run", "oto", ["delete", "modelrollout", "plants-1", *DRY], None),
    ("an approver approves", "cyd", approvals("bob", "cyd"), None),
    ("an approver takes their own approval away", "bob", approvals(), None),
    ("an approver gives another reason", "bob", approvals("bob", reason="seen twice"), None),
]  # fmt: skip

CONTROL, APPROVE = "needs the verb control", "needs the verb approve"
REFUSED: list[tuple[str, str, list[str], Any, str]] = [
    ("a viewer names a release", "vic", WRITE, model_body("vic", "2"), "forbidden"),
    ("a viewer pauses", "vic", control(paused=True), None, "forbidden"),
    ("an author names a release in another's name", "ada", WRITE, model_body("bob", "2"), "must be your own user name"),
    ("an author writes a policy", "ada", WRITE, POLICY_BODY, "forbidden"),
    ("an author makes a fleet", "ada", WRITE, FLEET_BODY, "forbidden"),
    ("an author who may approve pauses", "ada", control(paused=True, by="ada"), None, CONTROL),
    ("whoever may edit the namespace pauses", "eve", control(paused=True), None, "forbidden"),
    ("an operator names a release", "oto", WRITE, model_body("oto", "2"), "forbidden"),
    ("an operator pauses in another's name", "oto", control(paused=True, by="bob"), None, "control.by must be your own"),
    ("an operator approves", "oto", approvals("bob", "oto"), None, APPROVE),
    ("an operator in one namespace opens a site", "oto", ["create", "--dry-run=server", "-f", "-"], SITE_BODY, "forbidden"),
    ("an approver pauses", "bob", control(paused=True), None, CONTROL),
    ("an approver aborts", "bob", control(aborted=True, by="bob"), None, CONTROL),
    ("an approver labels a run", "bob", ["label", "modelrollout", "plants-1", *DRY, "ticket=42"], None, CONTROL),
    ("an approver annotates a run", "bob", ["annotate", "modelrollout", "plants-1", *DRY, "x=y"], None, CONTROL),
    ("an approver approves as another", "cyd", approvals("bob", "dan"), None, "must be your own user name"),
    ("an approver takes another's approval away", "cyd", approvals("cyd"), None, "by the person who gave it"),
    ("an approver puts words into another's mouth", "cyd", approvals("bob", reason="blindly"), None, "must be your own user name"),
    ("an approver forgets a run", "bob", ["delete", "modelrollout", "plants-1", *DRY], None, "forbidden"),
    ("an approver changes who named the release", "bob", PATCH_AUTHOR, None, "a run is frozen"),
]  # fmt: skip


@pytest.mark.parametrize(("who", "arguments", "body"), [case[1:] for case in ALLOWED], ids=[case[0] for case in ALLOWED])
def test_allowed(people: dict[str, Kubectl], who: str, arguments: list[str], body: Any) -> None:
    attempt(people[who], arguments, body)


@pytest.mark.parametrize(("who", "arguments", "body", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(people: dict[str, Kubectl], who: str, arguments: list[str], body: Any, said: str) -> None:
    assert said in refusal_of(people[who], arguments, body)


def test_a_name_does_not_outlive_a_change_by_somebody_else(people: dict[str, Kubectl], lab: Lab) -> None:
    """kubectl edit and patch leave annotations as they are."""
    people["ada"]("annotate", "edgemodel", "weld", "-n", NAMESPACE, "edgefleet.io/author=ada")
    change = '{"spec":{"source":{"tag":"3"}}}'
    with pytest.raises(LabError, match="must be your own user name"):
        people["eve"](*EDIT_MODEL, change)
    people["ada"](*EDIT_MODEL, change)
    people["eve"]("label", "edgemodel", "weld", *DRY, "ticket=42")
    people["eve"](*EDIT_MODEL, '{"metadata":{"annotations":{"edgefleet.io/author":"eve"}},"spec":{"source":{"tag":"3"}}}')


async def say(world: World, who: str, *words: str, code: int = 0) -> str:
    """`edgefleet WORDS` as this person."""
    kubeconfig = person(world.lab, who).kubeconfig
    command = [sys.executable, "-m", "edgefleet", *words, "-n", world.team, "--kubeconfig", str(kubeconfig)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(240)
async def test_two_others_than_the_author_open_the_wave_and_the_run_knows_who_said_what(world: World, sites: FakeSites) -> None:
    await asyncio.to_thread(grant, world.lab.hub.kubectl, world.team)
    wave = {"name": "rest", "percent": 100, "approval": {"required": 2, "notAuthor": True}}
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "waves": [{"name": "canary", "sites": 1}, wave]})
    await four_sites(world, sites)
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_condition(EDGE_FLEETS, "plants", "Stalled", "AuthorUnknown")
    await asyncio.to_thread(person(world.lab, "ada").kubectl, "annotate", "edgemodel", "weld", "-n", world.team, "edgefleet.io/author=ada")

    async def waits() -> bool:
        return bool((await world.run(1)).get("status", {}).get("waitingFor") == "AwaitingApproval")

    await world.until("the run waits for approval", waits, 60)
    assert "AuthorMayNotApprove" in await say(world, "ada", "rollout", "approve", "plants-1", "rest", code=1)
    await asyncio.to_thread(
        person(world.lab, "ada").kubectl, "patch", "modelrollout", "plants-1", "-n", world.team, "--type=merge",
        "-p", '{"spec":{"control":{"approvals":[{"wave":"rest","by":"ada"}]}}}',
    )  # fmt: skip
    for _ in range(2):
        await say(world, "bob", "rollout", "approve", "plants-1", "rest", "--reason", "canary is fine")
    await say(world, "oto", "rollout", "pause", "plants-1")

    async def heard() -> bool:
        said = (await world.run(1))["status"].get("said", [])
        return [(one["what"], one["by"]) for one in said] == [("Approved", "ada"), ("Approved", "bob"), ("Paused", "oto")]

    await world.until("author, approver and operator are on record", heard)
    assert versions(sites).count("1") == 1, "the author's approval opened the wave"
    await say(world, "oto", "rollout", "resume", "plants-1")
    await world.until("it waits again", waits)
    assert "1 of 2 people other than ada" in await say(world, "vic", "rollout", "show", "plants-1")
    await say(world, "cyd", "rollout", "approve", "plants-1", "rest")
    await world.until_ended(1, "Promoted", 60)
    shown = await say(world, "vic", "rollout", "show", "plants-1")
    for line in ("Approved rest bob canary is fine", "Paused - oto", "Resumed - oto", "Approved rest cyd"):
        assert line in " ".join(shown.split()), shown


@pytest.mark.timeout(180)
async def test_only_the_fleets_that_a_site_allows_come_to_it(world: World, sites: FakeSites) -> None:
    ours = await world.add_site("ours")
    others = await world.add_site("others", allowedNamespaces={"matchLabels": {"team": "somebody-else"}})
    nobodys = await world.add_site("nobodys", allowedNamespaces=None)
    for name in (ours, others, nobodys):
        await sites.add(name)

    async def all_heard() -> bool:
        bodies = await world.api.list(EDGE_SITES, labels=f"line={world.mark}")
        return all(body.get("status", {}).get("hardware") for body in bodies)

    await world.until("all sites are heard", all_heard, 90)
    await world.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "waves": [{"name": "all", "percent": 100}]})
    world.push("1")
    await world.name_release("1")
    await world.add_fleet()
    await world.until_ended(1, "Promoted")
    assert [len(sites[name].orders) for name in (ours, others, nobodys)] == [1, 0, 0]
    told = await world.until_condition(EDGE_FLEETS, "plants", "PlacementSatisfied", "Satisfied")
    assert "NamespaceNotAllowed" in told["message"]
    assert others in told["message"]
    assert nobodys in told["message"]

    # Opened to the team, the site joins; closed again, it keeps what it serves (I12).
    await world.add_site("others")

    async def joined() -> bool:
        return len(sites[others].orders) == 1

    await world.until("the opened site gets the model", joined)
    await world.add_site("others", allowedNamespaces={"matchLabels": {"team": "somebody-else"}})

    async def left() -> bool:
        return bool((await world.fleet())["status"]["sites"]["skipped"] == 2)

    await world.until("the closed site is left out", left)
    world.push("2")
    await world.name_release("2")
    await world.until_ended(2, "Promoted")
    assert [one.version for one in sites[ours].orders] == ["1", "2"]
    assert [one.version for one in sites[others].orders] == ["1"]
    assert sites[nobodys].orders == []
