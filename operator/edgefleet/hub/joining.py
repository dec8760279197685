"""Sites' requests for client certificates: each that waits is approved or denied, as core/joining.py decides.

A grant is on record in the EdgeSite's status, against the state that it was decided on, before the request is approved: a hub that dies in
between gives the same answer again, and two requests with one token cannot both be granted. The signer is the cluster's own. Join accounts
go when they have done their work, or are past their time.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from edgefleet.api.attestation import CHALLENGE_REASON
from edgefleet.api.meta import (
    EXPIRES_ANNOTATION,
    JOIN_ACCOUNT_PREFIX,
    JOIN_NAMESPACE,
    LEFT_ANNOTATION,
    SITE_LABEL,
    parse_time,
    site_namespace,
)
from edgefleet.api.site import AttestationStatus, EdgeSite, Identity, Vouched
from edgefleet.core.attestation import record_refusal
from edgefleet.core.events import Note
from edgefleet.core.joining import SIGNER, Admission, Admit, Refuse, decide_request
from edgefleet.hub.attesting import Attesting, Unready
from edgefleet.hub.events import Events
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.requests import RequestRecord, read_facts
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, NotFound
from edgefleet.kube.resources import CERTIFICATE_REQUESTS, EDGE_SITES, NAMESPACES, SERVICE_ACCOUNTS
from edgefleet.kube.watch import Key, ListWatch, Record

log = logging.getLogger(__name__)

IDENTITY_MANAGER = "edgefleet-hub-joining"
FETCHED_WITHIN = timedelta(minutes=1)
"""A site that was heard so long after its grant has its certificate."""
SWEEP_SECONDS = 60.0
UNREADY_AGAIN = timedelta(seconds=30)
"""How long after a request that could not be judged the hub looks whether it can."""


class AccountRecord(Record):
    """A join account."""


class Joining:
    """`namespace` is the hub's own; `on_request` is called with the name of a site whose request waits."""

    def __init__(self, api: Api, inventory: Inventory, events: Events, *, namespace: str, on_request: Callable[[str], None]) -> None:
        self._api = api
        self._inventory = inventory
        self._events = events
        self._on_request = on_request
        self.requests = ListWatch(
            api, CERTIFICATE_REQUESTS, RequestRecord, fields=f"spec.signerName={SIGNER}", on_change=self._request_changed
        )
        self._attesting = Attesting(api, namespace, self.requests)

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
        """Answer all requests of one site that wait, the oldest first. Returns when one that could not be judged is looked at again."""
        waiting = [one for one in self.requests if one.requester is not None and one.requester.site == site]
        again = None
        for record in sorted(waiting, key=lambda one: (one.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), one.key)):
            if not await self._answer(record, site):
                again = UNREADY_AGAIN
        return again

    async def _answer(self, record: RequestRecord, site: str) -> bool:
        """Whether there is an answer."""
        requester = record.requester
        if requester is None:
            return True
        found = await self._fetch_site(site)
        left = self._inventory.left_at(site)
        admission = Admission(
            exists=found is not None,
            identity=found.status.identity if found else None,
            invitation=await self._fetch_invitation(site) if requester.invitation else "",
            left=left,
        )
        now = datetime.now(UTC)
        request = read_facts(record, requester)
        answer = decide_request(request, admission, now)
        attested: Vouched | None = None
        if isinstance(answer, Admit) and found is not None and found.spec.attestation is not None:
            judged = await self._attesting.judge(record, request, found.spec.attestation, found.status.attestation, now)
            if isinstance(judged, Unready):
                note = Note("Warning", "AttestationUnready", judged.message, f"request/{record.metadata.name}")
                await self._events.tell(EDGE_SITES, found.metadata, (note,))
                log.warning("site %s: request %s: %s", site, record.metadata.name, judged.message)
                return False
            if isinstance(judged, Vouched):
                attested = judged
            else:
                answer = judged
                await self._record(found, found.status.identity, record_refusal(found.status.attestation, judged, now))
        match answer:
            case Admit():
                if found is not None:
                    await self._record(found, answer.identity, AttestationStatus(verified=attested) if attested else None)
                if left is not None:
                    body = {"metadata": {"annotations": {LEFT_ANNOTATION: None}}}
                    self._inventory.namespaces.observe(await self._api.patch(NAMESPACES, site_namespace(site), None, body))
            case Refuse() if found is not None and answer.reason != CHALLENGE_REASON:
                note = Note("Warning", answer.reason, answer.message, f"request/{record.metadata.name}")
                await self._events.tell(EDGE_SITES, found.metadata, (note,))
        await self._tell(record, answer, now)
        log.info("site %s: %s: %s", site, answer.reason, "" if answer.reason == CHALLENGE_REASON else answer.message)
        return True

    async def _record(self, site: EdgeSite, identity: Identity | None, attestation: AttestationStatus | None) -> None:
        if (identity, attestation) == (site.status.identity, site.status.attestation):
            return
        # Both each time: what one apply leaves out is taken away.
        status = {"identity": identity, "attestation": attestation}
        body = {
            "metadata": {"name": site.metadata.name, "resourceVersion": site.metadata.resource_version},
            "status": {name: part.to_json_dict() for name, part in status.items() if part is not None},
        }
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
