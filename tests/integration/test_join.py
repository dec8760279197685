"""How a site comes to the hub, stays there and leaves: a real hub under its chart's rights, real certificates, the agent's own identity."""

import asyncio
import base64
import io
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefleet.api.join import JoinFile
from edgefleet.api.meta import EXPIRES_ANNOTATION, JOIN_NAMESPACE, SITE_LABEL, format_time, site_namespace
from edgefleet.cli.app import run
from edgefleet.hub.events import Events
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.joining import Joining
from edgefleet.kube.client import Api
from edgefleet.kube.connection import make_connection
from edgefleet.kube.errors import ApiError, Denied, NotFound
from edgefleet.kube.resources import (
    CERTIFICATE_REQUESTS,
    EDGE_SITES,
    EVENTS,
    LEASES,
    ROLE_BINDINGS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SITE_ASSIGNMENTS,
)
from edgefleet.site.identity import Identity, Timing
from edgefleet.site.identity_files import describe, read_join_file
from edgefleet.site.tpm_device import Device
from edgefleet.trust.bundle import make_root
from edgefleet.trust.identity import make_request, read_certificate
from edgefleet.trust.keys import PrivateKey
from tests.integration.site_rig import open_rig
from tests.lab.binaries import fetch_kubectl
from tests.lab.cluster import Cluster, Lab
from tests.lab.installed import hub_kubeconfig
from tests.lab.pki import Authority
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

LIMIT = 60.0
QUICK = Timing(lifetime=timedelta(minutes=10), renew_after=0.99, look_seconds=0.2)
"""Looks often, and renews nothing within a test."""
EAGER = Timing(lifetime=timedelta(minutes=10), renew_after=0.337, look_seconds=0.2, refused_seconds=1)
"""Renews seconds after the grant: certificates begin 5 minutes before they are made, so a third of this one's life is over at once."""


APPROVAL = {"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x", "message": "x"}]}}
pytestmark = pytest.mark.timeout(180)


class SharedHub:
    """One hub process for all tests here: it serves every EdgeSite of the cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._log = cluster, folder / "hub.log"
        self.namespace = f"system-{uuid.uuid4().hex[:6]}"
        self._process: subprocess.Popen[bytes] | None = None
        key = base64.b64encode(PrivateKey.generate().to_pem().encode()).decode()
        for body in (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}},
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "hub-key", "namespace": self.namespace},
                "data": {"hub.key": key},
            },
        ):
            cluster.kubectl("create", "-f", "-", stdin=json.dumps(body))

    def start(self) -> None:
        options = ["--kubeconfig", str(hub_kubeconfig(self._cluster)), "--namespace", self.namespace, "--identity", "joining"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgefleet", "hub", *options], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        return self._log.read_text()[-4000:]


@pytest.fixture(scope="module")
def hub(hub_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHub]:
    one = SharedHub(hub_cluster, tmp_path_factory.mktemp("hub"))
    one.start()
    yield one
    one.kill()
    hub_cluster.kubectl("delete", "namespace", one.namespace, "--wait=false")


@dataclass
class Place:
    """A test's own corner of the hub: its sites have names of their own."""

    lab: Lab
    hub: SharedHub
    api: Api
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    def site(self, name: str) -> str:
        return f"{name}-{self.mark}"

    async def add_site(self, name: str) -> str:
        body = {"metadata": {"name": self.site(name), "labels": {"place": self.mark}}, "spec": {"region": "de"}}
        await self.api.apply(EDGE_SITES, body, manager="person")
        return self.site(name)

    async def until_condition(self, site: str, kind: str, reason: str) -> None:
        async def holds() -> bool:
            conditions = (await self.api.get(EDGE_SITES, site)).get("status", {}).get("conditions", [])
            return any((one["type"], one["reason"]) == (kind, reason) for one in conditions)

        await until(holds, lambda: f"EdgeSite {site} says {kind} {reason}\n{self.hub.log()}")


@pytest.fixture
async def place(lab: Lab, hub: SharedHub, tmp_path: Path) -> AsyncIterator[Place]:
    async with Api.connect(lab.hub.kubeconfig, user_agent="person") as api:
        one = Place(lab, hub, api, tmp_path)
        yield one
        for body in await api.list(EDGE_SITES):
            if body["metadata"]["name"].endswith(one.mark):
                await api.delete(EDGE_SITES, body["metadata"]["name"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    key = PrivateKey.generate()
    document = make_root([key.public], signers=[key], threshold=1, version=1, expires_at=datetime.now(UTC) + timedelta(days=30))
    (tmp_path / "root.json").write_bytes(document)
    return tmp_path / "root.json"


class Machine:
    """One machine that is, or wants to be, a site: its state folder, its identity as the agent runs it, its connection to the hub."""

    def __init__(self, folder: Path, file: Path, timing: Timing, tpm: Device | None = None) -> None:
        self.folder, self.file = folder, file
        self.identity = Identity(folder, file, tpm=tpm, timing=timing)
        self.hub = Api(self.identity.connect(), user_agent="machine", attempts=1)

    @property
    def note(self) -> str:
        """What it said last."""
        try:
            return str(describe(self.folder)["note"])
        except Exception:
            return ""

    @property
    def key(self) -> str:
        """The key of its certificate."""
        return read_certificate((self.folder / "site.pem").read_bytes()).key

    async def until_note(self, part: str) -> None:
        await until(lambda: is_true(part in self.note), lambda: f"a note with {part!r}; the last one was {self.note!r}")

    async def until_joined(self) -> None:
        try:
            await asyncio.wait_for(self.identity.joined.wait(), LIMIT)
        except TimeoutError:
            raise AssertionError(f"not joined: {self.note}") from None

    async def renews_lease(self, site: str) -> None:
        meta = {"name": "agent", "namespace": site_namespace(site), "labels": {SITE_LABEL: site}}
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": site, "renewTime": moment, "leaseDurationSeconds": 180}
        await self.hub.apply(LEASES, {"metadata": meta, "spec": spec}, manager="edgefleet-agent")


@asynccontextmanager
async def machine(folder: Path, file: Path, timing: Timing = QUICK, tpm: Device | None = None) -> AsyncIterator[Machine]:
    one = Machine(folder, file, timing, tpm)
    async with one.hub:
        task = asyncio.create_task(one.identity.run(one.hub))
        try:
            yield one
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def is_true(fact: bool) -> bool:
    return fact


async def until(fact: Callable[[], Awaitable[bool]], otherwise: Callable[[], str], limit: float = LIMIT) -> None:
    try:
        async with asyncio.timeout(limit):
            while not await fact():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {limit:g} s: {otherwise()}") from None


async def say(place: Place, *words: str, code: int = 0) -> str:
    """`edgefleet WORDS` at the hub; what it printed."""
    out, err = io.StringIO(), io.StringIO()

    def command() -> int:
        with redirect_stdout(out), redirect_stderr(err):
            return run([*words, "--kubeconfig", str(place.lab.hub.kubeconfig)])

    assert await asyncio.to_thread(command) == code, out.getvalue() + err.getvalue()
    return out.getvalue() if code == 0 else err.getvalue()


async def invite(place: Place, site: str, root: Path, *words: str, to: str = "join.json") -> Path:
    """A join file, as a person makes it."""
    file = place.folder / to
    await say(place, "site", "join", site, "--trusted-root", str(root), "--write", str(file), *words)
    return file


async def site_of(place: Place, name: str) -> dict[str, Any]:
    return await place.api.get(EDGE_SITES, name)


async def until_event(place: Place, site: str, reason: str) -> str:
    found: list[str] = []

    async def told() -> bool:
        for event in await place.api.list(EVENTS, "default"):
            if event["involvedObject"].get("name") == site and event["reason"] == reason:
                found.append(event["message"])
        return bool(found)

    await until(told, lambda: f"an Event {reason} of EdgeSite {site}\n{place.hub.log()}")
    return found[0]


async def until_reason(place: Place, request: str) -> str:
    """How the hub answered a request: `Denied SubjectMismatch`."""
    found: list[str] = []

    async def answered() -> bool:
        body = await place.api.get(CERTIFICATE_REQUESTS, request)
        found[:] = [f"{one['type']} {one['reason']}" for one in body.get("status", {}).get("conditions", [])]
        return bool(found)

    await until(answered, lambda: f"an answer to {request}\n{place.hub.log()}")
    return found[0]


def request_body(name: str, site: str, *, pem: bytes | None = None, **spec: Any) -> dict[str, Any]:
    pem = pem or make_request(PrivateKey.generate(), site)
    whole = {
        "request": base64.b64encode(pem).decode(),
        "signerName": "kubernetes.io/kube-apiserver-client",
        "expirationSeconds": 3600,
        "usages": ["client auth", "digital signature"],
        **spec,
    }
    return {"metadata": {"name": name}, "spec": {field: value for field, value in whole.items() if value is not None}}


def odd_request(*fields: tuple[x509.ObjectIdentifier, str]) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(field, value) for field, value in fields])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


@asynccontextmanager
async def token_holder(file: Path) -> AsyncIterator[Api]:
    """Whoever has a join file, and does with it what no agent does."""
    found = read_join_file(file)
    async with Api(make_connection(found.hub, found.ca.encode(), token=found.token), user_agent="thief", attempts=1) as api:
        yield api


async def test_a_site_joins_by_one_command_and_is_itself_alone(place: Place, root: Path) -> None:
    site = place.site("plant")
    other = await place.add_site("other")
    file = await invite(place, site, root, "--create", "--region", "kz")
    assert file.stat().st_mode & 0o777 == 0o600
    async with machine(place.folder / "one", file) as one:
        await one.until_joined()
        assert (one.identity.site, one.identity.root) == (site, root.read_bytes())
        assert (one.folder / "site.pem").stat().st_mode & 0o777 == 0o600
        own = read_certificate((one.folder / "site.pem").read_bytes())
        assert sorted(own.subject) == [("CN", f"edgefleet:site:{site}"), ("O", "edgefleet:sites")]
        body = await site_of(place, site)
        assert body["spec"] == {"region": "kz"} | {key: body["spec"][key] for key in body["spec"] if key != "region"}
        assert body["status"]["identity"]["key"] == own.key
        await place.until_condition(site, "Joined", "CertificateGranted")

        async def has_rights() -> bool:
            try:
                await one.renews_lease(site)
            except Denied:
                return False
            return True

        await until(has_rights, lambda: "its rights in its namespace")
        for kind, namespace in ((SITE_ASSIGNMENTS, site_namespace(other)), (SECRETS, site_namespace(site))):
            with pytest.raises(Denied):
                await one.hub.list(kind, namespace)
        with pytest.raises(Denied):
            await one.hub.list(EDGE_SITES)
    file.unlink()
    async with machine(place.folder / "one", file) as again:
        assert again.identity.joined.is_set(), "a restart needs no join file"
        await again.renews_lease(site)


async def test_a_certificate_is_renewed_under_a_new_key_and_the_old_one_is_spent(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    async with machine(place.folder / "one", await invite(place, site, root), EAGER) as one:
        await one.until_joined()
        first = one.key
        shutil.copytree(one.folder, place.folder / "stolen")

        async def renewed() -> bool:
            return one.key != first

        await until(renewed, lambda: f"a renewal: {one.note}\n{place.hub.log()}")
        second = one.key
        await one.renews_lease(site)
    identity = (await site_of(place, site))["status"]["identity"]
    assert second in (identity["key"], identity["previous"]), "it may have renewed once more in that moment"
    assert identity["renewedAt"]
    # Whoever copied the disk before has a certificate that is still good, and a folder that looks like the site's.
    async with machine(place.folder / "stolen", place.folder / "nowhere", EAGER) as thief:
        assert thief.key == first
        await thief.until_note("CredentialReplaced")
        assert thief.key == first
    assert "two machines" in await until_event(place, site, "CredentialReplaced")


async def test_a_stolen_token_is_good_for_one_key_only(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    file = await invite(place, site, root)
    copy = place.folder / "copy.json"
    shutil.copy(file, copy)
    async with machine(place.folder / "one", file) as one, machine(place.folder / "thief", copy) as thief:

        async def one_of_them_is_in() -> bool:
            return one.identity.joined.is_set() != thief.identity.joined.is_set()

        await until(one_of_them_is_in, lambda: f"{one.note} / {thief.note}")
        late = thief if one.identity.joined.is_set() else one
        await late.until_note("TokenUsed")
        assert not late.identity.joined.is_set()
    assert "with another key" in await until_event(place, site, "TokenUsed")
    # And once more after the site has joined.
    async with machine(place.folder / "later", copy) as later:
        await later.until_note("TokenUsed")
        assert "edgefleet site join" in later.note, "the remedy is named"


async def test_a_second_site_under_one_name_needs_a_person_and_takes_the_place(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    async with machine(place.folder / "one", await invite(place, site, root), QUICK) as one:
        await one.until_joined()
        refusal = await say(place, "site", "join", site, "--trusted-root", str(root), code=1)
        assert "AlreadyJoined" in refusal
        assert "--again" in refusal
        async with machine(place.folder / "two", await invite(place, site, root, "--again", to="second.json")) as two:
            await two.until_joined()
            assert (await site_of(place, site))["status"]["identity"]["key"] == two.key
    async with machine(place.folder / "one", place.folder / "nowhere", EAGER) as one:
        await one.until_note("CredentialReplaced")
    await until_event(place, site, "CredentialReplaced")


def expired_certificate(authority: Authority, site: str) -> bytes:
    """Key and certificate as the signer made them a month ago."""
    ca = x509.load_pem_x509_certificate(authority.pair.cert.read_bytes())
    ca_key = serialization.load_pem_private_key(authority.pair.key.read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = PrivateKey.generate()
    request = x509.load_pem_x509_csr(make_request(key, site))
    begin = datetime.now(UTC) - timedelta(days=30)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(ca.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return key.to_pem().encode() + certificate.public_bytes(serialization.Encoding.PEM)


async def test_after_a_month_off_line_a_site_says_what_it_needs_and_takes_it_without_a_restart(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    file = await invite(place, site, root)
    async with machine(place.folder / "one", file) as one:
        await one.until_joined()
    authority = place.lab.hub.authority
    assert authority is not None
    (place.folder / "one" / "site.pem").write_bytes(expired_certificate(authority, site))
    async with machine(place.folder / "one", file) as one:
        await one.until_note("ended at")
        assert "it serves what it has" in one.note
        assert f"edgefleet site join {site}" in one.note
        with pytest.raises(Denied) as refusal:
            await one.renews_lease(site)
        assert refusal.value.status == 401
        await invite(place, site, root, "--again")
        await one.until_note("joined as")
        await one.renews_lease(site)


async def test_a_token_past_its_time_is_refused(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    file = await invite(place, site, root)
    body = json.loads(file.read_text())
    body["token"] = age_token(body["token"], place.lab.hub.folder / "service-accounts.key", timedelta(days=1))
    file.write_text(json.dumps(body))
    async with machine(place.folder / "one", file) as one:
        await one.until_note("past its time")
        assert f"edgefleet site join {site}" in one.note
        await invite(place, site, root)
        await one.until_joined()


def age_token(token: str, signing_key: Path, by: timedelta) -> str:
    """The same token, as it would look so long after it was made."""
    head, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    for claim in ("exp", "iat", "nbf"):
        claims[claim] -= int(by.total_seconds())
    signed = f"{head}.{_url64(json.dumps(claims).encode())}"
    key = serialization.load_pem_private_key(signing_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_a_token_asks_for_nothing_but_its_own_site(place: Place, root: Path) -> None:
    site, other = await place.add_site("plant"), await place.add_site("other")
    file = await invite(place, site, root)
    group, person = NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME
    mine = [(group, "edgefleet:sites"), (person, f"edgefleet:site:{site}")]
    async with token_holder(file) as api:
        for number, (expected, body) in enumerate(
            (
                ("Denied SubjectMismatch", {"pem": make_request(PrivateKey.generate(), other)}),
                ("Denied SubjectMismatch", {"pem": odd_request(*mine, (group, "team:admins"))}),
                ("Denied SubjectMismatch", {"pem": odd_request((person, "alice"))}),
                ("Denied UsagesNotAllowed", {"usages": ["client auth", "digital signature", "key encipherment"]}),
            )
        ):
            name = f"{site}-{number}"
            await api.create(CERTIFICATE_REQUESTS, request_body(name, site, **body))
            assert await until_reason(place, name) == expected
        for said, body in (
            ("system:masters", {"pem": odd_request(*mine, (group, "system:masters"))}),
            ("at most 24 h", {"expirationSeconds": 86401}),
            ("at most 24 h", {"expirationSeconds": None}),
            ("of this API server only", {"signerName": "kubernetes.io/kubelet-serving"}),
        ):
            with pytest.raises(ApiError, match=said):
                await api.create(CERTIFICATE_REQUESTS, request_body(f"{site}-x", site, **body))
    assert "identity" not in (await site_of(place, site)).get("status", {})
    await until_event(place, site, "SubjectMismatch")


async def test_a_token_gives_no_other_right(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    async with token_holder(await invite(place, site, root)) as api:
        await api.create(CERTIFICATE_REQUESTS, request_body(f"{site}-own", site))
        attempts: list[Callable[[], Awaitable[Any]]] = [
            lambda: api.patch(CERTIFICATE_REQUESTS, f"{site}-own", None, APPROVAL, subresource="approval"),
            lambda: api.list(CERTIFICATE_REQUESTS),
            lambda: api.delete(CERTIFICATE_REQUESTS, f"{site}-own"),
            lambda: api.get(EDGE_SITES, site),
            lambda: api.list(SITE_ASSIGNMENTS, site_namespace(site)),
            lambda: api.list(SECRETS, JOIN_NAMESPACE),
            lambda: api.create_token(f"join-{site}", JOIN_NAMESPACE, seconds=600),
        ]
        for attempt in attempts:
            with pytest.raises(Denied, match="forbidden"):
                await attempt()


async def test_requests_of_others_are_left_alone_and_the_hub_could_not_approve_them(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    foreign = f"foreign-{site}"
    await place.api.create(CERTIFICATE_REQUESTS, request_body(foreign, site))
    async with machine(place.folder / "one", await invite(place, site, root)) as one:
        await one.until_joined()
    assert "conditions" not in (await place.api.get(CERTIFICATE_REQUESTS, foreign)).get("status", {})
    async with Api.connect(hub_kubeconfig(place.lab.hub), user_agent="as-hub") as as_hub:
        with pytest.raises(ApiError, match="join accounts and sites only"):
            await as_hub.patch(CERTIFICATE_REQUESTS, foreign, None, APPROVAL, subresource="approval")
    await place.api.delete(CERTIFICATE_REQUESTS, foreign)


async def test_who_left_has_no_rights_until_it_joins_again(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    file = await invite(place, site, root)
    async with machine(place.folder / "one", file) as one:
        await one.until_joined()
        await until(lambda: can(one, site), lambda: "its rights")
        said = json.loads(await say(place, "site", "leave", site, "-o", "json"))
        assert json.loads(await say(place, "site", "leave", site, "-o", "json")) == said, "it may be done twice"
        await until(lambda: cannot(one, site), lambda: "the end of its rights")
        await place.until_condition(site, "Joined", "Left")
        with pytest.raises(NotFound):
            await place.api.get(SERVICE_ACCOUNTS, f"join-{site}", JOIN_NAMESPACE)
    # The hub gives the rights back neither at its next start, nor when there is a new trust bundle for all.
    place.hub.kill()
    place.hub.start()
    bundle = {"metadata": {"name": "trust-bundle", "namespace": place.hub.namespace}, "data": {"bundle.json": "{}"}}
    place.lab.hub.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", **bundle}))
    neighbour = await place.add_site("neighbour")

    async def neighbour_is_set_up() -> bool:
        try:
            return bool(await place.api.get(ROLE_BINDINGS, "edgefleet-site", site_namespace(neighbour)))
        except NotFound:
            return False

    await until(neighbour_is_set_up, lambda: f"the neighbour's rights\n{place.hub.log()}")
    with pytest.raises(NotFound):
        await place.api.get(ROLE_BINDINGS, "edgefleet-site", site_namespace(site))
    async with machine(place.folder / "one", file, EAGER) as one:
        await one.until_note("SiteLeft")
        await invite(place, site, root)
        await one.until_note("joined as")
        await until(lambda: can(one, site), lambda: f"its rights again\n{place.hub.log()}")
    assert (await say(place, "site", "leave", "no-such-site", code=1)).startswith("error: NoSuchSite")


async def can(one: Machine, site: str) -> bool:
    try:
        await one.renews_lease(site)
    except Denied:
        return False
    return True


async def cannot(one: Machine, site: str) -> bool:
    return not await can(one, site)


async def test_an_edge_site_that_was_pruned_and_applied_again_keeps_its_machine(place: Place, root: Path) -> None:
    """GitOps may do that; the status is gone with it, and nobody should have to visit the site (I12)."""
    site = await place.add_site("plant")
    async with machine(place.folder / "one", await invite(place, site, root)) as one:
        await one.until_joined()
        before = one.key
    await place.api.delete(EDGE_SITES, site)
    async with machine(place.folder / "one", place.folder / "nowhere", EAGER) as one:
        await one.until_note("NoSuchSite")
        assert await place.add_site("plant") == site

        async def renewed() -> bool:
            return one.key != before

        await until(renewed, lambda: f"a renewal: {one.note}")
    assert (await site_of(place, site))["status"]["identity"]["key"] == one.key


async def test_an_agent_that_dies_while_it_waits_finds_its_own_request_again(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    file = await invite(place, site, root)
    place.hub.kill()
    async with machine(place.folder / "one", file) as one:
        await one.until_note("waits for the approval of the hub")
    place.hub.start()
    async with machine(place.folder / "one", file) as one:
        await one.until_joined()
    own = [body for body in await place.api.list(CERTIFICATE_REQUESTS) if body["metadata"]["name"].startswith(f"edgefleet-{site}-")]
    assert len(own) == 1


async def test_a_join_file_for_another_site_or_with_another_root_changes_nothing(place: Place, root: Path) -> None:
    site, other = await place.add_site("plant"), await place.add_site("other")
    file = await invite(place, site, root)
    async with machine(place.folder / "one", file) as one:
        await one.until_joined()
        key = one.key
        await invite(place, other, root)
        await one.until_note("each site has a folder of its own")
        body = json.loads((await invite(place, site, root, "--again")).read_text())
        await until(lambda: is_true(one.key != key), lambda: f"the use of a new join file: {one.note}")
        key = one.key
        file.write_text(json.dumps({**body, "token": "another", "root": body["root"] + " "}))
        await one.until_note("another root document")
        assert one.key == key


async def test_join_accounts_go_when_they_have_done_their_work(place: Place, root: Path) -> None:
    """Swept as the hub does it once a minute, under its rights; here at once."""
    old, used, fresh = [await place.add_site(name) for name in ("old", "used", "fresh")]
    for site in (old, used, fresh):
        await invite(place, site, root, to=f"{site}.json")
    past = {"metadata": {"annotations": {EXPIRES_ANNOTATION: format_time(datetime.now(UTC) - timedelta(minutes=1))}}}
    await place.api.patch(SERVICE_ACCOUNTS, f"join-{old}", JOIN_NAMESPACE, past)
    async with machine(place.folder / "one", place.folder / f"{used}.json") as one:
        await one.until_joined()
        await until(lambda: can(one, used), lambda: "its rights")
    async with Api.connect(hub_kubeconfig(place.lab.hub), user_agent="sweeper") as api:
        identity = (await site_of(place, used))["status"]["identity"]
        identity["joinedAt"] = format_time(datetime.now(UTC) - timedelta(hours=1))
        await api.apply(
            EDGE_SITES,
            {"metadata": {"name": used}, "status": {"identity": identity}},
            manager="edgefleet-hub-joining",
            subresource="status",
        )
        nothing: Any = lambda *_: None  # noqa: E731
        inventory = Inventory(api, on_fleet=nothing, on_site=nothing, on_renewal=nothing, on_health=nothing, on_heartbeat=nothing)
        joining = Joining(api, inventory, Events(api, {}), namespace=place.hub.namespace, on_request=nothing)
        tasks = [asyncio.create_task(part) for part in (inventory.run(), joining.run())]
        try:
            for site in (old, used):
                await until(lambda site=site: is_gone(place, f"join-{site}"), lambda site=site: f"the end of join-{site}")  # type: ignore[misc]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert not await is_gone(place, f"join-{fresh}")


async def is_gone(place: Place, account: str) -> bool:
    try:
        await place.api.get(SERVICE_ACCOUNTS, account, JOIN_NAMESPACE)
    except NotFound:
        return True
    return False


async def test_the_join_file_is_put_at_the_site_or_printed_as_one_command(place: Place, root: Path) -> None:
    site = await place.add_site("plant")
    east = place.lab.sites["east"]
    namespace = f"agent-{place.mark}"
    words = ["site", "join", site, "--trusted-root", str(root), "--site-namespace", namespace]
    shown = json.loads(await say(place, *words, "--site-kubeconfig", str(east.kubeconfig), "--expires", "168h", "-o", "json"))
    assert "join" not in shown
    assert shown["expiresAt"] > format_time(datetime.now(UTC) + timedelta(days=6, hours=23))
    held = east.kubectl("get", "secret", "edgefleet-join", "-n", namespace, "-o", "jsonpath={.data.join\\.json}")
    first = JoinFile.model_validate_json(base64.b64decode(held))
    assert (first.site, first.root) == (site, root.read_text())
    script = await say(place, *words)
    typed = f"kubectl() {{ '{fetch_kubectl()}' --kubeconfig '{east.kubeconfig}' \"$@\"; }}\n{script}"
    done = await asyncio.to_thread(subprocess.run, ["bash", "-c", typed], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    held = east.kubectl("get", "secret", "edgefleet-join", "-n", namespace, "-o", "jsonpath={.data.join\\.json}")
    assert JoinFile.model_validate_json(base64.b64decode(held)).token != first.token
    east.kubectl("delete", "namespace", namespace, "--wait=false")


async def test_joining_says_what_is_missing(place: Place, root: Path) -> None:
    assert "--create --region" in await say(place, "site", "join", place.site("ghost"), "--trusted-root", str(root), code=1)
    site = await place.add_site("plant")
    wrong = ["--trusted-root", str(root), "--hub-url", "http://hub.example"]
    assert "write https://HOST:PORT" in await say(place, "site", "join", site, *wrong, code=1)


async def test_the_agent_serves_with_and_without_a_certificate(
    place: Place, kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path
) -> None:
    """The whole agent, a real model behind it: joined by a file, a month off line, and joined again."""
    site = await place.add_site("plant")
    async with open_rig(tmp_path, kinds, registry, model_server, site) as rig:
        rig.push_golden()
        first = rig.push("1.0", 1)
        file = await invite(place, site, tmp_path / "root.json")
        rig.start_agent(join=file)
        await rig.assign(first)
        await rig.wait_for("Active")
        rig.kill_agent()

        authority = place.lab.hub.authority
        assert authority is not None
        own = rig.state / "identity" / "site.pem"
        own.write_bytes(expired_certificate(authority, site))
        rig.start_agent(join=file)

        async def says_so() -> bool:
            return "ended at" in describe(own.parent)["note"]

        await until(says_so, rig.log)
        assert not describe(own.parent)["valid"]
        assert rig.serving() == f"{rig.model}--{first.hash[:8]}"
        assert await asyncio.to_thread(run, ["site", "identity", "--state", str(rig.state)]) == 1

        second = rig.push("1.1", 2)
        await rig.assign(second)
        await invite(place, site, tmp_path / "root.json", "--again")
        await rig.wait_for("Active")
        assert rig.serving() == f"{rig.model}--{second.hash[:8]}"
        assert await asyncio.to_thread(run, ["site", "identity", "--state", str(rig.state)]) == 0
