"""One reason per site, in one fixed order; each message names the site, the field, what was found and the remedy."""

from dataclasses import replace
from typing import Any

import pytest

from edgefleet.api.model import HardwareMatch, RepositoryRuntime, Serving
from edgefleet.api.site import Hardware
from edgefleet.core.eligibility import decide_eligibilities, decide_eligibility, selected
from edgefleet.core.facts import Claim, FleetKey, SiteFacts
from tests.unit.core.facts_of import NOW, A, fleet, minutes, revision, site, told, variant

OTHER = FleetKey("plants", "paint")
OLDER = fleet(A).created_at - minutes(1)
YOUNGER = fleet(A).created_at + minutes(1)
HELD = {"hold": {"until": NOW + minutes(5), "reason": "audit"}}
RESIDENT = {"residency": {"allowedRegions": ["kz", "de"]}}


def claimed(created_at: Any, *, assigned: bool = False, by: FleetKey = OTHER) -> SiteFacts:
    return site("s1", claims=(Claim(by, created_at, assigned),))


REFUSED = [
    pytest.param({}, site("s1", spec={"allowedNamespaces": None}), "NamespaceNotAllowed", "absent", id="nobodys"),
    pytest.param(
        {}, site("s1", spec={"allowedNamespaces": {"matchLabels": {"team": "paint"}}}), "NamespaceNotAllowed", "admit", id="others"
    ),
    pytest.param({"spec": RESIDENT}, site("s1", spec={"region": "us"}), "ResidencyDenied", "spec.region is us", id="region"),
    pytest.param({"spec": RESIDENT}, site("s1", spec={"region": None}), "ResidencyDenied", "absent", id="no-region"),
    pytest.param({}, site("s1", spec={"taints": [{"key": "broken", "reason": "fan"}]}), "Tainted", "broken (fan)", id="taint"),
    pytest.param({}, site("s1", spec={"taints": [{"key": "old"}]}), "Tainted", "has old.", id="taint-without-reason"),
    pytest.param({}, site("s1", spec=HELD), "OnHold", "audit", id="hold"),
    pytest.param({}, claimed(OLDER), "SiteTaken", "plants/paint", id="older-fleet"),
    pytest.param({}, claimed(YOUNGER, assigned=True), "SiteTaken", "narrow", id="holder"),
    pytest.param({}, claimed(fleet(A).created_at, by=FleetKey("plants", "a")), "SiteTaken", "plants/a", id="same-age-by-name"),
    pytest.param({}, site("s1", hardware=None), "HardwareUnknown", "edgefleet agent", id="never-heard"),
    pytest.param({}, site("s1", hardware=Hardware(arch="riscv64", memory=1)), "NoVariantFits", "riscv64", id="variant"),
    pytest.param({}, site("s1", deleting=True), "SiteDeleting", "deleted", id="deleting"),
]


@pytest.mark.parametrize(("more", "facts", "reason", "said"), REFUSED)
def test_refused(more: dict[str, Any], facts: SiteFacts, reason: str, said: str) -> None:
    found = decide_eligibility(fleet(A, **more), facts, A, NOW)
    assert found.reason == reason
    assert not found.eligible
    assert "EdgeSite s1" in found.message
    assert said in found.message
    assert found.variant == ""


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        pytest.param({}, site("s1"), id="plain"),
        pytest.param({}, site("s1", last_heard=None), id="silent-but-known"),
        pytest.param({}, site("s1", spec={"allowedNamespaces": {"matchLabels": {"team": "welding"}}}), id="our-team"),
        pytest.param({"spec": RESIDENT}, site("s1", spec={"region": "de"}), id="allowed-region"),
        pytest.param({"spec": {"tolerations": [{"key": "old"}]}}, site("s1", spec={"taints": [{"key": "old"}]}), id="tolerated"),
        pytest.param({}, site("s1", spec={"hold": {"until": NOW, "reason": "audit"}}), id="hold-over"),
        pytest.param({}, claimed(YOUNGER), id="we-are-older"),
        pytest.param({}, told(claimed(OLDER), A, "weld-1"), id="ours-is-there"),
    ],
)
def test_eligible(more: dict[str, Any], facts: SiteFacts) -> None:
    found = decide_eligibility(fleet(A, **more), facts, A, NOW)
    assert (found.reason, found.message, found.variant) == (None, "", "fp32")


def test_a_withdrawn_assignment_holds_no_site() -> None:
    assert decide_eligibility(fleet(A), told(claimed(OLDER), None, None), A, NOW).reason == "SiteTaken"


def test_two_assigned_fleets_the_older_keeps_the_site() -> None:
    mine = told(claimed(OLDER, assigned=True), A, "weld-1")
    assert decide_eligibility(fleet(A), mine, A, NOW).reason == "SiteTaken"
    mine = told(claimed(YOUNGER, assigned=True), A, "weld-1")
    assert decide_eligibility(fleet(A), mine, A, NOW).eligible


def test_a_deleted_fleet_that_left_its_model_is_named_with_the_way_out() -> None:
    """The site would refuse our order (ModelTaken) for ever: it must not be sent one."""
    left = site("s1", claims=(Claim(OTHER, YOUNGER, assigned=True, gone=True),))
    found = decide_eligibility(fleet(A), left, A, NOW)
    assert found.reason == "SiteTaken"
    assert f"{OTHER} does not exist" in found.message
    assert "onDelete: Withdraw, and delete it" in found.message


def test_reasons_come_in_a_fixed_order() -> None:
    """A site with every fault shows them one after the other as they are mended."""
    fits_nothing = Hardware(arch="riscv64", memory=1)
    facts = site(
        "s1",
        spec={"allowedNamespaces": None, "region": None, "taints": [{"key": "old"}], **HELD},
        hardware=None,
        deleting=True,
        claims=(Claim(OTHER, OLDER, True),),
    )
    mend = {
        "NamespaceNotAllowed": {"allowed_namespaces": fleet(A).spec.site_selector},
        "ResidencyDenied": {"region": "kz"},
        "Tainted": {"taints": ()},
        "OnHold": {"hold": None},
    }
    seen = []
    for _ in range(8):
        reason = decide_eligibility(fleet(A, spec=RESIDENT), facts, A, NOW).reason
        seen.append(reason)
        if reason in mend:
            facts = replace(facts, spec=facts.spec.model_copy(update=mend[reason]))
        elif reason == "SiteTaken":
            facts = replace(facts, claims=())
        elif reason == "HardwareUnknown":
            facts = replace(facts, hardware=fits_nothing)
        elif reason == "NoVariantFits":
            facts = replace(facts, hardware=site("s1").hardware)
    assert seen == [*mend, "SiteTaken", "HardwareUnknown", "NoVariantFits", "SiteDeleting"]


def test_without_a_revision_hardware_need_not_fit() -> None:
    facts = site("s1", hardware=Hardware(arch="riscv64", memory=1))
    assert decide_eligibility(fleet(None), facts, None, NOW).eligible


def test_a_serving_entry_must_fit_too() -> None:
    only_arm = A.model_copy(update={"serving": (Serving(match=HardwareMatch(arch="arm64"), repository=RepositoryRuntime()),)})
    assert decide_eligibility(fleet(A), site("s1"), only_arm, NOW).reason == "NoVariantFits"


def test_the_message_names_the_hardware_and_the_variants() -> None:
    wanted = revision("9.0", [variant("cuda", accelerator="nvidia")])
    message = decide_eligibility(fleet(A), site("s1"), wanted, NOW).message
    assert "amd64, accelerator none" in message
    assert "9.0 (cuda)" in message


def test_an_empty_selector_selects_all_and_refuses_the_same() -> None:
    """Another team's fleet with an empty selector gets none of these sites."""
    ours = site("s1", spec={"allowedNamespaces": {"matchLabels": {"team": "welding"}}})
    other = fleet(
        A, key=FleetKey("guests", "all"), namespace_labels={"team": "guests"}, sites=[ours, site("s2", spec={"allowedNamespaces": None})]
    )
    assert [one.name for one in selected(other)] == ["s1", "s2"]
    found = decide_eligibilities(other, selected(other), A, NOW)
    assert {one.reason for one in found.values()} == {"NamespaceNotAllowed"}


def test_selected_follows_the_labels() -> None:
    facts = fleet(A, sites=[site("s1"), site("s2", labels={})], spec={"siteSelector": {"matchLabels": {"line": "weld"}}})
    assert [one.name for one in selected(facts)] == ["s1"]
