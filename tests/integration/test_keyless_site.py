"""A real site that trusts identities: what its bundle does not vouch for is refused under the rule's name, and what serves goes on."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.kube.resources import CONFIG_MAPS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import attach_bundle
from edgefleet.trust.bundle import make_bundle
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.publishers import Publisher, Revoked
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE
from tests.integration.site_rig import Rig, open_rig
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer
from tests.lab.sigstore.private import PrivateSigstore, Rekor

ISSUER = "https://token.test"
SUBJECT = "https://github.com/acme/weld/.github/workflows/release.yml@refs/heads/main"
WE = Identity(ISSUER, SUBJECT)
SIGSTORE, OTHERS = PrivateSigstore(), PrivateSigstore("other.test")
ROOT = json.dumps(SIGSTORE.trusted_root()).encode()


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, kinds, registry, model_server, "keyless") as running:
        yield running


def release(rig: Rig, version: str, seq: int, rekor: Rekor) -> FrozenRevision:
    """Pushed, and signed and attested by the identity alone."""
    revision = rig.push(version, seq, signed=False)
    facts = {"model": rig.model, "version": version, "releaseSeq": seq, "createdAt": "2026-01-02T03:04:05Z"}
    with RegistryClient() as client:
        for kind, predicate in ((SIGN_PREDICATE, {}), (RELEASE_PREDICATE, facts)):
            bundle = SIGSTORE.sign(kind, revision.digest, predicate, subject=SUBJECT, issuer=ISSUER, rekor=rekor)
            attach_bundle(client, rig.repository, revision.digest, bundle, kind)
    return revision


async def trust(rig: Rig, version: int, publishers: dict[str, Publisher]) -> None:
    """A bundle that says this, in force at the site as soon as its agent runs."""
    data = make_bundle(
        roots=[rig.root_document],
        signers=[rig.root],
        version=version,
        content=BundleContent(publishers, (rig.hub_key.public,), next(iter(publishers.values())).revoked),
        expires_at=datetime.now(UTC) + timedelta(days=30),
    )
    body = {"metadata": {"name": "trust-bundle", "namespace": rig.namespace}, "data": {"bundle.json": data.decode()}}
    await rig.admin.apply(CONFIG_MAPS, body, manager="test")
    if rig.agent is not None:
        await rig.wait_for_bundle(version)


def root_with(edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = SIGSTORE.trusted_root()
    edit(document)
    return json.dumps(document).encode()


def end(document: dict[str, Any], kind: str) -> None:
    """Ends all of a kind before the site's releases were signed."""
    for one in document[kind]:
        one.get("publicKey", one)["validFor"]["end"] = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def foreign(kind: str) -> bytes:
    """Our root, with another Sigstore's entries of a kind instead of ours."""
    return root_with(lambda document: document.update({kind: OTHERS.trusted_root()[kind]}))


def by(*identities: Identity, root: bytes = ROOT, **more: Any) -> Publisher:
    return Publisher((), keyless=Keyless(identities, root), **more)


REFUSED = {
    "another subject": (by(Identity(ISSUER, SUBJECT + "x")), "IdentityMismatch: signed by https://github.com/acme/weld"),
    "a regex for its beginning": (by(Identity(ISSUER, subject_regex="https://github[.]com/acme/weld")), "IdentityMismatch"),
    "another issuer": (by(Identity(ISSUER + "/", SUBJECT)), "IdentityMismatch"),
    "the authority was removed": (by(WE, root=foreign("certificateAuthorities")), "CertificateInvalid"),
    "the CT log was removed": (by(WE, root=foreign("ctlogs")), "CertificateInvalid"),
    "the log was removed": (by(WE, root=foreign("tlogs")), "LogEntryInvalid"),
    "the timestamp authority was removed": (by(WE, root=foreign("timestampAuthorities")), "TimestampInvalid"),
    "the authority was ended": (by(WE, root=root_with(lambda one: end(one, "certificateAuthorities"))), "TrustedRootEnded"),
    "the log was ended": (by(WE, root=root_with(lambda one: end(one, "tlogs"))), "TrustedRootEnded"),
    "the identity was revoked": (
        by(Identity(ISSUER, subject_regex="https://github[.]com/acme/.*"), revoked=Revoked(identities=(WE,))),
        "PublisherRevoked",
    ),
}


@pytest.mark.timeout(180)
async def test_a_site_refuses_what_its_own_bundle_does_not_vouch_for(rig: Rig) -> None:
    first, second = release(rig, "1.0", 1, rekor=1), release(rig, "1.1", 2, rekor=2)
    await trust(rig, 2, {rig.model: by(WE)})
    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Active")
    serving = rig.serving()
    version = 2

    for what, (publisher, rule) in REFUSED.items():
        version += 1
        await trust(rig, version, {rig.model: publisher})
        await rig.assign(second)
        status = await rig.wait_for("Refused", "SignatureInvalid")
        assert rule in status.message, what
        assert (status.fault, status.active and status.active.revision) == ("Site", first.hash), what

    await trust(rig, version + 1, {"another": by(WE)})
    await rig.assign(second)
    assert "names no publisher of model" in (await rig.wait_for("Refused", "TrustNotAtSite")).message
    await trust(rig, version + 2, {rig.model: replace(by(WE), min_release_seq=3)})
    await rig.assign(second)
    await rig.wait_for("Refused", "SeqTooLow")
    assert rig.serving() == serving

    await trust(rig, version + 3, {rig.model: by(WE)})
    await rig.assign(second)
    await rig.wait_for("Active")
