"""Who is let in as a site: each request with its answer."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from edgefleet.api.conditions import Condition, find_condition
from edgefleet.api.site import EdgeSiteSpec, EdgeSiteStatus, Identity
from edgefleet.core.joining import Admission, Admit, CertificateRequest, Refuse, Requester, decide_request, find_requester
from edgefleet.core.status import summarise_site

NOW = datetime(2026, 11, 28, 6, tzinfo=UTC)
LEFT = NOW - timedelta(days=1)
ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")
SUBJECT = (("O", "edgefleet:sites"), ("CN", "edgefleet:site:berlin"))
JOIN = CertificateRequest(
    Requester("berlin", "uid-1"), ONE, SUBJECT, usages=frozenset({"client auth", "digital signature"}), lifetime=timedelta(days=1)
)
RENEWAL = replace(JOIN, requester=Requester("berlin"), key=TWO, presented=ONE)
JOINED = Identity(key=ONE, invitation="uid-1", joined_at="2026-11-27T06:00:00Z")
RENEWED = JOINED.model_copy(update={"key": TWO, "previous": ONE, "renewed_at": "2026-11-27T22:00:00Z"})
INVITED = Admission(exists=True, invitation="uid-1")
IN = Admission(exists=True, identity=JOINED)


@pytest.mark.parametrize(
    ("username", "found"),
    [
        ("system:serviceaccount:edgefleet-join:join-berlin", Requester("berlin", "uid-1")),
        ("edgefleet:site:berlin", Requester("berlin")),
        ("system:serviceaccount:edgefleet-join:default", None),
        ("system:serviceaccount:team:join-berlin", None),
        ("system:node:worker-1", None),
        ("alice", None),
    ],
)
def test_whose_request_it_is(username: str, found: Requester | None) -> None:
    assert find_requester(username, "uid-1") == found


def test_a_site_joins_and_its_key_is_on_record() -> None:
    answer = decide_request(JOIN, INVITED, NOW)
    assert isinstance(answer, Admit)
    assert answer.identity == Identity(key=ONE, invitation="uid-1", joined_at="2026-11-28T06:00:00Z")


def test_a_join_again_with_a_new_token_replaces_what_was_on_record() -> None:
    answer = decide_request(replace(JOIN, key=THREE), replace(INVITED, identity=RENEWED.model_copy(update={"invitation": "uid-0"})), NOW)
    assert isinstance(answer, Admit)
    assert answer.identity == Identity(key=THREE, invitation="uid-1", joined_at="2026-11-28T06:00:00Z")


def test_a_renewal_moves_the_key_on_and_keeps_the_one_before() -> None:
    answer = decide_request(RENEWAL, IN, NOW)
    assert isinstance(answer, Admit)
    assert answer.identity == JOINED.model_copy(update={"key": TWO, "previous": ONE, "renewed_at": "2026-11-28T06:00:00Z"})


def test_the_same_question_has_the_same_answer_after_a_crash() -> None:
    """The grant was on record, and the hub died before it approved."""
    first = decide_request(JOIN, INVITED, NOW)
    assert isinstance(first, Admit)
    again = decide_request(JOIN, replace(INVITED, identity=first.identity), NOW + timedelta(hours=1))
    assert isinstance(again, Admit)
    assert again.identity == first.identity
    first = decide_request(RENEWAL, IN, NOW)
    assert isinstance(first, Admit)
    again = decide_request(RENEWAL, replace(IN, identity=first.identity), NOW + timedelta(hours=1))
    assert isinstance(again, Admit)
    assert again.identity == first.identity


def test_a_site_whose_record_is_lost_keeps_its_place() -> None:
    answer = decide_request(RENEWAL, Admission(exists=True), NOW)
    assert isinstance(answer, Admit)
    assert (answer.identity.key, answer.identity.previous) == (TWO, ONE)


REFUSED: list[tuple[str, CertificateRequest, Admission, str, str]] = [
    ("no such site", JOIN, Admission(exists=False), "NoSuchSite", "no EdgeSite berlin"),
    ("a token used twice", replace(JOIN, key=TWO), replace(INVITED, identity=JOINED), "TokenUsed", "site leave berlin"),
    ("a token used after a renewal", replace(JOIN, key=THREE), replace(INVITED, identity=RENEWED), "TokenUsed", "another key"),
    ("a token that was replaced", JOIN, replace(INVITED, invitation="uid-2"), "TokenWithdrawn", "newest one"),
    ("a token that was withdrawn", JOIN, replace(INVITED, invitation=""), "TokenWithdrawn", "withdrawn"),
    ("another site's name", replace(JOIN, subject=(SUBJECT[0], ("CN", "edgefleet:site:oslo"))), INVITED, "SubjectMismatch", "site:oslo"),
    ("an organisation more", replace(JOIN, subject=(*SUBJECT, ("O", "system:masters"))), INVITED, "SubjectMismatch", "system:masters"),
    ("another organisation", replace(JOIN, subject=(("O", "system:nodes"), SUBJECT[1])), INVITED, "SubjectMismatch", "system:nodes"),
    ("no organisation", replace(JOIN, subject=SUBJECT[1:]), INVITED, "SubjectMismatch", "O=edgefleet:sites"),
    ("a name twice", replace(JOIN, subject=(*SUBJECT, SUBJECT[1])), INVITED, "SubjectMismatch", "may only be"),
    ("alternative names", replace(JOIN, names=1), INVITED, "SubjectMismatch", "more names"),
    ("a server's certificate", replace(JOIN, usages=frozenset({"server auth"})), INVITED, "UsagesNotAllowed", "server auth"),
    ("a usage more", replace(JOIN, usages=JOIN.usages | {"cert sign"}), INVITED, "UsagesNotAllowed", "cert sign"),
    ("a long life", replace(JOIN, lifetime=timedelta(days=2)), INVITED, "LifetimeTooLong", "2 days"),
    ("any life", replace(JOIN, lifetime=None), INVITED, "LifetimeTooLong", "86400"),
    ("nothing readable", replace(JOIN, trouble="not a request"), INVITED, "RequestMalformed", "not a request"),
    ("a certificate that is not shown", replace(RENEWAL, presented=""), IN, "CredentialUnknown", "1.32"),
    ("one not shown, and none on record", replace(RENEWAL, presented=""), Admission(exists=True), "CredentialUnknown", "1.32"),
    ("a stolen certificate", replace(RENEWAL, presented=THREE), IN, "CredentialReplaced", "two machines"),
    ("a certificate from before the renewal", replace(RENEWAL, key=THREE), replace(IN, identity=RENEWED), "CredentialReplaced", "22:00"),
    ("a renewal after leaving", RENEWAL, replace(IN, left=LEFT), "SiteLeft", "site join berlin"),
    ("one after leaving, with no record", RENEWAL, Admission(exists=True, left=LEFT), "SiteLeft", "2026-11-27"),
    ("a site's own certificate for another name", replace(RENEWAL, subject=(SUBJECT[0], ("CN", "x"))), IN, "SubjectMismatch", "CN=x"),
]


@pytest.mark.parametrize(("request_", "site", "reason", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(request_: CertificateRequest, site: Admission, reason: str, said: str) -> None:
    answer = decide_request(request_, site, NOW)
    assert isinstance(answer, Refuse)
    assert answer.reason == reason
    assert said in answer.message


def joined(identity: Identity | None, left: datetime | None) -> tuple[Condition | None, Identity | None]:
    status, _ = summarise_site(
        old=EdgeSiteStatus(identity=identity),
        spec=EdgeSiteSpec(),
        generation=1,
        report=None,
        last_heard=None,
        renew_seconds=60,
        left=left,
        now=NOW,
    )
    return find_condition(status.conditions, "Joined"), status.identity


def test_the_site_says_whether_it_joined_and_a_renewal_is_no_news() -> None:
    assert joined(None, None) == (None, None), "a site that brought its own certificate never joined"
    first, kept = joined(JOINED, None)
    assert first is not None
    assert (first.status, first.reason) == ("True", "CertificateGranted")
    assert kept == JOINED
    assert joined(RENEWED, None)[0] == first
    left, kept = joined(RENEWED, LEFT)
    assert left is not None
    assert (left.status, left.reason) == ("False", "Left")
    assert "2026-11-27T06:00:00Z" in left.message
    assert kept == RENEWED
