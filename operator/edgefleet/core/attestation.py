"""What a site's TPM has to have proved before a new model goes there, and what the hub answers to a proof.

An attestation gates what is new: another model, the next certificate. What runs at a site runs on, and goes back where it must. A site
whose certificate was used by another TPM is in quarantine: nothing it says counts, as if it were silent. Whether a TPM says what it seems
to say is decided in trust/attestation.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from edgefleet.api.attestation import CHALLENGE_REASON
from edgefleet.api.conditions import ConditionStatus
from edgefleet.api.meta import format_time, parse_time
from edgefleet.api.site import Attestation, AttestationStatus, EdgeSiteSpec, PcrValue, Rebuff, Vouched
from edgefleet.core.joining import Refuse

ANSWER_WITHIN = timedelta(minutes=15)
"""How old the challenge of a proof may be."""
STANDARD_PCRS = (0, 2, 4, 7)
"""Firmware, its extensions, boot loader, Secure Boot: quoted, and shown in the status, where the EdgeSite names none."""
_QUARANTINING = frozenset({"DeviceChanged", "UntrustedEK"})
_UNHEARD = frozenset({CHALLENGE_REASON, "AttestationRequired", "ChallengeExpired", "ChallengeUnknown"})
"""Refusals that say nothing about the site's TPM."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a TPM has proved. `pcrs` are values in hex by number, `resets` is how often it was reset."""

    device: str
    pcrs: Mapping[int, str]
    resets: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A site's condition Attested."""

    status: ConditionStatus
    reason: str
    message: str


def find_standing(spec: EdgeSiteSpec, held: AttestationStatus | None, now: datetime) -> Standing | None:
    """How the site stands; None if no attestation is asked of it."""
    if spec.attestation is None:
        return None
    verified, refused = (held.verified, held.refused) if held else (None, None)
    changed = _find_difference(spec.attestation, verified) if verified else None
    # What quarantines comes first: no other refusal may hide it.
    against = [one for one in (refused, changed) if one is not None]
    if against:
        worst = min(against, key=lambda one: one.reason not in _QUARANTINING)
        return Standing("False", worst.reason, worst.message)
    if verified is None:
        return Standing(
            "Unknown", "NotEnrolled", "no TPM has vouched for it yet: start its agent with --tpm, or wait for its next certificate"
        )
    if parse_time(verified.valid_until) <= now:
        return Standing("Unknown", "Stale", f"its TPM vouched for it until {verified.valid_until}; its next certificate brings a new quote")
    return Standing("True", "QuoteVerified", f"TPM {verified.device_hash} vouched for it at {verified.verified_at}")


def find_end(held: AttestationStatus | None) -> datetime | None:
    """Until when the last proof counts."""
    return parse_time(held.verified.valid_until) if held and held.verified else None


def is_quarantined(spec: EdgeSiteSpec, held: AttestationStatus | None, now: datetime) -> bool:
    """Whether nothing that the site says counts."""
    standing = find_standing(spec, held, now)
    return standing is not None and standing.reason in _QUARANTINING


def refuse_device(wanted: Attestation, held: AttestationStatus | None, device: str, *, invited: bool) -> Refuse | None:
    """Whether this TPM may not be the site's. `invited`: a person let it in just now, by a join token."""
    pinned = wanted.device_hash or (held.verified.device_hash if held and held.verified and not invited else None)
    if pinned in (None, device):
        return None
    where = "spec.attestation.deviceHash" if wanted.device_hash else "the one that it joined with"
    return Refuse(
        "DeviceChanged",
        f"comes with TPM {device}, not {pinned} ({where}). If the machine was replaced, set deviceHash and `edgefleet site join --again`;"
        " if not, somebody has a copy of its state: `edgefleet site leave` shuts both out",
    )


def decide_proof(
    wanted: Attestation, held: AttestationStatus | None, proven: Proven, *, key: str, invited: bool, lasts: timedelta, now: datetime
) -> Vouched | Refuse:
    """What is on record from now on, for a certificate of this key that is good for `lasts`; or why the proof does not do."""
    refusal = refuse_device(wanted, held, proven.device, invited=invited)
    if refusal is not None:
        return refusal
    before = held.verified if held else None
    if before is not None and not invited and before.device_hash == proven.device and proven.resets < before.resets:
        return Refuse(
            "TpmWentBack",
            f"its TPM was reset {proven.resets} times, and {before.resets} times before: an old state of a virtual machine came back, or"
            " the TPM was cleared; if that was meant, `edgefleet site join --again`",
        )
    found = Vouched(
        device_hash=proven.device,
        key=key,
        verified_at=format_time(now),
        valid_until=format_time(now + lasts),
        resets=proven.resets,
        pcrs=tuple(PcrValue(pcr=pcr, value=value) for pcr, value in sorted(proven.pcrs.items())),
    )
    return _find_difference(wanted, found) or found


def record_refusal(held: AttestationStatus | None, refusal: Refuse, now: datetime) -> AttestationStatus | None:
    """The record after this refusal. One that quarantines stays until a proof is believed: whoever is shut out could else send another."""
    if refusal.reason in _UNHEARD:
        return held
    if held and held.refused and held.refused.reason in _QUARANTINING and refusal.reason not in _QUARANTINING:
        return held
    rebuff = Rebuff(reason=refusal.reason, message=refusal.message[:1024], at=format_time(now))
    return AttestationStatus(verified=held.verified if held else None, refused=rebuff)


def list_pcrs(wanted: Attestation) -> tuple[int, ...]:
    """Which PCRs are quoted."""
    return tuple(sorted(one.pcr for one in wanted.pcrs)) or STANDARD_PCRS


def _find_difference(wanted: Attestation, found: Vouched) -> Refuse | None:
    """What was proved, against what the EdgeSite says now."""
    if wanted.device_hash is not None and wanted.device_hash != found.device_hash:
        return refuse_device(wanted, None, found.device_hash, invited=False)
    values = {one.pcr: one.value for one in found.pcrs}
    for one in wanted.pcrs:
        if values.get(one.pcr) not in one.values:
            return Refuse(
                "PCRMismatch",
                f"PCR {one.pcr} is {values.get(one.pcr, 'not quoted yet')}, which spec.attestation.pcrs does not allow. If that is an"
                " update that you know, add the value; the site quotes again for its next certificate, or after"
                " `edgefleet site join --again`",
            )
    return None
