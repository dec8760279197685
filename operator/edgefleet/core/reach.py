"""When a site counts as unreachable, and when it is no longer waited for. Silence is a fact about the link, not about the model."""

from datetime import datetime, timedelta

from edgefleet.core.facts import SiteFacts

REACHABLE_RENEWALS = 3
"""A site is unreachable once this many renewals of its Lease are missing: one lost write is no outage."""


def unreachable_at(last_heard: datetime | None, renew_seconds: int) -> datetime | None:
    """The moment from which the site counts as unreachable if nothing more is heard; None if it was never heard."""
    return None if last_heard is None else last_heard + timedelta(seconds=REACHABLE_RENEWALS * renew_seconds)


def is_reachable(site: SiteFacts, now: datetime) -> bool:
    """Whether the site's Lease is fresh."""
    end = unreachable_at(site.last_heard, site.renew_seconds)
    return end is not None and now < end


def given_up_at(site: SiteFacts, skip_after: timedelta) -> datetime | None:
    """The moment from which a silent site is no longer waited for; None: at once, as it was never heard."""
    end = unreachable_at(site.last_heard, site.renew_seconds)
    return None if end is None or site.last_heard is None else max(end, site.last_heard + skip_after)


def earliest(*moments: datetime | None, after: datetime) -> datetime | None:
    """The first of these moments that is still to come."""
    return min((moment for moment in moments if moment is not None and moment > after), default=None)
