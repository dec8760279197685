"""Releases that nobody's key signed: real cosign 3 and a private Sigstore, believed by hub and site, and the other way round."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edgefleet.api.model import Variant
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_MODELS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.push import VariantFiles, attach_bundle, push_model, tag_manifest
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keyless import KeylessVerifier
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import RELEASE_PREDICATE, SIGN_PREDICATE, verify_release
from edgefleet.trust.signatures import verify_bundle
from tests.integration.ground import MODEL, Releases, open_ground, prepare_clusters, tensor
from tests.integration.tensecond import TenSecondFleet
from tests.lab import LabError
from tests.lab.cluster import Lab
from tests.lab.faults import FaultPlan
from tests.lab.nursery import Knobs
from tests.lab.registry import Registry
from tests.lab.sigstore.clients import KeylessCosign, sign_as_sigstore_python
from tests.lab.sigstore.private import PrivateSigstore, Rekor
from tests.lab.sigstore.service import SigstoreService

ISSUER = "https://token.test"
SUBJECT = "https://github.com/acme/weld/.github/workflows/release.yml@refs/heads/main"
WE = Identity(ISSUER, SUBJECT)
KINDS = [pytest.param(1, False, id="log v1"), pytest.param(1, True, id="log v1 and timestamp"), pytest.param(2, True, id="log v2")]


@pytest.fixture(scope="module")
def service() -> Iterator[SigstoreService]:
    with SigstoreService(PrivateSigstore()) as running:
        yield running


def root_of(service: SigstoreService) -> bytes:
    return json.dumps(service.sigstore.trusted_root()).encode()


def facts(version: str) -> dict[str, Any]:
    return {"model": MODEL, "version": version, "releaseSeq": int(version), "createdAt": "2026-01-02T03:04:05Z"}


def push(folder: Path, repository: Repository, version: str) -> str:
    """An unsigned release; its digest."""
    made = folder / f"unsigned-{version}"
    made.mkdir(exist_ok=True)
    (made / "weights.json").write_text(json.dumps({"bias": 0, "version": version}))
    (made / "model-settings.json").write_text(json.dumps({"name": MODEL, "implementation": "fake"}))
    variant = Variant(name="cpu", digest="sha256:" + "0" * 64, size=0, arch="amd64")
    with RegistryClient() as client:
        files = {name: made / name for name in ("weights.json", "model-settings.json")}
        digest = push_model(client, repository, name=MODEL, version=version, variants=[VariantFiles(variant, files)])
        tag_manifest(client, repository, digest, version)
    return digest


def bundles_of(repository: Repository, digest: str) -> tuple[bytes, ...]:
    with RegistryClient() as client:
        return fetch_bundles(client, repository, digest).bundles


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("rekor", "stamped"), KINDS)
def test_what_cosign_signs_without_a_key_is_believed(
    rekor: Rekor, stamped: bool, cosign: Path, service: SigstoreService, registry: Registry, tmp_path: Path
) -> None:
    repository = Repository.parse(f"{registry.host}/keyless/cosign")
    digest = push(tmp_path, repository, "7")
    signer = KeylessCosign.make(cosign, tmp_path / "cosign", service, subject=SUBJECT, issuer=ISSUER, rekor=rekor, stamped=stamped)
    signer.sign(f"{repository}@{digest}")
    signer.attest(f"{repository}@{digest}", RELEASE_PREDICATE, facts("7"))

    found = verify_release(
        digest=digest,
        model=MODEL,
        bundles=bundles_of(repository, digest),
        publisher=Publisher((), 1, 7, Keyless((WE,), root_of(service))),
    )
    assert [(one.name, one.issuer) for one in found.signers] == [(SUBJECT, ISSUER)]
    assert json.loads(signer.verify(f"{repository}@{digest}"))[0]["critical"]["image"]["docker-manifest-digest"] == digest


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("rekor", "stamped"), KINDS)
def test_cosign_believes_what_the_lab_signs(
    rekor: Rekor, stamped: bool, cosign: Path, service: SigstoreService, registry: Registry, tmp_path: Path
) -> None:
    """Else tests could be green against a Sigstore that is none."""
    repository = Repository.parse(f"{registry.host}/keyless/lab")
    digest = push(tmp_path, repository, "7")
    who: dict[str, Any] = {"subject": SUBJECT, "issuer": ISSUER, "rekor": rekor, "stamped": stamped}
    with RegistryClient() as client:
        for kind, predicate in ((SIGN_PREDICATE, {}), (RELEASE_PREDICATE, facts("7"))):
            attach_bundle(client, repository, digest, service.sigstore.sign(kind, digest, predicate, **who), kind)
    reader = KeylessCosign.make(cosign, tmp_path / "cosign", service, subject=SUBJECT, issuer=ISSUER)
    assert digest in reader.verify(f"{repository}@{digest}")
    assert "payload" in reader.verify_attestation(f"{repository}@{digest}", RELEASE_PREDICATE)
    stranger = KeylessCosign.make(cosign, tmp_path / "stranger", service, subject=SUBJECT + "x", issuer=ISSUER)
    with pytest.raises(LabError, match="no matching CertificateIdentity found"):
        stranger.verify(f"{repository}@{digest}")


@pytest.mark.parametrize("rekor", [1, 2])
def test_what_sigstore_python_signs_is_believed(rekor: Rekor, service: SigstoreService) -> None:
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "index", "digest": {"sha256": "a" * 64}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    }
    address = "release@acme.test"
    made = sign_as_sigstore_python(service, json.dumps(statement).encode(), subject=address, issuer=ISSUER, rekor=rekor)
    verifier = KeylessVerifier(Keyless((Identity(ISSUER, address),), root_of(service)))
    assert verify_bundle(made, verifier).by.name == address
    with pytest.raises(Rejected):
        verify_bundle(made, KeylessVerifier(Keyless((WE,), root_of(service))))


# From `cosign sign` to a site that serves


class KeylessFleet(TenSecondFleet):
    """One site. Golden sets are signed by the key of all ten-second fleets, releases by an identity."""

    SITES = ("a",)
    root = b""

    def publisher(self) -> Publisher:
        return Publisher(super().publisher().keys, 1, 0, Keyless((WE,), self.root))

    def verify(self) -> dict[str, Any]:
        keyless = {"identities": [{"issuer": ISSUER, "subject": SUBJECT}], "trustedRootRef": "sigstore"}
        return {**super().verify(), "keyless": keyless}

    async def write_root(self, root: bytes, version: int) -> None:
        """The ConfigMap that the model names."""
        data = {"trusted_root.json": root.decode(), "version": str(version)}
        await self.admin.apply(CONFIG_MAPS, {"metadata": {"name": "sigstore", "namespace": self.team}, "data": data}, manager="person")

    async def ask(self, x: int) -> list[int]:
        """What the site's gateway answers."""
        url = f"http://127.0.0.1:{self._ports['a']}/v2/models/{MODEL}/infer"
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.post(url, json={"inputs": [tensor(x)]}) as answer,
        ):
            body = await answer.json()
        assert answer.status == 200, body
        found: list[int] = body["outputs"][0]["data"]
        return found

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin.get(EDGE_MODELS, MODEL, self.team)).get("status", {})
        return found

    async def until_source(self, reason: str, message: str = "", release: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
        """Wait until the model's source is verified, or refused, for this reason."""
        seen: dict[str, Any] = {}

        async def says() -> bool:
            status = await self.status()
            seen.update(status)
            conditions = {one["type"]: one for one in status.get("conditions", ())}
            told = conditions.get("SourceVerified", {})
            return told.get("reason") == reason and message in told["message"] and release(status.get("release", {}))

        try:
            await self.until(f"the source is {reason}", says)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(seen)[:3000]}") from None


@pytest.fixture(scope="module")
def releases(cosign: Path, service: SigstoreService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    """Release 1 signed by cosign with a log of version 1, release 2 with a log of version 2; both without a key."""
    folder = tmp_path_factory.mktemp("releases")
    with Registry() as registry:
        made = Releases(registry, folder)
        for version, rekor in (("1", 1), ("2", 2)):
            digest = push(folder, made.repository, version)
            who = KeylessCosign.make(cosign, folder / f"cosign-{version}", service, subject=SUBJECT, issuer=ISSUER, rekor=rekor)
            who.sign(f"{made.repository}@{digest}")
            who.attest(f"{made.repository}@{digest}", RELEASE_PREDICATE, facts(version))
        yield made


@pytest.fixture
def own_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of its own: the hub works on a whole API server, and its fleet's objects must not be among other tests'."""
    running = Lab.start(tmp_path_factory.mktemp("lab"), ["east"])
    yield running
    running.stop()


@pytest.mark.timeout(400)
async def test_a_keyless_release_goes_from_cosign_to_a_site_that_serves_it(
    own_lab: Lab, service: SigstoreService, releases: Releases, tmp_path: Path
) -> None:
    root = root_of(service)
    hub = prepare_clusters(own_lab)[0]
    KeylessFleet.root = root
    async with (
        open_ground(own_lab, [hub], releases, tmp_path) as ground,
        KeylessFleet(ground, ground.lanes[0], FaultPlan(), Knobs(), patience=100) as fleet,
    ):
        await fleet.name_release("1")
        await fleet.start()
        await fleet.until_source("TrustedRootNotFound", "does not exist")
        await fleet.write_root(root, 2)
        await fleet.add_fleet()
        await fleet.until_ended(1, "Promoted")
        await fleet.name_release("2")
        await fleet.until_ended(2, "Promoted")
        release = (await fleet.status())["release"]
        assert (release["version"], release["signedBy"], release["trustedRoot"]) == ("2", [SUBJECT], {"name": "sigstore", "version": 2})
        assert [(one["subject"], one["issuer"]) for one in release["identities"]] == [(SUBJECT, ISSUER)]
        assert release["identities"][0]["loggedAt"] <= release["verifiedAt"]
        assert await fleet.ask(5) == [5]

        # The root, and who is trusted, are asked again: nothing that was verified before hides a change.
        await fleet.write_root(root, 1)
        await fleet.until_source("TrustedRootRollback", "version 2 was already believed")
        await fleet.write_root(json.dumps(PrivateSigstore("other.test").trusted_root()).encode(), 3)
        await fleet.until_source("SignatureInvalid", "TimestampInvalid")
        await fleet.write_root(root, 4)
        await fleet.until_source("Verified", release=lambda found: bool(found["trustedRoot"]["version"] == 4))
        other = {"identities": [{"issuer": ISSUER, "subjectRegex": "https://github.com/acme/weld"}], "trustedRootRef": "sigstore"}
        await fleet.name_release("2", verify={**fleet.verify(), "keyless": other})
        await fleet.until_source("SignatureInvalid", "IdentityMismatch")
        await fleet.name_release("2", verify={"keyless": fleet.verify()["keyless"]})
        await fleet.until_source("SignatureInvalid", "golden set")
        assert await fleet.ask(6) == [6], "what serves goes on"
