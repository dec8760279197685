"""How a trust bundle writes its limits, and what an older or a careless one is told."""

from typing import Any

import pytest

from edgefleet.core.limits import GoldenLimit, Limits, LimitsByModel
from edgefleet.trust.bundle_content import POLICY_FORMAT, BundleContent, read_content, write_content
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.limits import ImageSigner
from edgefleet.trust.publishers import Publisher, Revoked

KEY, SIGNER = PrivateKey.generate(), PrivateKey.generate()
EXAM = "sha256:" + "e" * 64
PLAIN = BundleContent({"weld": Publisher((KEY.public,))}, (KEY.public,))
LIMITS = LimitsByModel(
    Limits(endpoints=("registry.example", ".factory.example:5000"), golden=GoldenLimit(80)),
    {"weld": Limits(images=("registry.example/serving/*",), regions=("kz",), golden=GoldenLimit(90, (EXAM,))), "other": Limits(images=())},
)


def test_limits_are_read_as_they_were_written() -> None:
    content = BundleContent(
        PLAIN.publishers,
        PLAIN.hub_keys,
        limits=LIMITS,
        image_signers=(ImageSigner("registry.example/serving/*", Publisher((SIGNER.public, KEY.public), threshold=2)),),
    )
    written = write_content(content)
    assert written["formatVersion"] == POLICY_FORMAT
    assert read_content(written) == content
    assert read_content(written).image_signers[0].covers("registry.example/serving/mlserver")


def test_a_bundle_without_limits_keeps_the_lowest_format() -> None:
    written = write_content(PLAIN)
    assert (written["formatVersion"], "limits" in written, "imageSigners" in written) == (1, False, False)


@pytest.mark.parametrize("added", [{"limits": {"default": {"images": []}}}, {"limits": {}}])
def test_limits_under_a_format_that_older_agents_read_are_refused(added: dict[str, Any]) -> None:
    """Older agents would not obey them."""
    with pytest.raises(ValueError, match="formatVersion 3"):
        read_content({**write_content(PLAIN), **added})


def test_a_revoked_key_signs_no_image() -> None:
    revoked = Revoked(keys=frozenset([SIGNER.public.id]))
    signers = (ImageSigner("registry.example/serving/*", Publisher((SIGNER.public,))),)
    content = read_content(write_content(BundleContent(PLAIN.publishers, PLAIN.hub_keys, revoked, image_signers=signers)))
    assert content.image_signers[0].publisher.revoked == revoked


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"images": ["mlserver/*"]}, "all below"),
        ({"images": ["registry.example"]}, "all below"),
        ({"images": ["registry.example/a*"]}, "all below"),
        ({"images": ["registry.example/*/a"]}, "all below"),
        ({"endpoints": ["https://registry.example"]}, "neither registry.example"),
        ({"endpoints": ["*"]}, "neither registry.example"),
        ({"endpoints": ["."]}, "neither registry.example"),
        ({"golden": {"min": "90"}}, "golden.min"),
        ({"golden": {}}, "golden.min"),
        ({"regions": ["KZ"]}, "regions"),
        ({"podSecurity": "privileged"}, "podSecurity"),
    ],
)
def test_what_cannot_be_meant_is_refused(limits: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_content({**write_content(PLAIN), "formatVersion": 3, "limits": {"default": limits}})
