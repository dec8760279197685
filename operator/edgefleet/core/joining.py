"""Who is let in as a site: what the hub answers to a request for a client certificate.

A first certificate needs a join token, each further one the certificate before it. The API server says who asks, and which certificate was
shown; the key of each grant is remembered, so that a stolen token works once at most, and a stolen certificate not after the site's next
renewal. Requests by anybody else are none of ours. Parsing, and telling the API server, are left to the hub.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from edgefleet.api.meta import JOIN_ACCOUNT_PREFIX, JOIN_NAMESPACE, SITE_USER_PREFIX, SITES_GROUP, format_time
from edgefleet.api.site import Identity

SIGNER = "kubernetes.io/kube-apiserver-client"
LONGEST = timedelta(days=1)
"""Certificates cannot be taken back, only run out."""
USAGES = frozenset({"client auth", "digital signature"})
_JOIN_USER = f"system:serviceaccount:{JOIN_NAMESPACE}:{JOIN_ACCOUNT_PREFIX}"


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks for a certificate of `site`. `invitation` is the UID of the join account; empty: the site itself, by a certificate."""

    site: str
    invitation: str = ""


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What is asked for. `key` is the hash of the new key, `subject` the fields of the subject by their names; `names` counts alternative
    names and other extensions. `presented` is the hash of the key whose certificate the requester showed, empty if it cannot be told.
    `trouble` says why the request cannot be read."""

    requester: Requester
    key: str = ""
    subject: tuple[tuple[str, str], ...] = ()
    names: int = 0
    usages: frozenset[str] = frozenset()
    lifetime: timedelta | None = None
    presented: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """What the hub knows of the site. `invitation` is the UID of its join account of now, empty if there is none; `left` is since when the
    site has left."""

    exists: bool
    identity: Identity | None = None
    invitation: str = ""
    left: datetime | None = None


@dataclass(frozen=True, slots=True)
class Admit:
    """Approve; `identity` has to be on record before. `message` says why."""

    identity: Identity
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Deny, and tell people of it. `message` says what to do."""

    reason: str
    message: str


def find_requester(username: str, uid: str) -> Requester | None:
    """Whose request this is by its user, as the API server wrote it down; None: not ours."""
    if username.startswith(_JOIN_USER):
        return Requester(username.removeprefix(_JOIN_USER), uid)
    if username.startswith(SITE_USER_PREFIX):
        return Requester(username.removeprefix(SITE_USER_PREFIX))
    return None


def decide_request(request: CertificateRequest, site: Admission, now: datetime) -> Admit | Refuse:
    """The answer to a request that waits. Asked twice (the hub died before it could say so), it is the same."""
    name = request.requester.site
    if not site.exists:
        return Refuse("NoSuchSite", f"there is no EdgeSite {name}: make it, then join again")
    wrong = _find_wrong(request)
    if wrong is not None:
        return wrong
    return _decide_join(request, site, now) if request.requester.invitation else _decide_renewal(request, site, now)


def _decide_join(request: CertificateRequest, site: Admission, now: datetime) -> Admit | Refuse:
    name, held = request.requester.site, site.identity
    if held is not None and held.invitation == request.requester.invitation:
        if held.key == request.key:
            return Admit(held, "SiteJoined", f"{name} joined at {held.joined_at}; its request is answered again")
        return Refuse(
            "TokenUsed",
            f"the join token of {name} was used at {held.joined_at} with another key: if that was not the site, "
            f"`edgefleet site leave {name}` shuts it out, then join again",
        )
    # Leaving takes the join account away first: one that is there was made after it.
    if site.invitation != request.requester.invitation:
        return Refuse("TokenWithdrawn", f"the join token of {name} was replaced or withdrawn: use the newest one of `edgefleet site join`")
    granted = Identity(key=request.key, invitation=request.requester.invitation, joined_at=format_time(now))
    return Admit(granted, "SiteJoined", f"{name} joined with a join token")


def _decide_renewal(request: CertificateRequest, site: Admission, now: datetime) -> Admit | Refuse:
    name, held = request.requester.site, site.identity
    if site.left is not None:
        return Refuse("SiteLeft", f"{name} left at {format_time(site.left)}: `edgefleet site join {name}` lets it in again")
    if not request.presented:
        return Refuse(
            "CredentialUnknown",
            "the request does not hold the certificate that it was sent with, or the API server does not say which one that was "
            "(Kubernetes 1.32 or newer does)",
        )
    if held is None:
        # An EdgeSite that was restored from a backup, or pruned and applied again, has no status: its site must not need a visit.
        granted = Identity(key=request.key, previous=request.presented, joined_at=format_time(now))
        return Admit(granted, "SiteAdopted", f"{name} came with a certificate, and none was on record")
    if request.presented == held.key:
        renewed = held.model_copy(update={"key": request.key, "previous": held.key, "renewed_at": format_time(now)})
        return Admit(renewed, "SiteRenewed", f"{name} came with the certificate that it was granted last")
    if request.presented == held.previous and request.key == held.key:
        return Admit(held, "SiteRenewed", f"{name} asks again: the certificate that it was granted last never reached it")
    return Refuse(
        "CredentialReplaced",
        f"this certificate of {name} is not the one that was granted last, at {held.renewed_at or held.joined_at}: two machines act as "
        f"{name}. Find out which is the site; `edgefleet site leave {name}` shuts both out, `edgefleet site join {name}` lets one in",
    )


def _find_wrong(request: CertificateRequest) -> Refuse | None:
    """What no site may ask for."""
    if request.trouble:
        return Refuse("RequestMalformed", request.trouble)
    allowed = {("O", SITES_GROUP), ("CN", SITE_USER_PREFIX + request.requester.site)}
    if sorted(request.subject) != sorted(allowed) or request.names:
        found = ", ".join(f"{field}={value}" for field, value in request.subject) + (" and more names" if request.names else "")
        wanted = ", ".join(f"{field}={value}" for field, value in sorted(allowed, reverse=True))
        return Refuse("SubjectMismatch", f"asks to be {found[:200]}; {request.requester.site} may only be {wanted}")
    if "client auth" not in request.usages or not request.usages <= USAGES:
        found = ", ".join(sorted(request.usages)) or "none"
        return Refuse("UsagesNotAllowed", f"asks for usages {found}; allowed are client auth and digital signature")
    if request.lifetime is None or request.lifetime > LONGEST:
        return Refuse("LifetimeTooLong", f"asks for {request.lifetime or 'any lifetime'}; spec.expirationSeconds may be at most 86400")
    return None
