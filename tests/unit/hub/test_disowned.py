"""Whether those who signed a release are still believed, as far as its status tells: keys, identities, and rules that several fit."""

import pytest

from edgefleet.api.model import Release, SigningIdentity, Variant
from edgefleet.hub.disowned import MAX_SIGNERS_SHOWN, find_disowned
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher, Revoked

ONE, TWO, THREE = (PrivateKey.generate().public for _ in range(3))
MANY = [PrivateKey.generate().public for _ in range(MAX_SIGNERS_SHOWN)]
ISSUER = "https://token.test"
WELD, PAINT = "https://github.com/acme/weld", "https://github.com/acme/paint"
ALL = Identity(ISSUER, subject_regex="https://github.com/acme/.*")


def released(*keys: str, subjects: tuple[str, ...] = (), seq: int = 5) -> Release:
    return Release(
        digest="sha256:" + "1" * 64,
        version="5",
        seq=seq,
        variants=(Variant(name="cpu", digest="sha256:" + "2" * 64, size=1, arch="amd64"),),
        signed_by=(*keys, *subjects),
        identities=tuple(SigningIdentity(subject=one, issuer=ISSUER, logged_at="2026-03-01T00:00:00Z") for one in subjects),
        verified_at="2026-03-01T00:00:00Z",
    )


def only(subject: str) -> Identity:
    return Identity(ISSUER, subject)


def trust(*identities: Identity, threshold: int = 1, revoked: Identity | None = None) -> Publisher:
    """Identities, and one key that signed nothing."""
    return Publisher((THREE,), threshold, keyless=Keyless(identities, b""), revoked=Revoked(identities=(revoked,) if revoked else ()))


@pytest.mark.parametrize(
    ("release", "publisher", "why"),
    [
        pytest.param(released(ONE.id), Publisher((ONE, TWO)), "", id="as it was"),
        pytest.param(released(ONE.id), Publisher((TWO,)), "PublisherRemoved", id="its key was taken out"),
        pytest.param(released(ONE.id, TWO.id), Publisher((TWO, THREE)), "", id="one of two is enough"),
        pytest.param(released(ONE.id, TWO.id), Publisher((TWO, THREE), 2), "PublisherRemoved", id="one of two is too few"),
        pytest.param(released(ONE.id), Publisher((ONE,), revoked=Revoked(keys=frozenset({ONE.id}))), "PublisherRemoved", id="revoked"),
        pytest.param(released(ONE.id), Publisher((ONE,), 1, 6), "SeqTooLow", id="too old now"),
        pytest.param(released(*(key.id for key in MANY)), Publisher((ONE,)), "", id="not all are named"),
        pytest.param(released(*(key.id for key in MANY)), Publisher(()), "PublisherRemoved", id="nobody is trusted any more"),
        pytest.param(released(ONE.id), Publisher(()), "PublisherRemoved", id="the only key was taken out"),
        pytest.param(released(*(key.id for key in MANY[1:])), Publisher((ONE,)), "PublisherRemoved", id="all are named"),
        pytest.param(released(subjects=(WELD,)), trust(only(WELD)), "", id="its rule is there"),
        pytest.param(released(subjects=(WELD,)), trust(ALL), "", id="another rule admits it"),
        pytest.param(released(subjects=(WELD,)), trust(only(PAINT)), "PublisherRemoved", id="its rule was taken out"),
        pytest.param(released(subjects=(WELD,)), Publisher((THREE,)), "PublisherRemoved", id="no identity is trusted any more"),
        pytest.param(
            released(subjects=(WELD,)), trust(Identity("https://other.test", WELD)), "PublisherRemoved", id="another issuer's namesake"
        ),
        pytest.param(released(subjects=(WELD,)), trust(ALL, revoked=only(WELD)), "PublisherRemoved", id="revoked, and its rule is there"),
        pytest.param(released(subjects=(WELD,)), trust(ALL, revoked=only(PAINT)), "", id="another of its rule is revoked"),
        pytest.param(released(subjects=(WELD, PAINT)), trust(ALL, revoked=only(WELD)), "", id="the rule has another left"),
        pytest.param(released(subjects=(WELD, PAINT)), trust(only(WELD), only(PAINT), threshold=2), "", id="two rules count twice"),
        pytest.param(
            released(subjects=(WELD, PAINT)), trust(ALL, only("x"), threshold=2), "PublisherRemoved", id="two of one rule count once"
        ),
        pytest.param(released(THREE.id, subjects=(WELD,)), trust(ALL, threshold=2), "", id="a key and an identity"),
        pytest.param(
            released(THREE.id, subjects=(WELD,)), trust(only(PAINT), threshold=2), "PublisherRemoved", id="the key alone is too few"
        ),
        pytest.param(
            released(subjects=tuple(f"{WELD}/{n}" for n in range(MAX_SIGNERS_SHOWN))),
            trust(only(WELD)),
            "",
            id="not all identities are named",
        ),
    ],
)
def test_the_status_of_a_release_tells_whether_its_publishers_are_still_believed(release: Release, publisher: Publisher, why: str) -> None:
    assert find_disowned(release, publisher).partition(":")[0] == why
