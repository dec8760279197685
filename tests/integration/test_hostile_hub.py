"""A hub in the wrong hands: it holds the real hub key and orders what it likes from a real agent. Nothing of it is ever activated.

Everything is refused before a pod is made, so a namespace for pods is all of a node that is needed.
"""

import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.model import Golden, PodContainer, Serving
from edgefleet.api.site import Proxy, RegistryAccess
from edgefleet.core.limits import GoldenLimit, Limits, LimitsByModel
from edgefleet.kube.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, ROLE_BINDINGS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import attach_bundle, push_golden
from edgefleet.oci.reference import Repository
from edgefleet.site.inbox import Inbox
from edgefleet.site.prefetch import Prefetcher
from edgefleet.site.registries import Access
from edgefleet.site.store import Store
from edgefleet.trust.bundle import TrustBundle, make_bundle
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.limits import ImageSigner
from edgefleet.trust.orders import sign_order
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import GoldenFacts, ReleaseFacts, attest_golden, attest_release, sign_digest
from tests.integration.podsite import RIGHTS
from tests.integration.site_rig import ROLES, Client, Rig, open_rig, tensor
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240, func_only=True)]

SITE, PODS, ELSEWHERE = "captured-1", "captured-pods", "abroad"
STRANGER, IMAGES_KEY = PrivateKey.generate(), PrivateKey.generate()
RESTRICTED = {"allowPrivilegeEscalation": False}


@dataclass
class Captured:
    """A site that serves `good` under a bundle with limits, and what its hub may order: `better` would be activated at once."""

    rig: Rig
    good: FrozenRevision
    better: FrozenRevision
    evil: Registry
    client: Client
    images: dict[str, str] = field(default_factory=dict)
    """Images by how they are signed, by digest."""

    def pods(self, image: str = "", **container: Any) -> FrozenRevision:
        """`better`, served by pods of this image."""
        server = {"name": "server", "image": image or self.images["signed"], "securityContext": RESTRICTED, **container}
        deployment = {"template": {"spec": {"containers": [server]}}, "port": 8080, "mountPath": "/models"}
        return self.better.model_copy(update={"serving": Serving.model_validate({"deployment": deployment})})

    def exam(self, **changes: Any) -> FrozenRevision:
        """`better`, with another golden set."""
        assert self.better.golden is not None
        return self.better.model_copy(update={"golden": self.better.golden.model_copy(update=changes)})

    def mirror(self, host: str) -> tuple[RegistryAccess, ...]:
        """This host in the registry's place."""
        return (RegistryAccess(match=self.rig.registry.host, mirror=host),)


async def write_limits(rig: Rig, version: int, golden: GoldenLimit) -> None:
    """The trust bundle as people with root keys sign it."""
    host = rig.registry.host
    limits = Limits(images=(f"{host}/serving/*",), endpoints=(host,), golden=golden)
    content = BundleContent(
        {model: Publisher((rig.publisher.public,)) for model in (rig.model, ELSEWHERE)},
        (rig.hub_key.public,),
        limits=LimitsByModel(limits, {ELSEWHERE: Limits(regions=("de",))}),
        image_signers=(ImageSigner(f"{host}/serving/*", Publisher((IMAGES_KEY.public,))),),
    )
    ends = datetime.now(UTC) + timedelta(days=30)
    data = make_bundle(roots=[rig.root_document], signers=[rig.root], version=version, content=content, expires_at=ends)
    body = {"metadata": {"name": "trust-bundle", "namespace": rig.namespace}, "data": {"bundle.json": data.decode()}}
    await rig.admin.apply(CONFIG_MAPS, body, manager="test")


def easy_line(x: int) -> bytes:
    """A golden set of one line that anything passes."""
    return json.dumps({"inputs": [tensor(x)], "expect": {"output": "y", "label": x}}).encode()


def push_exam(rig: Rig, name: str, *, model: str = "", signed: bool = True) -> Golden:
    """A golden set that anything passes."""
    repository = Repository.parse(f"{rig.registry.host}/{name}")
    with RegistryClient() as client:
        digest = push_golden(client, repository, easy_line(len(name)))
        if signed:
            facts = GoldenFacts(model=model or rig.model, created_at=datetime.now(UTC))
            attach_bundle(client, repository, digest, sign_digest(rig.publisher, digest), "sign")
            attach_bundle(client, repository, digest, attest_golden(rig.publisher, digest, facts), "golden")
    return Golden(repository=str(repository), digest=digest, min="100%")


def push_images(registry: Registry) -> dict[str, str]:
    """Three images, by how they are signed. No pod ever starts, so that any artifact does for one."""
    repository = Repository.parse(f"{registry.host}/serving/mlserver")
    keys = {"signed": IMAGES_KEY, "signed by a stranger": STRANGER, "unsigned": None}
    images: dict[str, str] = {}
    with RegistryClient() as client:
        for name, key in keys.items():
            digest = push_golden(client, repository, easy_line(len(images)))
            if key is not None:
                attach_bundle(client, repository, digest, sign_digest(key, digest), "sign")
            images[name] = f"{repository}@{digest}"
    return images


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def captured(kinds: Lab, model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Captured]:
    """One site for the module. Whatever was tried, its clients were served by `good` alone, and no pod was asked for."""
    folder = tmp_path_factory.mktemp("captured")
    with Registry() as registry, Registry() as evil:
        async with open_rig(folder, kinds, registry, model_server, SITE) as rig:
            await rig.local.apply(NAMESPACES, {"metadata": {"name": PODS}}, manager="test")
            role = {"metadata": {"name": "edgefleet-pods", "namespace": PODS}, "rules": RIGHTS}
            await rig.local.apply(ROLES, role, manager="test")
            binding = {
                "metadata": {"name": "edgefleet-pods", "namespace": PODS},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "edgefleet-pods"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"edgefleet:agent:{rig.site}"}],
            }
            await rig.local.apply(ROLE_BINDINGS, binding, manager="test")
            await write_limits(rig, 2, GoldenLimit(90))
            rig.push_golden("90%")
            good, better = rig.push("1.0", 1), rig.push("1.1", 2)
            images = push_images(registry)
            rig.start_agent(pods_namespace=PODS, store_claim="store", store_folder="state", region="kz")
            rig.sequence = 40
            await rig.assign(good)
            await rig.wait_for("Active")
            with Client(rig) as client:
                await client.answered(5)
                yield Captured(rig, good, better, evil, client, images)
            await rig.local.delete(NAMESPACES, PODS)


@dataclass(frozen=True)
class Attack:
    """`make` gives what is signed; the rest is how it is written to the hub."""

    reason: str
    told: str
    make: Callable[[Captured], Order]
    key: PrivateKey | None = None
    copy: Callable[[Captured, Order], dict[str, Any]] = lambda _, __: {}


def order(of: Callable[[Captured], FrozenRevision | None] = lambda site: site.better, **changes: Any) -> Callable[[Captured], Order]:
    """The next order for a revision."""
    return lambda site: site.rig.order(of(site), **{name: value(site) if callable(value) else value for name, value in changes.items()})


def with_tag(site: Captured) -> FrozenRevision:
    """A template that no hub of ours could freeze."""
    serving = site.pods().serving
    assert serving.deployment is not None
    name = site.images["signed"].partition("@")[0]
    container = PodContainer.model_construct(name="server", image=f"{name}:latest")
    spec = serving.deployment.template.spec.model_copy(update={"containers": (container,)})
    template = serving.deployment.template.model_copy(update={"spec": spec})
    deployment = serving.deployment.model_copy(update={"template": template})
    return site.better.model_copy(update={"serving": serving.model_copy(update={"deployment": deployment})})


def under_the_active_hash(site: Captured) -> FrozenRevision:
    """Not what serves, but called so."""
    return site.pods(securityContext={"privileged": True}).model_copy(update={"hash": site.good.hash})


def almost(revision: str) -> str:
    """Another hash with the same first 8 digits, which is all that a model server is told."""
    return revision[:8] + "0" * 56


def swapped(**made: Any) -> Callable[[Captured], FrozenRevision]:
    """`better`, with a golden set made for this."""
    return lambda site: site.better.model_copy(update={"golden": push_exam(site.rig, **made)})


def abroad(site: Captured) -> FrozenRevision:
    """A good release of a model that must stay in another region."""
    facts = ReleaseFacts(model=ELSEWHERE, version=site.better.version, release_seq=site.better.seq, created_at=datetime.now(UTC))
    with RegistryClient() as client:
        bundle = attest_release(site.rig.publisher, site.better.digest, facts)
        attach_bundle(client, site.rig.repository, site.better.digest, bundle, "abroad")
    return site.better.model_copy(update={"model": ELSEWHERE, "golden": push_exam(site.rig, "exam-abroad", model=ELSEWHERE)})


ATTACKS = {
    "a privileged template": Attack(
        "PodNotAllowed", "privileged: True", order(lambda site: site.pods(securityContext={"privileged": True}))
    ),
    "a privileged template under the hash of what serves": Attack("PodNotAllowed", "privileged: True", order(under_the_active_hash)),
    "another release under the hash of what serves": Attack(
        "HashMismatch", "another digest", order(lambda site: site.better.model_copy(update={"hash": site.good.hash}))
    ),
    "another release under the short hash of what serves": Attack(
        "HashMismatch", "would be served as one", order(lambda site: site.better.model_copy(update={"hash": almost(site.good.hash)}))
    ),
    "the node's network": Attack("PodNotAllowed", "hostPort", order(lambda site: site.pods(ports=[{"containerPort": 80, "hostPort": 80}]))),
    "a foreign image": Attack(
        "ImageNotAllowed", "evil.example/miner", order(lambda site: site.pods("evil.example/miner@sha256:" + "6" * 64))
    ),
    "a tag instead of a digest": Attack("OrderMalformed", "image", order(with_tag)),
    "an image that nobody signed": Attack(
        "ImageSignatureMissing", "serving/mlserver", order(lambda site: site.pods(site.images["unsigned"]))
    ),
    "an image that a stranger signed": Attack(
        "ImageSignatureInvalid", "serving/mlserver", order(lambda site: site.pods(site.images["signed by a stranger"]))
    ),
    "another registry": Attack(
        "EndpointNotAllowed",
        "revision.repository",
        order(lambda site: site.better.model_copy(update={"repository": f"{site.evil.host}/weld"})),
    ),
    "another registry for the golden set": Attack(
        "EndpointNotAllowed", "revision.golden.repository", order(lambda site: site.exam(repository=f"{site.evil.host}/exam"))
    ),
    "a mirror": Attack("EndpointNotAllowed", ".mirror", order(registries=lambda site: site.mirror(site.evil.host))),
    "a proxy": Attack("EndpointNotAllowed", "proxy.https", order(proxy=lambda site: Proxy(https=f"http://{site.evil.host}"))),
    "a lower golden minimum": Attack("GoldenTooLow", "at least 90%", order(lambda site: site.exam(min="10%"))),
    "no golden set": Attack("GoldenMissing", "at least 90%", order(lambda site: site.better.model_copy(update={"golden": None}))),
    "a golden set of another model": Attack("ModelMismatch", "other", order(swapped(name="exam-other", model="other"))),
    "an unsigned golden set": Attack("SignatureMissing", "is not signed", order(swapped(name="exam-unsigned", signed=False))),
    "an old sequence": Attack("SequenceTooLow", "never goes back", order(sequence=7)),
    "a jump of 2^40": Attack("SequenceJump", "at most", order(sequence=1 << 40)),
    "another site's assignment": Attack("WrongSite", "signed for site 'elsewhere'", order(site="elsewhere")),
    "an order that has ended": Attack("TrustStale", "ended at", order(expires_at=datetime(2026, 1, 1, tzinfo=UTC))),
    "a withdrawal by another key": Attack("OrderSignatureInvalid", "trusted hub keys", order(lambda _: None), key=STRANGER),
    "a withdrawal in the copy alone": Attack(
        "CopyMismatch", "action", order(lambda site: site.good), copy=lambda _, __: {"action": "Withdraw"}
    ),
    "a withdrawal without an envelope": Attack(
        "OrderMalformed", "envelope", order(lambda _: None), copy=lambda _, __: {"envelope": "e30="}
    ),
    "a withdrawal with another order's envelope": Attack(
        "CopyMismatch",
        "action",
        order(lambda _: None),
        copy=lambda site, made: {
            "envelope": sign_order(made.model_copy(update={"action": "Run", "revision": site.good}), site.rig.hub_key)
        },
    ),
    "a wider residency": Attack("ResidencyDenied", "this site is in kz", order(abroad, model=ELSEWHERE)),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_nothing_of_it_is_activated_and_a_person_at_the_hub_sees_why(captured: Captured, name: str) -> None:
    attack, rig = ATTACKS[name], captured.rig
    made = attack.make(captured)
    await rig.write(made, key=attack.key, **attack.copy(captured, made))
    status = await rig.wait_for("Refused", attack.reason, sequence=made.sequence)
    assert status.fault == "Site"
    assert attack.told in status.message
    assert status.active is not None
    assert status.active.revision == captured.good.hash
    await captured.client.answered(3)
    assert_untouched(captured)
    assert await rig.local.list(DEPLOYMENTS, PODS) == []


def assert_untouched(captured: Captured) -> None:
    """All answers came from `good`, none was lost, and nobody was asked whom the hub had named."""
    assert captured.client.lost == []
    assert set(captured.client.answers) == {f"{captured.rig.model}--{captured.good.hash[:8]}"}
    assert captured.evil.requests == []


async def test_an_easier_golden_set_of_the_publisher_is_refused_where_the_bundle_names_which(captured: Captured) -> None:
    rig = captured.rig
    assert captured.better.golden is not None
    await write_limits(rig, 3, GoldenLimit(90, (captured.better.golden.digest,)))
    await rig.wait_for_bundle(3)
    await rig.assign(captured.better.model_copy(update={"golden": push_exam(rig, "exam-easier")}))
    status = await rig.wait_for("Refused", "GoldenNotAllowed")
    assert captured.better.golden.digest in status.message
    assert_untouched(captured)


async def test_what_stays_within_the_limits_is_activated(captured: Captured) -> None:
    """So each refusal above was for the attack, and for nothing else. Runs last."""
    assert_untouched(captured)
    await captured.rig.assign(captured.better)
    await captured.rig.wait_for("Active")


async def test_signatures_of_an_image_are_kept_for_times_without_a_registry(captured: Captured, tmp_path: Path) -> None:
    rig, host = captured.rig, captured.rig.registry.host
    signers = (ImageSigner(f"{host}/serving/*", Publisher((IMAGES_KEY.public,))),)
    trust = TrustBundle({rig.model: Publisher((rig.publisher.public,))}, (), version=1, expires_at=datetime.now(UTC), image_signers=signers)
    ordered = rig.order(captured.pods())
    prefetcher = Prefetcher(Store(tmp_path), Inbox(tmp_path / "inbox"))

    def run(trust: TrustBundle) -> set[str]:
        record = prefetcher.run(ordered, trust, access=Access(), protected=frozenset, now=datetime.now(UTC), stop=threading.Event())
        return {image.image for image in record.images}

    assert run(trust) == {captured.images["signed"]}
    asked = len(rig.registry.requests)
    assert run(trust) == {captured.images["signed"]}
    assert len(rig.registry.requests) == asked
    # Whom the bundle does not name any more, the kept evidence does not convince either.
    other = (ImageSigner(f"{host}/serving/*", Publisher((STRANGER.public,))),)
    with pytest.raises(Rejected, match="ImageSignatureInvalid"):
        run(TrustBundle(trust.publishers, (), version=2, expires_at=trust.expires_at, image_signers=other))
