"""Sites' requests for client certificates: each that waits is approved or denied, as core/joining.py decides.

A grant is on record in the EdgeSite's status, against the state that it was decided on, before the request is approved: a hub that dies in
between gives the same answer again, and two requests with one token cannot both be granted. The signer is the cluster's own. Join accounts
go when they have done their work, or are past their time.
"""

import asyncio
import base64
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import Field

from edgefleet.api.meta import (
    EXPIRES_ANNOTATION,
    JOIN_ACCOUNT_PREFIX,
    JOIN_NAMESPACE,
    LEFT_ANNOTATION,
    PRESENTED_ANNOTATION,
    SITE_LABEL,
    Schema,
    parse_time,
    site_namespace,
)
from edgefleet.api.site import EdgeSite
from edgefleet.core.events import Note
from edgefleet.core.joining import SIGNER, Admission, Admit, CertificateRequest, Refuse, Requester, decide_request, find_requester
from edgefleet.hub.events import Events
from edgefleet.hub.inventory import Inventory
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, NotFound
from edgefleet.kube.resources import CERTIFICATE_REQUESTS, EDGE_SITES, NAMESPACES, SERVICE_ACCOUNTS
from edgefleet.kube.watch import Key, ListWatch, Record
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identity import read_certificate, read_request

log = logging.getLogger(__name__)

IDENTITY_MANAGER = "edgefleet-hub-joining"
CREDENTIAL = "authentication.kubernetes.io/credential-id"
FETCHED_WITHIN = timedelta(minutes=1)
"""A site that was heard so long after its grant has its certificate."""
SWEEP_SECONDS = 60.0


class RequestSpec(Schema):
    """What is asked, and by whom: username, uid and extra are the API server's words, not the requester's."""

    request: str = ""
    username: str = ""
    uid: str = ""
    extra: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    usages: tuple[str, ...] = ()
    expiration_seconds: int | None = None


class RequestCondition(Schema):
    """Approved, Denied or Failed."""

    type: str


class RequestStatus(Schema):
    """Answered, if it has a condition."""

    conditions: tuple[RequestCondition, ...] = ()


class RequestRecord(Record):
    """A CertificateSigningRequest."""

    spec: RequestSpec = RequestSpec()
    status: RequestStatus = RequestStatus()

    @property
    def requester(self) -> Requester | None:
        """Whose it is, if it waits for an answer of ours."""
        return None if self.status.conditions else find_requester(self.spec.username, self.spec.uid)


class AccountRecord(Record):
    """A join account."""


class Joining:
    """`on_request` is called with the name of a site whose request waits."""

    def __init__(self, api: Api, inventory: Inventory, events: Events, *, on_request: Callable[[str], None]) -> None:
        self._api = api
        self._inventory = inventory
        self._events = events
        self._on_request = on_request
        self.requests = ListWatch(
            api, CERTIFICATE_REQUESTS, RequestRecord, fields=f"spec.signerName={SIGNER}", on_change=self._request_changed
        )

    async def run(self) -> None:
        """Watch for requests, and take away join accounts that are past their time or whose site was heard since it joined."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.requests.run())
            while True:
                try:
                    await self._sweep()
                except ApiError as error:
                    log.warning("join accounts in namespace %s: %s", JOIN_NAMESPACE, error)
                await asyncio.sleep(SWEEP_SECONDS)

    def _request_changed(self, _: Key, __: RequestRecord | None, new: RequestRecord | None) -> None:
        if new is not None and new.requester is not None:
            self._on_request(new.requester.site)

    async def reconcile(self, site: str) -> timedelta | None:
        """Answer all requests of one site that wait, the oldest first."""
        waiting = [one for one in self.requests if one.requester is not None and one.requester.site == site]
        for record in sorted(waiting, key=lambda one: (one.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), one.key)):
            await self._answer(record, site)
        return None

    async def _answer(self, record: RequestRecord, site: str) -> None:
        requester = record.requester
        if requester is None:
            return
        found = await self._fetch_site(site)
        left = self._inventory.left_at(site)
        admission = Admission(
            exists=found is not None,
            identity=found.status.identity if found else None,
            invitation=await self._fetch_invitation(site) if requester.invitation else "",
            left=left,
        )
        now = datetime.now(UTC)
        answer = decide_request(read_facts(record, requester), admission, now)
        match answer:
            case Admit():
                if found is not None and answer.identity != found.status.identity:
                    await self._record(found, answer)
                if left is not None:
                    body = {"metadata": {"annotations": {LEFT_ANNOTATION: None}}}
                    self._inventory.namespaces.observe(await self._api.patch(NAMESPACES, site_namespace(site), None, body))
            case Refuse() if found is not None:
                note = Note("Warning", answer.reason, answer.message, f"request/{record.metadata.name}")
                await self._events.tell(EDGE_SITES, found.metadata, (note,))
        await self._tell(record, answer, now)
        log.info("site %s: %s: %s", site, answer.reason, answer.message)

    async def _record(self, site: EdgeSite, answer: Admit) -> None:
        meta = {"name": site.metadata.name, "resourceVersion": site.metadata.resource_version}
        body = {"metadata": meta, "status": {"identity": answer.identity.to_json_dict()}}
        self._inventory.sites.observe(await self._api.apply(EDGE_SITES, body, manager=IDENTITY_MANAGER, subresource="status"))

    async def _tell(self, record: RequestRecord, answer: Admit | Refuse, now: datetime) -> None:
        condition = {
            "type": "Approved" if isinstance(answer, Admit) else "Denied",
            "status": "True",
            "reason": answer.reason,
            "message": answer.message,
            "lastUpdateTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        body = {"metadata": {"resourceVersion": record.metadata.resource_version}, "status": {"conditions": [condition]}}
        try:
            done = await self._api.patch(CERTIFICATE_REQUESTS, record.metadata.name, None, body, subresource="approval")
        except NotFound:
            return
        self.requests.observe(done)

    async def _fetch_site(self, site: str) -> EdgeSite | None:
        # Asked for, not taken from memory: what is recorded is recorded against this state.
        try:
            return EdgeSite.parse(await self._api.get(EDGE_SITES, site))
        except NotFound:
            return None

    async def _fetch_invitation(self, site: str) -> str:
        try:
            account = await self._api.get(SERVICE_ACCOUNTS, JOIN_ACCOUNT_PREFIX + site, JOIN_NAMESPACE)
        except NotFound:
            return ""
        return str(account["metadata"]["uid"])

    async def _sweep(self) -> None:
        now = datetime.now(UTC)
        for body in await self._api.list(SERVICE_ACCOUNTS, JOIN_NAMESPACE, labels=SITE_LABEL):
            account = AccountRecord.model_validate(body)
            if self._is_done(account, now):
                await self._api.delete(SERVICE_ACCOUNTS, account.metadata.name, JOIN_NAMESPACE, uid=account.metadata.uid)

    def _is_done(self, account: AccountRecord, now: datetime) -> bool:
        expires = account.metadata.annotations.get(EXPIRES_ANNOTATION, "")
        with suppress(ValueError):
            if parse_time(expires) < now:
                return True
        site = account.metadata.labels[SITE_LABEL]
        record, heard = self._inventory.sites.get("", site), self._inventory.last_heard(site)
        identity = record.status.identity if record else None
        if identity is None or identity.invitation != account.metadata.uid or heard is None:
            return False
        return heard > parse_time(identity.joined_at) + FETCHED_WITHIN


def read_facts(record: RequestRecord, requester: Requester) -> CertificateRequest:
    """What a request asks for, and which certificate it was sent with, as far as that is certain."""
    spec = record.spec
    usages = frozenset(spec.usages)
    lifetime = timedelta(seconds=spec.expiration_seconds) if spec.expiration_seconds is not None else None
    presented = "" if requester.invitation else _find_presented(record)
    try:
        asked = read_request(base64.b64decode(spec.request))
    except (Rejected, ValueError) as error:
        return CertificateRequest(requester, usages=usages, lifetime=lifetime, presented=presented, trouble=str(error))
    return CertificateRequest(requester, asked.key, asked.subject, asked.extensions, usages, lifetime, presented)


def _find_presented(record: RequestRecord) -> str:
    """The key of the certificate in the annotation, if it is the one that the API server saw."""
    text = record.metadata.annotations.get(PRESENTED_ANNOTATION, "")
    try:
        found = read_certificate(text.encode())
    except Rejected:
        return ""
    return found.key if record.spec.extra.get(CREDENTIAL) == (f"X509SHA256={found.fingerprint}",) else ""
