"""Whether those who signed the release that was verified last are still believed: decided from what its status says of them.

No registry is asked: one that lost its signatures, or hides them, takes nothing back (that only keeps the next release from starting).
What a trusted root vouches for cannot be told from the status alone; models.py looks at the signatures again when the root has changed.
"""

from edgefleet.api.model import Release
from edgefleet.trust.publishers import Publisher

MAX_SIGNERS_SHOWN = 8


def find_disowned(release: Release, publisher: Publisher) -> str:
    """Why this release would not be accepted now (`<Reason>: <message>`), empty if its status gives no cause."""
    if release.seq < publisher.min_release_seq:
        floor = publisher.min_release_seq
        return f"SeqTooLow: its release sequence is {release.seq}, the lowest accepted is {floor} (spec.verify.minReleaseSeq)"
    if len(release.signed_by) >= MAX_SIGNERS_SHOWN:
        # The status does not name all of them: who is missing there may be enough.
        return ""
    left = {key.id for key in publisher.keys if key.id in release.signed_by} - publisher.revoked.keys
    for signer in release.identities:
        revoked = any(one.admits(signer.issuer, signer.subject) for one in publisher.revoked.identities)
        rule = next((one.id for one in publisher.identities if one.admits(signer.issuer, signer.subject)), None)
        if rule is not None and not revoked:
            left.add(rule)
    if len(left) >= publisher.threshold:
        return ""
    return (
        f"PublisherRemoved: of those who signed it ({', '.join(release.signed_by)[:600]}), {len(left)} are still believed by spec.verify,"
        f" {publisher.threshold} are demanded"
    )
