"""How an agent's version stands to the hub's: a hub speaks with agents of its own minor version and of the two before."""

import re
from enum import StrEnum

OLDEST_BEHIND = 2
"""Minor versions that an agent may be behind its hub."""


class Skew(StrEnum):
    """How one version stands to another."""

    SAME = "same"
    BEHIND = "behind"
    """Older, and still understood."""
    TOO_OLD = "too_old"
    NEWER = "newer"
    """The hub must be upgraded first: it does not know what such an agent may say."""
    UNREADABLE = "unreadable"


def judge_skew(agent: str, hub: str) -> Skew:
    """Both as `MAJOR.MINOR[...]`. Patch versions and suffixes play no part; another major version is never understood."""
    theirs, ours = _read(agent), _read(hub)
    if theirs is None or ours is None:
        return Skew.UNREADABLE
    if theirs == ours:
        return Skew.SAME
    if theirs > ours:
        return Skew.NEWER
    return Skew.BEHIND if theirs[0] == ours[0] and ours[1] - theirs[1] <= OLDEST_BEHIND else Skew.TOO_OLD


def _read(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?([0-9]{1,6})\.([0-9]{1,6})(?![0-9])", version)
    return (int(found[1]), int(found[2])) if found else None
