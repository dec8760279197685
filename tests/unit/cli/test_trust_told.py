"""What a person at the hub is told of a site's trust: by `site why` and by `check --site`."""

from datetime import UTC, datetime

import pytest

from edgefleet.api.report import SITE_ANNOTATION, SiteReport, TrustReport
from edgefleet.api.site import Hardware
from edgefleet.cli.check_site import judge_belief
from edgefleet.cli.site import describe_trust

ENDS = datetime(2027, 1, 1, tzinfo=UTC)
CASES = [
    (TrustReport(version=3, ends=ENDS), ["bundle version 3, until 2027-01-01T00:00:00Z"], []),
    (
        TrustReport(version=3, ends=ENDS, refused="BundleRollback: the trust bundle has version 2"),
        ["bundle version 3, until 2027-01-01T00:00:00Z", "refuses the hub's bundle: BundleRollback: the trust bundle has version 2"],
        ["the agent refuses the trust bundle: BundleRollback: the trust bundle has version 2; it goes on with version 3"],
    ),
    (
        TrustReport(version=0, refused="BundleRootMismatch: x", clock="ClockSkew: y"),
        ["no bundle is in force: it activates nothing", "refuses the hub's bundle: BundleRootMismatch: x", "ClockSkew: y"],
        ["the agent refuses the trust bundle: BundleRootMismatch: x; it has no other", "ClockSkew: y"],
    ),
]


@pytest.mark.parametrize(("trust", "why", "check"), CASES)
def test_what_a_person_is_told(trust: TrustReport, why: list[str], check: list[str]) -> None:
    assert describe_trust(trust) == why
    report = SiteReport(agent_version="1", hardware=Hardware(arch="amd64", memory=1), trust=trust)
    lease = {"metadata": {"annotations": {SITE_ANNOTATION: report.model_dump_json(by_alias=True)}}}
    assert [line.found for line in judge_belief(lease)] == check


def test_an_agent_that_says_nothing_of_it_is_taken_as_it_is() -> None:
    report = SiteReport(agent_version="1", hardware=Hardware(arch="amd64", memory=1))
    for annotations in (None, {}, {SITE_ANNOTATION: "{"}, {SITE_ANNOTATION: report.model_dump_json(by_alias=True)}):
        assert judge_belief({"metadata": {"annotations": annotations}}) == []
