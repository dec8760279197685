"""What a site's TPM must have proved: how a site stands, which TPM may be its, and what that stops."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgefleet.api.attestation import CHALLENGE_REASON
from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import format_time
from edgefleet.api.site import Attestation, AttestationStatus, EdgeSiteSpec, EdgeSiteStatus, PcrValue, Rebuff, Vouched
from edgefleet.core.attestation import (
    Proven,
    decide_proof,
    find_standing,
    is_quarantined,
    list_pcrs,
    record_refusal,
    refuse_device,
)
from edgefleet.core.eligibility import decide_eligibility
from edgefleet.core.facts import SiteFacts
from edgefleet.core.fleet import decide_fleet
from edgefleet.core.joining import Refuse
from edgefleet.core.memory import recall
from edgefleet.core.returning import plan_return
from edgefleet.core.status import summarise_site
from tests.unit.core.facts_of import A, B, fleet, run, site, told

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
OURS, OTHER, KEY, NEXT = (f"sha256:{digit * 64}" for digit in "1234")
BOOT, UPDATE = "a" * 64, "b" * 64
PLAIN = Attestation(mode="Required")
PINNED = Attestation(mode="Required", device_hash=OURS)
MEASURED = Attestation.model_validate({"mode": "Required", "pcrs": [{"pcr": 7, "values": [BOOT]}, {"pcr": 0, "values": [BOOT, UPDATE]}]})
PROVEN = Proven(OURS, {0: BOOT, 7: BOOT}, 5)
VERIFIED = Vouched(
    device_hash=OURS,
    key=KEY,
    verified_at=format_time(NOW),
    valid_until=format_time(NOW + DAY),
    resets=5,
    pcrs=(PcrValue(pcr=0, value=BOOT), PcrValue(pcr=7, value=BOOT)),
)
ATTESTED = AttestationStatus(verified=VERIFIED)


def refused(reason: str) -> AttestationStatus:
    return AttestationStatus(verified=VERIFIED, refused=Rebuff(reason=reason, message="so it is", at=format_time(NOW)))


def decided(wanted: Attestation = PLAIN, held: AttestationStatus | None = ATTESTED, proven: Proven = PROVEN, invited: bool = False) -> Any:
    answer = decide_proof(wanted, held, proven, key=NEXT, invited=invited, lasts=DAY, now=NOW)
    return answer.reason if isinstance(answer, Refuse) else answer


@pytest.mark.parametrize(
    ("wanted", "held", "now", "expected", "quarantined"),
    [
        pytest.param(None, None, NOW, None, False, id="not asked for"),
        pytest.param(None, refused("DeviceChanged"), NOW, None, False, id="not asked for any more"),
        pytest.param(PLAIN, None, NOW, ("Unknown", "NotEnrolled"), False, id="never"),
        pytest.param(PLAIN, ATTESTED, NOW, ("True", "QuoteVerified"), False, id="attested"),
        pytest.param(PINNED, ATTESTED, NOW, ("True", "QuoteVerified"), False, id="this device"),
        pytest.param(MEASURED, ATTESTED, NOW, ("True", "QuoteVerified"), False, id="these PCRs"),
        pytest.param(PLAIN, ATTESTED, NOW + DAY, ("Unknown", "Stale"), False, id="too old"),
        pytest.param(PLAIN, refused("PCRMismatch"), NOW, ("False", "PCRMismatch"), False, id="other PCRs"),
        pytest.param(PLAIN, refused("DeviceChanged"), NOW, ("False", "DeviceChanged"), True, id="another device"),
        pytest.param(PLAIN, refused("UntrustedEK"), NOW, ("False", "UntrustedEK"), True, id="unknown maker"),
        pytest.param(PLAIN.model_copy(update={"device_hash": OTHER}), ATTESTED, NOW, ("False", "DeviceChanged"), True, id="named later"),
        pytest.param(
            PLAIN.model_copy(update={"device_hash": OTHER}),
            refused("EvidenceMalformed"),
            NOW,
            ("False", "DeviceChanged"),
            True,
            id="named later, and no proof came since",
        ),
        pytest.param(
            Attestation.model_validate({"mode": "Required", "pcrs": [{"pcr": 7, "values": [UPDATE]}]}),
            ATTESTED,
            NOW,
            ("False", "PCRMismatch"),
            False,
            id="PCRs named later",
        ),
        pytest.param(
            Attestation.model_validate({"mode": "Required", "pcrs": [{"pcr": 9, "values": [BOOT]}]}),
            ATTESTED,
            NOW,
            ("False", "PCRMismatch"),
            False,
            id="a PCR that was not quoted",
        ),
    ],
)
def test_how_a_site_stands(
    wanted: Attestation | None, held: AttestationStatus | None, now: datetime, expected: tuple[str, str] | None, quarantined: bool
) -> None:
    spec = EdgeSiteSpec(attestation=wanted)
    standing = find_standing(spec, held, now)
    assert (standing and (standing.status, standing.reason)) == expected
    assert is_quarantined(spec, held, now) is quarantined
    status, _ = summarise_site(
        old=EdgeSiteStatus(attestation=held), spec=spec, generation=1, report=None, last_heard=None, renew_seconds=60, now=now
    )
    shown = find_condition(status.conditions, "Attested")
    assert (shown and (shown.status, shown.reason)) == expected
    assert status.attestation == held
    facts = site("s1", spec=spec.to_json_dict() | {"allowedNamespaces": {}, "region": "kz"}, attestation=held)
    eligible = decide_eligibility(fleet(A), facts, A, now)
    assert eligible.reason == (None if expected is None or expected[0] == "True" else "NotAttested")
    if expected is not None and expected[0] != "True":
        assert expected[1] in eligible.message


def test_the_status_is_looked_at_again_when_the_proof_ends() -> None:
    _, wake_at = summarise_site(
        old=EdgeSiteStatus(attestation=ATTESTED),
        spec=EdgeSiteSpec(attestation=PLAIN),
        generation=1,
        report=None,
        last_heard=None,
        renew_seconds=60,
        now=NOW,
    )
    assert wake_at == NOW + DAY
    one = site("s1", spec={"attestation": {"mode": "Required"}}, last_heard=None, attestation=ATTESTED)
    facts = fleet(A, runs=[run(1, A, outcome="Promoted")], sites=[told(one, A, "weld-1")])
    assert decide_fleet(facts, NOW).wake_at == NOW + DAY


def test_a_proof_is_on_record_for_its_key_until_its_certificate_ends() -> None:
    expected = VERIFIED.model_copy(update={"key": NEXT})
    assert decided(held=None) == decided() == decided(PINNED) == decided(MEASURED) == decided(PLAIN, refused("DeviceChanged")) == expected


@pytest.mark.parametrize(
    ("wanted", "held", "device", "invited", "allowed"),
    [
        (PLAIN, None, OURS, True, True),
        (PLAIN, None, OURS, False, True),
        (PLAIN, ATTESTED, OURS, False, True),
        (PLAIN, ATTESTED, OTHER, False, False),
        (PLAIN, ATTESTED, OTHER, True, True),
        (PINNED, None, OTHER, True, False),
        (PINNED, AttestationStatus(verified=VERIFIED.model_copy(update={"device_hash": OTHER})), OURS, False, True),
    ],
)
def test_which_device_may_be_a_sites(
    wanted: Attestation, held: AttestationStatus | None, device: str, invited: bool, allowed: bool
) -> None:
    assert (refuse_device(wanted, held, device, invited=invited) is None) is allowed
    answer = decided(wanted, held, replace(PROVEN, device=device), invited)
    assert (answer == "DeviceChanged") is not allowed


def test_other_pcrs_and_old_states_are_refused() -> None:
    assert decided(MEASURED, proven=replace(PROVEN, pcrs={0: UPDATE, 7: BOOT})).pcrs[0].value == UPDATE
    assert decided(MEASURED, proven=replace(PROVEN, pcrs={0: BOOT, 7: UPDATE})) == "PCRMismatch"
    assert decided(MEASURED, proven=replace(PROVEN, pcrs={0: BOOT})) == "PCRMismatch"
    assert decided(proven=replace(PROVEN, resets=6)).resets == 6
    assert decided(proven=replace(PROVEN, resets=4)) == "TpmWentBack"
    assert decided(proven=replace(PROVEN, resets=4), invited=True).resets == 4


def test_which_refusals_are_kept() -> None:
    kept = record_refusal(ATTESTED, Refuse("DeviceChanged", "x" * 2000), NOW)
    assert kept is not None
    assert kept.verified == VERIFIED
    assert kept.refused == Rebuff(reason="DeviceChanged", message="x" * 1024, at=format_time(NOW))
    for reason in (CHALLENGE_REASON, "AttestationRequired", "ChallengeExpired", "ChallengeUnknown"):
        assert record_refusal(ATTESTED, Refuse(reason, ""), NOW) == ATTESTED
        assert record_refusal(None, Refuse(reason, ""), NOW) is None


@pytest.mark.parametrize("quarantining", ["DeviceChanged", "UntrustedEK"])
def test_a_machine_in_quarantine_does_not_lift_it_by_being_refused_for_something_else(quarantining: str) -> None:
    held = refused(quarantining)
    for reason in ("EvidenceMalformed", "NonceMismatch", "PCRMismatch", "SignatureInvalid", "TpmWentBack", "AttributesRejected"):
        kept = record_refusal(held, Refuse(reason, "something else"), NOW + DAY)
        assert kept == held
        assert is_quarantined(EdgeSiteSpec(attestation=PLAIN), kept, NOW + DAY)
    for reason in ("DeviceChanged", "UntrustedEK"):
        kept = record_refusal(held, Refuse(reason, "again"), NOW + DAY)
        assert kept is not None
        assert kept.refused == Rebuff(reason=reason, message="again", at=format_time(NOW + DAY))
    assert decided(held=held) == VERIFIED.model_copy(update={"key": NEXT})


def test_which_pcrs_are_quoted() -> None:
    assert (list_pcrs(PLAIN), list_pcrs(MEASURED)) == ((0, 2, 4, 7), (0, 7))


STALE: dict[str, Any] = {"spec": {"attestation": {"mode": "Required"}}, "attestation": None}


def test_a_site_that_is_not_attested_goes_back_all_the_same() -> None:
    """It had that model before; nobody should serve a bad one because a quote is missing."""
    facts = fleet(B, runs=[run(1, A, outcome="Promoted"), run(2, B, plan=[("s1", 0)])], sites=[told(site("s1", **STALE), B, "weld-2")])
    order = plan_return(facts.sites[0], facts, recall(facts), "weld-2", NOW)
    assert order is not None
    assert getattr(order, "revision", None) == A


def test_a_site_that_is_not_attested_keeps_what_it_runs() -> None:
    def orders(*sites: SiteFacts) -> list[str]:
        facts = fleet(A, runs=[run(1, A, outcome="Promoted")], sites=sites)
        return [type(action).__name__ for action in decide_fleet(facts, NOW).actions]

    assert orders(told(site("s1", **STALE), A, "weld-1")) == []
    due = told(site("s1", **STALE), A, "weld-1", expires_at=NOW + timedelta(days=6))
    assert orders(due) == ["RenewSite"]
    assert orders(site("s2", **STALE)) == []
    assert orders(site("s2")) == ["AssignSite"]
