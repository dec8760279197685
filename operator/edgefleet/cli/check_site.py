"""What `edgefleet check --site` asks of the hub's API server about one site."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgefleet import __version__
from edgefleet.api.assignment import SiteAssignment
from edgefleet.api.meta import TRUST_BUNDLE, TRUST_BUNDLE_ENTRY, site_namespace
from edgefleet.api.report import LEASE_NAME, SITE_ANNOTATION, HealthReport, SiteReport, fleet_of_health
from edgefleet.api.site import EdgeSite
from edgefleet.cli.check import Probe
from edgefleet.cli.check_hub import find_missing, judge_rights, read_renewal
from edgefleet.cli.cluster import server_now
from edgefleet.core.preflight import Level, Line, judge_agents, judge_clock, judge_lease, judge_trust
from edgefleet.core.skew import judge_skew
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_SITES, LEASES, NAMESPACES, SITE_ASSIGNMENTS
from edgefleet.trust.bundle import read_expiry
from edgefleet.trust.errors import Rejected

SITE_RIGHTS = (
    {"group": "edgefleet.io", "resource": "siteassignments", "verb": "list"},
    {"group": "edgefleet.io", "resource": "siteassignments", "verb": "watch"},
    {"group": "edgefleet.io", "resource": "siteassignments", "subresource": "status", "verb": "patch"},
    {"group": "coordination.k8s.io", "resource": "leases", "verb": "patch"},
    {"resource": "configmaps", "verb": "list"},
    {"resource": "configmaps", "verb": "watch"},
)
"""What an agent does at the hub, all of it in its own namespace."""


class SiteProbes:
    """One look at one site, through the hub."""

    def __init__(self, api: Api, site: str) -> None:
        self._api = api
        self._site = site
        self._namespace = site_namespace(site)

    def probes(self) -> Mapping[str, Probe]:
        """By name, in the order of the lines; all may be asked at once."""
        return {
            "site": self._registered,
            "site rights": self._rights,
            "site trust": self._trust,
            "site agent": self._agent,
            "site orders": self._orders,
        }

    async def _registered(self) -> Sequence[Line]:
        try:
            site = EdgeSite.parse(await self._api.get(EDGE_SITES, self._site))
        except NotFound:
            return [
                Line("site", Level.FAIL, f"there is no EdgeSite {self._site}", "register it: `kubectl get edgesites` lists those there are")
            ]
        try:
            await self._api.get(NAMESPACES, self._namespace)
        except NotFound:
            return [Line("site", Level.FAIL, f"namespace {self._namespace} is not there", "a hub that runs makes it: see its log")]
        if site.spec.allowed_namespaces is None:
            remedy = "set spec.allowedNamespaces: a label selector over namespaces, {} for all"
            return [Line("site", Level.WARN, f"{self._site} is registered, and no fleet may use it", remedy)]
        region = site.spec.region or "no region: fleets with allowedRegions refuse it"
        return [Line("site", Level.OK, f"{self._site} is registered, {region}")]

    async def _rights(self) -> Sequence[Line]:
        user = f"edgefleet:site:{self._site}"
        rights = [{**right, "namespace": self._namespace} for right in SITE_RIGHTS]
        missing = await find_missing(self._api, user, ["edgefleet:sites", "system:authenticated"], rights)
        line = judge_rights("site rights", user, missing, len(rights))
        if line.level is Level.OK:
            return [line]
        return [
            Line(line.check, line.level, line.found, f"RoleBinding edgefleet-site in {self._namespace}: a hub that runs makes it again")
        ]

    async def _trust(self) -> Sequence[Line]:
        missing = f"the hub copies ConfigMap {TRUST_BUNDLE} there once it has one: see the line `trust bundle`"
        try:
            text = str((await self._api.get(CONFIG_MAPS, TRUST_BUNDLE, self._namespace)).get("data", {}).get(TRUST_BUNDLE_ENTRY, ""))
            ends = read_expiry(text.encode()) if text else None
        except NotFound:
            ends = None
        except Rejected as error:
            return [Line("site trust", Level.FAIL, error.message, missing)]
        return [judge_trust("site trust", ends, server_now(self._api), missing=missing)]

    async def _agent(self) -> Sequence[Line]:
        remedy = "at the site: is the agent running, and does it reach the hub? `edgefleet check --site-kubeconfig FILE --state DIR`"
        try:
            lease = await self._api.get(LEASES, LEASE_NAME, self._namespace)
        except NotFound:
            return [judge_lease("site agent", None, 0, server_now(self._api), who="the agent", remedy=remedy)]
        lines = [judge_lease("site agent", *read_renewal(lease), server_now(self._api), who="the agent", remedy=remedy)]
        version = EdgeSite.parse(await self._api.get(EDGE_SITES, self._site)).status.agent_version
        if version:
            said = judge_agents({judge_skew(version, __version__): 1}, __version__)
            lines.append(Line("site version", said.level, f"its agent says {version}: {said.found}", said.remedy))
        skews = [_read_skew(key, text) for key, text in (lease["metadata"].get("annotations") or {}).items()]
        known = [skew for skew in skews if skew is not None]
        if known:
            lines.append(judge_clock("site clock", max(known, key=abs), "the hub's (as the agent says)"))
        return [*lines, *judge_belief(lease)]

    async def _orders(self) -> Sequence[Line]:
        orders = [SiteAssignment.parse(body) for body in await self._api.list(SITE_ASSIGNMENTS, self._namespace)]
        return judge_orders("site orders", orders)


def judge_belief(lease: Mapping[str, Any]) -> Sequence[Line]:
    """What the agent says it does not believe: the trust bundle that the hub has for it, or its own clock."""
    try:
        report = SiteReport.model_validate_json((lease["metadata"].get("annotations") or {}).get(SITE_ANNOTATION, ""))
    except ValueError:
        return []
    lines = []
    if report.trust and report.trust.refused:
        remedy = "sign and hand out a bundle that follows from the one in force: docs/security.md, `edgefleet trust show`"
        held = f"it goes on with version {report.trust.version}" if report.trust.version else "it has no other"
        lines.append(Line("site belief", Level.FAIL, f"the agent refuses the trust bundle: {report.trust.refused}; {held}", remedy))
    if report.trust and report.trust.clock:
        lines.append(Line("site belief", Level.WARN, report.trust.clock, "set its clock; was the latest time wrong: docs/security.md"))
    return lines


def judge_orders(check: str, orders: Sequence[SiteAssignment]) -> Sequence[Line]:
    """What became of the orders of one site: a line for each that is not carried out."""
    lines = []
    for one in orders:
        status = one.status
        if status.sequence == one.spec.sequence and status.state in ("Active", "Withdrawn"):
            continue
        waits = status.sequence != one.spec.sequence or status.state == "Progressing"
        said = (
            "not answered yet" if status.sequence != one.spec.sequence else f"{status.state} {status.reason}: {status.message}".rstrip(": ")
        )
        level = Level.WARN if waits or status.state == "Blocked" else Level.FAIL
        remedy = "the message says what to do; `edgefleet site why SITE` says the rest"
        lines.append(Line(check, level, f"{one.spec.fleet}: sequence {one.spec.sequence} is {said}", remedy))
    return lines or [Line(check, Level.OK, f"{len(orders)} order(s), all carried out")]


def _read_skew(key: str, text: str) -> float | None:
    if fleet_of_health(key) is None:
        return None
    try:
        return float(HealthReport.model_validate_json(text).skew)
    except ValueError:
        return None
