"""Whether those who signed the release that was verified last are still believed: decided from what its status says of them.

A registry that lost its signatures, hides them, or shows others takes nothing back (that only keeps the next release from starting).
What a trusted root vouches for cannot be told from the status alone: the very bundles that it names must be there, and be refused.
"""

from collections.abc import Sequence
from dataclasses import replace

from edgefleet.api.model import Release
from edgefleet.oci.client import digest_of
from edgefleet.trust.errors import Rejected
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import verify_release

MAX_SIGNERS_SHOWN = 8


def find_disowned(release: Release, publisher: Publisher) -> str:
    """Why this release would not be accepted now (`<Reason>: <message>`), empty if its status gives no cause."""
    if release.seq < publisher.min_release_seq:
        floor = publisher.min_release_seq
        return f"SeqTooLow: its release sequence is {release.seq}, the lowest accepted is {floor} (spec.verify.minReleaseSeq)"
    if publisher.names and len(release.signed_by) >= MAX_SIGNERS_SHOWN:
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


def find_refused(release: Release, model: str, bundles: Sequence[bytes], publisher: Publisher) -> str:
    """Why what vouched for this release is refused now (`<Reason>: <message>`).

    Empty if it is not, and while any of it is missing among `bundles`, as a registry lists them: nothing can be told then.
    """
    if not release.evidence or not {*release.evidence} <= {*map(digest_of, bundles)}:
        return ""
    try:
        # What a policy demands beside signatures keeps releases from starting; it says nothing of who is believed.
        verify_release(digest=release.digest, model=model, bundles=bundles, publisher=replace(publisher, predicates=()))
    except Rejected as error:
        return f"{error.reason}: {error.message}"
    return ""
