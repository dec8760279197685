"""What `edgefleet check` concludes from what it found: one line each, with what to do. How it is found is left to the command."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from edgefleet.api.meta import format_time
from edgefleet.core.skew import OLDEST_BEHIND, Skew

OLDEST_KUBERNETES = (1, 34)
CLOCK_WARN_SECONDS = 5.0
CLOCK_FAIL_SECONDS = 60.0
TRUST_WARN = timedelta(days=14)
"""The same as the alert EdgefleetTrustExpiring: root keys lie in safes, and their holders travel."""
STORE_WARN_BYTES = 1 << 30


class Level(StrEnum):
    """How one line ends."""

    OK = "OK"
    WARN = "WARN"
    """Works now, or could not be known."""
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at. `remedy` is empty only where the level is OK."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def judge_server(check: str, version: str) -> Line:
    """`version` as /version says it in gitVersion."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    if found is None:
        return Line(check, Level.WARN, f"its version {version[:40]!r} cannot be read", f"Kubernetes {oldest} or newer is needed")
    if (int(found[1]), int(found[2])) < OLDEST_KUBERNETES:
        return Line(check, Level.FAIL, f"Kubernetes {version}", f"upgrade it to {oldest} or newer: older ones lack what the policies use")
    return Line(check, Level.OK, f"Kubernetes {version}")


def judge_clock(check: str, skew: float, whose: str) -> Line:
    """`skew` in seconds: our clock minus `whose`."""
    said = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {whose}" if abs(skew) >= 1 else f"within 1 s of {whose}"
    if abs(skew) < CLOCK_WARN_SECONDS:
        return Line(check, Level.OK, said)
    level = Level.FAIL if abs(skew) >= CLOCK_FAIL_SECONDS else Level.WARN
    return Line(check, level, said, "set both clocks by NTP: certificates, orders and the trust bundle begin and end by them")


def judge_kind(name: str, served: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Line | None:
    """A CustomResourceDefinition against the one of this version; None if it is as it should be. A newer one may know more."""
    remedy = "apply the kinds of this version: `edgefleet crds | kubectl apply --server-side -f -`"
    if served is None:
        return Line("kinds", Level.FAIL, f"{name} is not there", remedy)
    state = {one["type"]: one["status"] for one in served.get("status", {}).get("conditions", [])}
    if state.get("Established") != "True" or "deletionTimestamp" in served.get("metadata", {}):
        return Line("kinds", Level.FAIL, f"{name} is not served", f"`kubectl describe crd {name}` says why")
    difference = find_difference(served.get("spec"), wanted["spec"], "spec")
    if difference:
        return Line("kinds", Level.FAIL, f"{name} is of another version: {difference}", remedy)
    return None


def judge_policy(name: str, served: Mapping[str, Any] | None, wanted: Any) -> Line | None:
    """The spec of an admission policy, or of its binding, against the chart's; None if it is as it should be."""
    remedy = "install the chart of this version again; then find out who changed it: sites and teams were less held than you thought"
    if served is None:
        return Line("policies", Level.FAIL, f"{name} is not there", remedy)
    # Both ways: what was added to a policy, say a condition under which it does not hold, is as bad as what was taken away.
    difference = find_difference(served, wanted, "spec") or find_difference(wanted, without_defaults(served), "spec")
    return Line("policies", Level.FAIL, f"{name} was changed: {difference}", remedy) if difference else None


POLICY_DEFAULTS: Mapping[str, Any] = {"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "scope": "*"}
"""What an API server adds to an admission policy by itself."""


def without_defaults(value: Any) -> Any:
    """An admission policy without what an API server added."""
    if isinstance(value, Mapping):
        return {key: without_defaults(one) for key, one in value.items() if not (key in POLICY_DEFAULTS and one == POLICY_DEFAULTS[key])}
    return [without_defaults(one) for one in value] if isinstance(value, list) else value


def find_difference(found: Any, wanted: Any, path: str) -> str:
    """Where `found` first lacks, or has otherwise, what `wanted` says; empty if nowhere. What is only in `found` is no difference."""
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping):
            return f"{path} is missing"
        for key, value in wanted.items():
            if key not in found and value in ({}, None, []):
                continue
            if inner := find_difference(found.get(key), value, f"{path}.{key}"):
                return inner
        return ""
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return f"{path} has {len(found) if isinstance(found, list) else 'no'} entries, not {len(wanted)}"
        parts = (find_difference(one, two, f"{path}[{number}]") for number, (one, two) in enumerate(zip(found, wanted, strict=True)))
        return next((part for part in parts if part), "")
    if found == wanted:
        return ""
    return f"{path} is missing" if found is None else f"{path} is {str(found)[:60]!r}, not {str(wanted)[:60]!r}"


def judge_trust(check: str, ends: datetime | None, now: datetime, *, missing: str) -> Line:
    """A trust bundle by its end; `missing` is what to do where there is none."""
    if ends is None:
        return Line(check, Level.FAIL, "there is no trust bundle: sites activate nothing", missing)
    remedy = "the root keys must sign a new one: `edgefleet trust renew`, see docs/runbooks/trust-expiring.md"
    if ends <= now:
        return Line(check, Level.FAIL, f"it ended {format_time(ends)}: sites activate nothing", remedy)
    level = Level.WARN if ends - now < TRUST_WARN else Level.OK
    return Line(check, level, f"good until {format_time(ends)}", remedy if level is not Level.OK else "")


def judge_lease(check: str, renewed: datetime | None, seconds: int, now: datetime, *, who: str, remedy: str) -> Line:
    """A Lease by its age against its own duration."""
    if renewed is None:
        return Line(check, Level.FAIL, f"{who} has never renewed its Lease", remedy)
    age = (now - renewed).total_seconds()
    if age > seconds:
        return Line(check, Level.FAIL, f"{who} has not renewed its Lease since {format_time(renewed)}", remedy)
    return Line(check, Level.OK, f"{who} renewed its Lease {max(0, age):.0f} s ago")


def judge_agents(counts: Mapping[Skew, int], version: str) -> Line:
    """How many agents stand how to this version."""
    total = sum(counts.values())
    bad = {skew: counts[skew] for skew in (Skew.TOO_OLD, Skew.NEWER, Skew.UNREADABLE) if counts.get(skew)}
    if not bad:
        behind = counts.get(Skew.BEHIND, 0)
        older = f", {behind} of them of an older minor version" if behind else ""
        return Line("agents", Level.OK, f"{total} agent(s) that {version} speaks with{older}")
    said = ", ".join(f"{count} {skew.replace('_', ' ')}" for skew, count in bad.items())
    remedy = f"hub first, then agents, at most {OLDEST_BEHIND} minor versions behind: see docs/runbooks/agent-skew.md"
    return Line("agents", Level.WARN, f"{sum(bad.values())} of {total} agent(s) do not fit version {version}: {said}", remedy)


def judge_sites(silent: Mapping[str, int], total: int) -> Line:
    """`silent` is the number of sites that cannot be reached, by region."""
    if not silent:
        return Line("sites", Level.OK, f"{total} site(s), none silent")
    said = ", ".join(f"{region} {count}" for region, count in sorted(silent.items()))
    remedy = "they serve what they have; `edgefleet check --site SITE` for one, and docs/runbooks/sites-unreachable.md"
    return Line("sites", Level.WARN, f"{sum(silent.values())} of {total} site(s) cannot be reached, by region: {said}", remedy)


def judge_store(used: int, free: int) -> Line:
    """The model store of a site: bytes that it holds, and that its disk has left."""
    said = f"{used / 2**20:.1f} MiB of models, {free / 2**30:.1f} GiB left on the disk"
    if free >= STORE_WARN_BYTES:
        return Line("store", Level.OK, said)
    return Line("store", Level.WARN, said, "free some of the disk: see docs/runbooks/store-full.md; never delete in the store by hand")
