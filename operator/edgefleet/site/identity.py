"""Who the site is at the hub: its key, its client certificate, and how it comes by the next one.

The first certificate comes by a join file, each further one, under a new key, over the one before. Keys never leave the state folder. The
hub's address and the root document are pinned when the site is let in. A site whose certificate ran out while it was off line goes on
serving and waits for a new join file: what cannot be renewed can only be granted anew, by a person. Who is let in is decided at the hub.
"""

import asyncio
import base64
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgefleet.api.attestation import CHALLENGE_REASON, OFFER_ANNOTATION, PROOF_ANNOTATION, Challenge, proof_name
from edgefleet.api.join import JoinFile
from edgefleet.api.meta import PRESENTED_ANNOTATION, SITE_USER_PREFIX, SITES_GROUP, format_time
from edgefleet.kube.backoff import Backoff
from edgefleet.kube.client import Api
from edgefleet.kube.connection import Connection, KubeconfigError, make_connection
from edgefleet.kube.errors import ApiError, Conflict, Denied, Unavailable
from edgefleet.kube.resources import CERTIFICATE_REQUESTS
from edgefleet.site.durable import write_durably
from edgefleet.site.identity_files import (
    NOTE,
    OWN,
    PINNED,
    IdentityInvalid,
    Note,
    Pinned,
    digest_token,
    load_or_make_key,
    read_join_file,
    read_own,
    read_pinned,
)
from edgefleet.site.tpm import TpmError
from edgefleet.site.tpm_device import Device
from edgefleet.trust.attestation import read_challenge
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identity import ClientCertificate, make_request, read_certificate
from edgefleet.trust.keys import PrivateKey

log = logging.getLogger(__name__)

SIGNER = "kubernetes.io/kube-apiserver-client"
LOOK_SECONDS = 10.0
"""How often the join file is looked at, and whether it is time to renew."""
REFUSED_SECONDS = 600.0
"""After a refusal: a person has to do something first, and another request is another object at the hub."""
PATIENCE_SECONDS = 60.0
"""So long a request is waited for before the join file is looked at again."""
USER_AGENT = "edgefleet-agent"


class CertificateRefused(Exception):
    """The hub denied a request, or its signer did. `reason` and `message` are the hub's words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Timing:
    """`lifetime` is what is asked for, at least 10 minutes; a certificate is renewed when `renew_after` of its life is over."""

    lifetime: timedelta = timedelta(days=1)
    renew_after: float = 2 / 3
    look_seconds: float = LOOK_SECONDS
    refused_seconds: float = REFUSED_SECONDS


class Identity:
    """One site's identity, kept in `folder`. `site` and `root` do not change; `joined` is set once there is a certificate."""

    def __init__(self, folder: Path, file: Path, *, tpm: Device | None = None, timing: Timing = Timing()) -> None:
        """With `tpm`, the machine proves to a hub that asks for it which one it is.

        Raises IdentityInvalid if neither the folder nor the join file says which site this is.
        """
        self._folder = folder
        self._file = file
        self._tpm = tpm
        self._timing = timing
        self._pinned = read_pinned(folder)
        self._certificate = read_own(folder)
        self._spent = {self._pinned.token} if self._pinned else set()
        self._retry_at = datetime.fromtimestamp(0, UTC)
        self._refused = self._unusable = ""
        self._said = ""
        self._backoff = Backoff(multiplier=1, longest=60)
        self.joined = asyncio.Event()
        if self._pinned is not None:
            self.site, self.root = self._pinned.site, self._pinned.root.encode()
            self._address = (self._pinned.hub, self._pinned.ca)
        else:
            first = read_join_file(file)
            self.site, self.root = first.site, first.root.encode()
            self._address = (first.hub, first.ca)
        if self._certificate is not None:
            self.joined.set()

    @property
    def expires_at(self) -> datetime | None:
        """When the certificate ends; None before the first one."""
        return self._certificate.ends_at if self._certificate else None

    def connect(self) -> Connection:
        """The hub as this site reaches it now. Raises KubeconfigError."""
        server, ca = self._address
        return make_connection(server, ca.encode(), certificate=self._folder / OWN if self._certificate else None)

    async def run(self, hub: Api) -> None:
        """Keep `hub` connected with a good certificate until cancelled."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            try:
                await self._step(hub)
                self._backoff.reset()
            except CertificateRefused as refused:
                self._refused = f"the hub refuses it a certificate ({refused})"
                self._say(f"{self.site}: {self._refused}")
                self._retry_at = datetime.now(UTC) + timedelta(seconds=self._timing.refused_seconds)
            except (ApiError, KubeconfigError, TpmError, Rejected) as error:
                self._say(f"no answer about a certificate for {self.site} yet: {error}")
                await asyncio.sleep(self._backoff.draw())

    async def _step(self, hub: Api) -> None:
        # The hub's clock is the one that counts.
        now = datetime.now(UTC) - timedelta(seconds=hub.clock_skew)
        invitation, held = self._find_invitation(), self._certificate
        if invitation is not None:
            # A person put it there: it is used also while the certificate is good.
            await self._join(hub, invitation)
        elif held is not None and self._renew_at(held) <= now < held.ends_at:
            if datetime.now(UTC) >= self._retry_at:
                await self._renew(hub, held)
            else:
                await asyncio.sleep(self._timing.look_seconds)
        else:
            self._say_standing(now)
            await asyncio.sleep(self._timing.look_seconds)

    async def _join(self, hub: Api, invitation: JoinFile) -> None:
        spent = digest_token(invitation.token)
        connection = make_connection(invitation.hub, invitation.ca.encode(), token=invitation.token)
        async with Api(connection, user_agent=USER_AGENT, attempts=2) as api:
            try:
                key, chain = await self._ask(api, spent[:16], {})
            except Denied as error:
                remedy = f"`edgefleet site join {self.site}` makes another"
                raise Denied(error.status, f"the join token is past its time, used up or withdrawn ({error}): {remedy}") from error
            except CertificateRefused:
                self._spent.add(spent)
                raise
        pinned = Pinned(site=self.site, hub=invitation.hub, ca=invitation.ca, root=self.root.decode(), token=spent)
        write_durably(self._folder / PINNED, pinned.model_dump_json(by_alias=True, indent=1).encode())
        self._pinned, self._address = pinned, (invitation.hub, invitation.ca)
        self._spent.add(spent)
        await self._take(hub, key, chain)

    async def _renew(self, hub: Api, held: ClientCertificate) -> None:
        key, chain = await self._ask(hub, "renewal", {PRESENTED_ANNOTATION: held.pem})
        await self._take(hub, key, chain)

    async def _ask(self, api: Api, purpose: str, annotations: dict[str, str]) -> tuple[PrivateKey, bytes]:
        """Send a request, or find the one that was sent before a restart, and wait a while for its certificate."""
        path = self._folder / f"next-{purpose}.key"
        key = load_or_make_key(path)
        name = f"edgefleet-{self.site}-{key.public.id.removeprefix('sha256:')[:16]}"
        if self._tpm is not None:
            offer = await asyncio.to_thread(self._tpm.make_offer)
            annotations = {**annotations, OFFER_ANNOTATION: offer.model_dump_json(by_alias=True)}
        try:
            await self._send(api, name, make_request(key, self.site), annotations)
            try:
                chain = await self._wait(api, name)
            except CertificateRefused as refused:
                if refused.reason != CHALLENGE_REASON or self._tpm is None:
                    raise
                chain = await self._prove(api, name, self._tpm, read_challenge(refused.message), annotations)
        except CertificateRefused:
            # This key is burnt: the same request would meet its own answer.
            path.unlink()
            raise
        self._require_ours(key, chain)
        return key, chain

    async def _prove(self, api: Api, name: str, tpm: Device, challenge: Challenge, annotations: dict[str, str]) -> bytes:
        """Send the same request again, with what the TPM says to the hub's challenge."""
        # As it was sent, which may have been before a restart: a signature is another each time.
        request = base64.b64decode((await api.get(CERTIFICATE_REQUESTS, name))["spec"]["request"])
        proof = await asyncio.to_thread(tpm.answer, challenge, request)
        await self._send(api, proof_name(name), request, {**annotations, PROOF_ANNOTATION: proof.model_dump_json(by_alias=True)})
        return await self._wait(api, proof_name(name))

    async def _send(self, api: Api, name: str, request: bytes, annotations: dict[str, str]) -> None:
        body = {
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "request": base64.b64encode(request).decode(),
                "signerName": SIGNER,
                "expirationSeconds": int(self._timing.lifetime.total_seconds()),
                "usages": ["client auth", "digital signature"],
            },
        }
        try:
            await api.create(CERTIFICATE_REQUESTS, body)
        except Conflict:
            log.info("request %s was sent before", name)

    async def _wait(self, api: Api, name: str) -> bytes:
        """The certificate. Raises CertificateRefused, Unavailable."""
        began, pause = time.monotonic(), 0.2
        while True:
            status = (await api.get(CERTIFICATE_REQUESTS, name)).get("status", {})
            conditions = {one["type"]: one for one in status.get("conditions", [])}
            no = conditions.get("Denied") or conditions.get("Failed")
            if no is not None:
                raise CertificateRefused(no.get("reason", "Failed"), no.get("message", ""))
            if status.get("certificate"):
                return base64.b64decode(status["certificate"])
            waits = f"request {name} waits for {'the signer of its cluster' if conditions else 'the approval of the hub'}"
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise Unavailable(0, waits)
            self._say(waits)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._timing.look_seconds)

    def _require_ours(self, key: PrivateKey, chain: bytes) -> None:
        found = read_certificate(chain)
        if (
            found.key != key.public.id
            or ("CN", SITE_USER_PREFIX + self.site) not in found.subject
            or ("O", SITES_GROUP) not in found.subject
        ):
            raise CertificateRefused("NotWhatWasAsked", f"the hub's cluster issued {found.subject} for another key or name")

    async def _take(self, hub: Api, key: PrivateKey, chain: bytes) -> None:
        # One file, so that a key never lies beside the certificate of another.
        write_durably(self._folder / OWN, key.to_pem().encode() + chain)
        for path in self._folder.glob("next-*.key"):
            path.unlink()
        self._refused = ""
        self._certificate = held = read_certificate(chain)
        await hub.switch(self.connect())
        self._say_standing(held.begins_at)
        self.joined.set()

    def _find_invitation(self) -> JoinFile | None:
        """The join file, if it is one for this site that was not used yet."""
        self._unusable = ""
        if not self._file.exists():
            return None
        try:
            found = read_join_file(self._file)
        except IdentityInvalid as error:
            self._unusable = str(error)
            return None
        if digest_token(found.token) in self._spent:
            return None
        if found.site != self.site:
            self._unusable = f"{self._file} is for site {found.site}, this folder that of {self.site}: each site has a folder of its own"
            return None
        if found.root.encode() != self.root:
            self._unusable = f"{self._file} brings another root document than the one pinned here: roots change through trust bundles only"
            return None
        return found

    def _say_standing(self, now: datetime) -> None:
        held, remedy = self._certificate, f"make a join file (`edgefleet site join {self.site}` at the hub) and put it at {self._file}"
        because = self._unusable or self._refused
        if held is None:
            self._say(f"{self.site} has not joined, {because or 'and there is no join token that was not used'}: {remedy}")
        elif now >= held.ends_at:
            why = f"; {because}" if because else ""
            ended = f"the certificate of {self.site} ended at {format_time(held.ends_at)}{why}"
            self._say(f"{ended}. The hub does not hear the site; it serves what it has. To end this, {remedy}")
        else:
            why = f"; {because}" if because else ""
            self._say(f"joined as {self.site}, by a certificate that is good until {format_time(held.ends_at)}{why}")

    def _say(self, text: str) -> None:
        if text == self._said:
            return
        self._said = text
        log.info("%s", text)
        note = Note(text=text, since=format_time(datetime.now(UTC)))
        try:
            (self._folder / NOTE).write_text(note.model_dump_json())
        except OSError as error:
            log.warning("%s: %s", self._folder / NOTE, error)

    def _renew_at(self, held: ClientCertificate) -> datetime:
        return held.begins_at + self._timing.renew_after * (held.ends_at - held.begins_at)
