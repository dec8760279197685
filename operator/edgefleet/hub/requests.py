"""Certificate requests as the hub keeps them, and what they ask for. What is answered is decided in joining.py."""

import base64
from datetime import timedelta

from pydantic import Field

from edgefleet.api.meta import PRESENTED_ANNOTATION, Schema
from edgefleet.core.joining import CertificateRequest, Requester, find_requester
from edgefleet.kube.watch import Record
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identity import read_certificate, read_request

CREDENTIAL = "authentication.kubernetes.io/credential-id"


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
    reason: str = ""
    message: str = ""


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

    def read_request(self) -> bytes:
        """The request itself (PEM). Raises ValueError."""
        return base64.b64decode(self.spec.request)


def read_facts(record: RequestRecord, requester: Requester) -> CertificateRequest:
    """What a request asks for, and which certificate it was sent with, as far as that is certain."""
    spec = record.spec
    usages = frozenset(spec.usages)
    lifetime = timedelta(seconds=spec.expiration_seconds) if spec.expiration_seconds is not None else None
    presented = "" if requester.invitation else _find_presented(record)
    try:
        asked = read_request(record.read_request())
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
