"""What may be read of a bundle without believing it: when it ends."""

from datetime import UTC, datetime, timedelta

import pytest

from edgefleet.trust.bundle import make_bundle, make_root, read_expiry
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(("root_days", "bundle_days", "ends_after"), [(365, 90, 90), (30, 90, 30)])
def test_a_bundle_ends_with_the_earlier_of_root_and_targets(root_days: int, bundle_days: int, ends_after: int) -> None:
    key, publisher = PrivateKey.generate(), PrivateKey.generate()
    root = make_root([key.public], signers=[key], threshold=1, version=1, expires_at=START + timedelta(days=root_days))
    bundle = make_bundle(
        roots=[root],
        signers=[key],
        version=1,
        content=BundleContent({"weld": Publisher((publisher.public,))}, (publisher.public,)),
        expires_at=START + timedelta(days=bundle_days),
    )
    assert read_expiry(bundle) == START + timedelta(days=ends_after)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"roots": [], "targets": {}}', b'{"roots": [{}], "targets": {"signed": {"expires": "x"}}}'])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected, match="BundleMalformed"):
        read_expiry(data)
