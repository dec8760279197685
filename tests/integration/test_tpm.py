"""Sites whose TPM vouches for them: real software TPMs, the agent's own identity, a real hub under its chart's rights."""

import asyncio
import base64
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import SiteAssignmentSpec
from edgefleet.api.attestation import CHALLENGE_REASON, OFFER_ANNOTATION, PROOF_ANNOTATION, Offer, Proof, Signed, proof_name
from edgefleet.api.meta import PRESENTED_ANNOTATION, site_namespace
from edgefleet.api.report import FleetReport
from edgefleet.cli.app import run
from edgefleet.kube.client import Api
from edgefleet.kube.connection import make_connection
from edgefleet.kube.resources import CERTIFICATE_REQUESTS, CONFIG_MAPS, EDGE_SITES, EVENTS, ROLLOUT_POLICIES, SITE_ASSIGNMENTS
from edgefleet.site.identity_files import read_join_file
from edgefleet.site.tpm import ENDORSEMENT, Tpm, TpmError
from edgefleet.site.tpm_device import Device, signing_template
from edgefleet.trust.attestation import Attested, Candidate, bind_request, make_challenge, read_challenge, read_offer, verify_proof
from edgefleet.trust.bundle import make_root
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identity import make_request, read_certificate
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.tpm import ATTESTING, SIGNING
from tests.integration.fakesites import FakeSites, activates
from tests.integration.test_join import EAGER, machine, request_body, until
from tests.integration.world import POLICY, World
from tests.lab.cluster import Lab
from tests.lab.tpm import Maker, SoftTpm

pytestmark = pytest.mark.timeout(180)
MAKER = Maker()
REQUIRED = {"mode": "Required"}
Makes = Callable[..., SoftTpm]


@pytest.fixture(scope="session")
def swtpm() -> None:
    """Fetched before the first test."""


@pytest.fixture
def make_tpm(swtpm: None, tmp_path: Path) -> Iterator[Makes]:
    """A new TPM, of MAKER if no other is named."""
    made: list[SoftTpm] = []

    def make(maker: Maker = MAKER) -> SoftTpm:
        made.append(SoftTpm(tmp_path / f"tpm{len(made)}", maker))
        return made[-1]

    yield make
    for one in made:
        one.close()


# What a TPM refuses, and what is refused of a TPM that does what its owner wants. No hub is needed for that.

FIXED = 0x12
"""fixedTPM and fixedParent: without them a key may be taken to another TPM."""
REQUEST = make_request(PrivateKey.generate(), "plant-7")
PCRS = (0, 2, 4, 7)


def candidate_of(offer: Offer) -> Candidate:
    return read_offer(offer.model_dump_json())


def asked(tpm: SoftTpm) -> tuple[Candidate, Any]:
    candidate = candidate_of(tpm.device.make_offer())
    return candidate, make_challenge(candidate, PCRS)


def verdict(candidate: Candidate, challenge: Any, proof: Proof) -> Attested:
    return verify_proof(candidate, challenge, proof.model_dump_json(by_alias=True), REQUEST)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def signed(said: tuple[bytes, bytes]) -> Signed:
    return Signed(attest=encode(said[0]), signature=encode(said[1]))


def test_a_tpm_answers_for_itself_also_after_a_reset(make_tpm: Makes) -> None:
    tpm = make_tpm()
    candidate, challenge = asked(tpm)
    assert verdict(candidate, challenge, tpm.device.answer(challenge, REQUEST)).resets == 1
    tpm.restart()
    again, challenge = asked(tpm)
    assert (again.device, again.attester.name, again.key.name) == (candidate.device, candidate.attester.name, candidate.key.name)
    assert verdict(again, challenge, tpm.device.answer(challenge, REQUEST)).resets == 2
    for _ in range(8):  # more than a TPM without a resource manager could hold, had any key stayed in it
        tpm.device.answer(challenge, REQUEST)


def test_a_challenge_opens_in_its_own_tpm_only(make_tpm: Makes) -> None:
    one, other = make_tpm(), make_tpm()
    candidate, challenge = asked(one)
    with pytest.raises(TpmError, match="refused"):
        other.device.answer(challenge, REQUEST)
    # The attesting key of one TPM, the endorsement key of the other: neither opens it.
    mixed = make_challenge(candidate_of(one.device.make_offer().model_copy(update={"attester": other.device.make_offer().attester})), PCRS)
    for tpm in (one, other):
        with pytest.raises(TpmError, match="refused"):
            tpm.device.answer(mixed, REQUEST)
    assert verdict(candidate, challenge, one.device.answer(challenge, REQUEST)).device == candidate.device


def test_an_attesting_key_signs_nothing_but_what_its_tpm_says(make_tpm: Makes) -> None:
    with (
        Tpm(make_tpm().path) as tpm,
        tpm.primary(ENDORSEMENT, signing_template(ATTESTING)) as (attester, _),
        pytest.raises(TpmError, match="refused"),
    ):
        tpm.sign(attester, bytes(32))


def test_what_an_owner_can_make_of_a_tpm_is_refused(make_tpm: Makes) -> None:
    """With root's rights at the site: every command is at hand, but not the TPM's mind."""
    one = make_tpm()
    candidate, challenge = asked(one)
    honest = one.device.answer(challenge, REQUEST)
    bound = bind_request(base64.b64decode(honest.nonce), REQUEST)
    with Tpm(one.path) as tpm, tpm.primary(ENDORSEMENT, signing_template(ATTESTING)) as (attester, _):
        narrower, others = (tpm.quote(attester, bound, pcrs) for pcrs in ((0, 2), (1, 3, 5, 6)))  # all of them are zero
        certified = tpm.certify(attester, attester, bound)
        with tpm.primary(ENDORSEMENT, signing_template(SIGNING)) as (key, _):
            unrestricted = tpm.quote(key, bound, PCRS)
            # A quote that no TPM has made: of other PCR values, signed by a key that signs anything.
            invented = base64.b64decode(honest.quote.attest)[:-32] + bytes(32)
            forged = (invented, tpm.sign(key, sha256(invented).digest()))
        with tpm.primary(ENDORSEMENT, signing_template(SIGNING & ~FIXED)) as (_, loose):
            pass
    attempts: list[tuple[dict[str, Any], str]] = [
        ({"quote": signed(narrower)}, "PCRMismatch"),
        ({"quote": signed(others)}, "PCRMismatch"),
        ({"certified": signed(certified)}, "AttributesRejected"),
        ({"quote": signed(unrestricted)}, "SignatureInvalid"),
        ({"quote": signed(forged)}, "SignatureInvalid"),
    ]
    for changes, reason in attempts:
        with pytest.raises(Rejected) as refused:
            verdict(candidate, challenge, honest.model_copy(update=changes))
        assert refused.value.reason == reason, changes
    with pytest.raises(Rejected, match="signing key: attributes"):
        candidate_of(one.device.make_offer().model_copy(update={"key": encode(loose)}))


def test_a_tpm_that_is_none_says_what_is_wrong(make_tpm: Makes, tmp_path: Path) -> None:
    with pytest.raises(TpmError, match="/dev/tpmrm0"):
        Device(tmp_path / "nothing").make_offer()
    bare = SoftTpm(tmp_path / "bare", None)
    try:
        with pytest.raises(TpmError, match="no certificate of its maker"):
            bare.device.make_offer()
    finally:
        bare.close()


# Sites at a hub.


@pytest.fixture
async def hub(world: World) -> World:
    """A hub that knows MAKER."""
    body = {"metadata": {"name": "tpm-authorities", "namespace": world.system}, "data": {"maker.pem": MAKER.pem}}
    await world.api.create(CONFIG_MAPS, body)
    return world


async def invite(hub: World, site: str, *words: str, to: str = "join.json") -> Path:
    """A join file, as a person makes it."""
    root, file = hub.folder / "root.json", hub.folder / to
    if not root.exists():
        key = PrivateKey.generate()
        expires = datetime.fromisoformat("2099-01-01T00:00:00+00:00")
        root.write_bytes(make_root([key.public], signers=[key], threshold=1, version=1, expires_at=expires))
    command = ["site", "join", site, "--trusted-root", str(root), "--write", str(file), "--kubeconfig", str(hub.lab.hub.kubeconfig)]
    said = io.StringIO()

    def say() -> int:
        with redirect_stdout(said), redirect_stderr(said):
            return run([*command, *words])

    assert await asyncio.to_thread(say) == 0, said.getvalue()
    return file


async def attestation_of(hub: World, site: str) -> dict[str, Any]:
    found: dict[str, Any] = (await hub.api.get(EDGE_SITES, site)).get("status", {}).get("attestation", {})
    return found


async def until_attested(hub: World, site: str, reason: str) -> dict[str, Any]:
    return await hub.until_condition(EDGE_SITES, site, "Attested", reason)


async def until_left_out(hub: World, site: str, *said: str) -> None:
    async def told() -> bool:
        conditions = (await hub.fleet()).get("status", {}).get("conditions", [])
        message = next((one["message"] for one in conditions if one["type"] == "PlacementSatisfied"), "")
        return all(part in message for part in ("NotAttested", site, *said))

    await hub.until(f"the fleet says that {site} is left out", told)


def versions_at(sites: FakeSites, site: str) -> list[str]:
    return [order.version for order in sites[site].orders]


async def test_a_site_gets_models_once_its_tpm_has_vouched_for_it(hub: World, sites: FakeSites, make_tpm: Makes) -> None:
    site, plain = await hub.add_site("plant", attestation=REQUIRED), await hub.add_site("plain")
    for name in (site, plain):
        await sites.add(name)
    hub.push("1")
    await hub.name_release("1")
    await hub.add_fleet()
    await hub.until_ended(1, "Promoted")
    await until_left_out(hub, site)
    assert (versions_at(sites, site), versions_at(sites, plain)) == ([], ["1"])
    await until_attested(hub, site, "NotEnrolled")

    file = await invite(hub, site)
    async with machine(hub.folder / "without", file) as without:
        await without.until_note("AttestationRequired")
        assert "--tpm /dev/tpmrm0" in without.note
    tpm = make_tpm()
    async with machine(hub.folder / "with", file, tpm=tpm.device) as one:
        await one.until_joined()
        verified = (await attestation_of(hub, site))["verified"]
        assert verified["key"] == one.key
        assert verified["deviceHash"] == candidate_of(tpm.device.make_offer()).device
        assert [pcr["pcr"] for pcr in verified["pcrs"]] == [0, 2, 4, 7]
    await until_attested(hub, site, "QuoteVerified")
    await hub.until("the model is there", lambda: is_true(versions_at(sites, site) == ["1"]))
    assert "attestation" not in (await hub.api.get(EDGE_SITES, plain))["status"]

    # A site that nobody asks for one joins as before, with a TPM and without.
    async with machine(hub.folder / "plain", await invite(hub, plain, to="plain.json"), tpm=tpm.device) as other:
        await other.until_joined()
    assert await attestation_of(hub, plain) == {}


async def is_true(fact: bool) -> bool:
    return fact


async def test_other_pcrs_hold_what_is_new_until_a_person_knows_them(hub: World, sites: FakeSites, make_tpm: Makes) -> None:
    site, tpm = await hub.add_site("plant", attestation=REQUIRED), make_tpm()
    await sites.add(site)
    hub.push("1")
    await hub.name_release("1")
    await hub.add_fleet()
    async with machine(hub.folder / "one", await invite(hub, site), EAGER, tpm.device) as one:
        await until_attested(hub, site, "QuoteVerified")
        await hub.until_ended(1, "Promoted")
        known = (await attestation_of(hub, site))["verified"]["pcrs"]
        pinned = [{"pcr": pcr["pcr"], "values": [pcr["value"]]} for pcr in known]
        await hub.add_site("plant", attestation={**REQUIRED, "pcrs": pinned})
        first = one.key

        async def renewed() -> bool:
            return one.key != first

        await until(renewed, lambda: f"a renewal with a fresh quote: {one.note}\n{hub.log()}")
        tpm.extend(7, b"u" * 32)
        refusal = await until_attested(hub, site, "PCRMismatch")
        assert refusal["status"] == "False"
        assert "PCR 7 is" in refusal["message"]
        key = one.key
        hub.push("2")
        await hub.name_release("2")
        await until_left_out(hub, site, "PCRMismatch")
        assert (versions_at(sites, site), one.key) == (["1"], key), "it keeps what it has, and gets nothing new"
        with Tpm(tpm.path) as device:
            pinned[3]["values"].append(device.read_pcrs([7])[7].hex())
        await hub.add_site("plant", attestation={**REQUIRED, "pcrs": pinned})
        await until_attested(hub, site, "QuoteVerified")
        await hub.until_ended(2, "Promoted")
    assert versions_at(sites, site) == ["1", "2"]


async def test_what_a_site_says_does_not_count_once_another_tpm_came_with_its_certificate(
    hub: World, sites: FakeSites, make_tpm: Makes
) -> None:
    """A copied state folder on another genuine machine. It could blame a release, or praise it: the run goes on without it."""
    site, honest = await hub.add_site("plant", attestation=REQUIRED), await hub.add_site("honest")
    await hub.apply(ROLLOUT_POLICIES, "careful", {**POLICY, "waves": [{"name": "all", "percent": 100}]})

    def loads(spec: SiteAssignmentSpec) -> dict[str, Any]:
        return activates(spec) if spec.version == "1" else {"state": "Progressing"}

    for name in (site, honest):
        (await sites.add(name)).behaviour = loads
    tpm = make_tpm()
    async with machine(hub.folder / "one", await invite(hub, site), tpm=tpm.device) as one:
        await one.until_joined()
    await until_attested(hub, site, "QuoteVerified")
    await until_heard(hub, site, honest)
    hub.push("1")
    await hub.name_release("1")
    await hub.add_fleet()
    await hub.until_ended(1, "Promoted")
    hub.push("2")
    await hub.name_release("2")
    await hub.until("both are told", lambda: is_true(versions_at(sites, site) == versions_at(sites, honest) == ["1", "2"]))

    shutil.copytree(hub.folder / "one", hub.folder / "stolen")
    async with machine(hub.folder / "stolen", hub.folder / "nowhere", EAGER, make_tpm().device) as thief:
        await thief.until_note("DeviceChanged")
    await until_attested(hub, site, "DeviceChanged")
    assert "somebody has a copy of its state" in await event_of(hub, site, "DeviceChanged")
    blame = {"state": "Failed", "fault": "Revision", "reason": "GoldenSetFailed", "message": "a lie"}
    await say_of_the_newest(hub, sites, site, blame)
    await say_of_the_newest(hub, sites, honest, {"state": "Active"})
    ended = await hub.until_ended(2, "Promoted")
    assert ended["status"]["sites"].get("failed", 0) == 0
    await until_left_out(hub, site)

    # The machine itself is let in again, by its next certificate.
    async with machine(hub.folder / "one", hub.folder / "nowhere", EAGER, tpm.device):
        await until_attested(hub, site, "QuoteVerified")


async def until_heard(hub: World, *sites: str) -> None:
    """A run freezes the sites that the hub has heard at its start."""

    async def heard() -> bool:
        bodies = [await hub.api.get(EDGE_SITES, site) for site in sites]
        return all(body.get("status", {}).get("hardware") for body in bodies)

    await hub.until(f"{', '.join(sites)} are heard", heard, 60)


async def event_of(hub: World, site: str, reason: str) -> str:
    async def told() -> str:
        events = await hub.api.list(EVENTS, "default")
        return next((one["message"] for one in events if one["involvedObject"].get("name") == site and one["reason"] == reason), "")

    return str(await hub.until(f"an Event {reason} of {site}", told))


async def say_of_the_newest(hub: World, sites: FakeSites, site: str, answer: dict[str, Any]) -> None:
    """As the site's agent: of the order that it has."""
    spec = sites[site].orders[-1]
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {"sequence": spec.sequence, "revision": spec.revision, "since": since, **answer}
    if answer["state"] == "Active":
        status["active"] = {"revision": spec.revision, "version": spec.version, "variant": spec.variant, "since": since}
        report = FleetReport(revision=spec.revision, sequence=spec.sequence, floor=spec.sequence, active_since=datetime.now(UTC))
        sites[site].serving[spec.fleet] = report
    name = next(body["metadata"]["name"] for body in await hub.api.list(SITE_ASSIGNMENTS, site_namespace(site)))
    async with Api.connect(hub.lab.client_kubeconfig("hub", f"edgefleet:site:{site}", ["edgefleet:sites"]), user_agent="site") as api:
        body = {"metadata": {"name": name, "namespace": site_namespace(site)}, "status": status}
        await api.apply(SITE_ASSIGNMENTS, body, manager="edgefleet-agent", subresource="status")


async def test_another_machine_takes_the_place_by_a_persons_hand_only(hub: World, make_tpm: Makes) -> None:
    site, old, new = await hub.add_site("plant", attestation=REQUIRED), make_tpm(), make_tpm()
    async with machine(hub.folder / "old", await invite(hub, site), tpm=old.device) as one:
        await one.until_joined()
    async with machine(hub.folder / "new", await invite(hub, site, "--again"), tpm=new.device) as other:
        await other.until_joined()
    device = candidate_of(new.device.make_offer()).device
    assert (await attestation_of(hub, site))["verified"]["deviceHash"] == device
    # Named in the EdgeSite, not even a token lets another in; nor a TPM of a maker that nobody knows.
    await hub.add_site("plant", attestation={**REQUIRED, "deviceHash": device})
    async with machine(hub.folder / "third", await invite(hub, site, "--again"), tpm=old.device) as third:
        await third.until_note("DeviceChanged")
    async with machine(hub.folder / "fourth", await invite(hub, site, "--again"), tpm=make_tpm(Maker("backyard")).device) as fourth:
        await fourth.until_note("UntrustedEK")
    await until_attested(hub, site, "UntrustedEK")
    async with machine(hub.folder / "new", await invite(hub, site, "--again"), tpm=new.device) as other:
        await until_attested(hub, site, "QuoteVerified")


async def test_a_proof_is_good_for_its_own_request_and_a_hub_may_die_before_it(hub: World, make_tpm: Makes) -> None:
    site, tpm = await hub.add_site("plant", attestation=REQUIRED), make_tpm()
    found = read_join_file(await invite(hub, site))
    offer = {OFFER_ANNOTATION: tpm.device.make_offer().model_dump_json(by_alias=True)}
    key = PrivateKey.generate()
    one, other = make_request(key, site), make_request(PrivateKey.generate(), site)
    async with Api(make_connection(found.hub, found.ca.encode(), token=found.token), user_agent="holder", attempts=1) as api:

        async def send(name: str, pem: bytes, annotations: dict[str, str]) -> None:
            body = request_body(f"{site}-{name}", site, pem=pem)
            body["metadata"]["annotations"] = annotations
            await api.create(CERTIFICATE_REQUESTS, body)

        async def answer_to(name: str) -> dict[str, Any]:
            async def answered() -> dict[str, Any] | None:
                body = await api.get(CERTIFICATE_REQUESTS, f"{site}-{name}")
                return next(iter(body.get("status", {}).get("conditions", [])), None)

            said: dict[str, Any] = await hub.until(f"an answer to {name}", answered, 60)
            return said

        await send("one", one, offer)
        denied = await answer_to("one")
        assert (denied["type"], denied["reason"]) == ("Denied", CHALLENGE_REASON)
        proof = tpm.device.answer(read_challenge(denied["message"]), one)
        proved = {PROOF_ANNOTATION: proof.model_dump_json(by_alias=True), **offer}
        # Another request of the same holder, challenged too: with the first one's proof.
        await send("other", other, offer)
        assert (await answer_to("other"))["reason"] == CHALLENGE_REASON
        await send(proof_name("other"), other, proved)
        assert (await answer_to(proof_name("other")))["reason"] == "NonceMismatch"
        # A proof for a request that was not challenged, and under the name of one that was.
        await send(proof_name("never"), one, proved)
        assert (await answer_to(proof_name("never")))["reason"] == "ChallengeUnknown"
        third = make_request(PrivateKey.generate(), site)
        await send("third", third, {})
        assert (await answer_to("third"))["reason"] == "AttestationRequired"
        await send(proof_name("third"), third, proved)
        assert (await answer_to(proof_name("third")))["reason"] == "ChallengeUnknown"
        # A challenge is for the request that it denied, also for the TPM that it was made for.
        await send("fourth", third, offer)
        swapped = tpm.device.answer(read_challenge((await answer_to("fourth"))["message"]), other)
        await send(proof_name("fourth"), other, offer | {PROOF_ANNOTATION: swapped.model_dump_json(by_alias=True)})
        assert (await answer_to(proof_name("fourth")))["reason"] == "ChallengeUnknown"
        assert "verified" not in await attestation_of(hub, site)

        hub.kill_hub()
        hub.start_hub()
        await send(proof_name("one"), one, proved)
        assert (await answer_to(proof_name("one")))["type"] == "Approved"
        await until_attested(hub, site, "QuoteVerified")

        async def certificate() -> str:
            body = await api.get(CERTIFICATE_REQUESTS, f"{site}-{proof_name('one')}")
            return str(body["status"].get("certificate", ""))

        chain = base64.b64decode(await hub.until("the certificate", certificate))
    # Whoever copied key and certificate, and saw the proof: the key that is on record needs a proof of its own each time.
    copied = hub.folder / "copied.pem"
    copied.write_bytes(key.to_pem().encode() + chain)
    shown = {PRESENTED_ANNOTATION: read_certificate(chain).pem}
    async with Api(make_connection(found.hub, found.ca.encode(), certificate=copied), user_agent="thief", attempts=1) as api:
        await send("bare", one, shown)
        assert (await answer_to("bare"))["reason"] == "AttestationRequired"
        await send("again", one, shown | offer)
        assert (await answer_to("again"))["reason"] == CHALLENGE_REASON
        await send(proof_name("again"), one, shown | proved)
        assert (await answer_to(proof_name("again")))["reason"] == "NonceMismatch"


async def test_the_agent_shows_its_tpm(hub: World, kinds: Lab, make_tpm: Makes) -> None:
    site, tpm = await hub.add_site("plant", attestation=REQUIRED), make_tpm()
    options = {
        "--join": await invite(hub, site),
        "--tpm": tpm.path,
        "--site-kubeconfig": kinds.sites["east"].kubeconfig,
        "--state": hub.folder / "state",
        "--server-url": "http://127.0.0.1:1",
        "--server-models": hub.folder,
    }

    async def attested() -> dict[str, Any]:
        return await attestation_of(hub, site)

    command = [sys.executable, "-m", "edgefleet", "agent", *(str(word) for option in options.items() for word in option)]
    with (hub.folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        found = await hub.until("it is attested", attested, 90)
    finally:
        agent.kill()
        agent.wait()
    assert found["verified"]["deviceHash"] == candidate_of(tpm.device.make_offer()).device
