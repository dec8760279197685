"""What the site's Envoy is told: a bootstrap that never changes, and two files that do. Pure.

One cluster per revision, so that Envoy counts per revision; one route per model, to exactly one revision. A client sees only
`/v2/models/<model>/...`; the server behind sees `/v2/models/<model>--<rev8>/...`, or a path of its own where the revision has a server to
itself. Everything else is 404 in JSON, so the server's repository API (load, unload) cannot be reached from outside. A model may be
routed to nobody for a while: that is refused with 503 and counted like a revision. When which file is written is left to gateway.py.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from edgefleet.core.known import SHORT_HASH

API = "type.googleapis.com/envoy"
ROUTE_CONFIG = "models"
ADMIN_SOCKET = "admin.sock"
FRONT_SOCKET = "front.sock"
TABLE_PATH = "/edgefleet/routes"
REVISION_HEADER = "x-edgefleet-revision"
METADATA = "edgefleet"
MAX_CONNECTIONS = 4096
REQUEST_TIMEOUT = "60s"
# MLServer (uvicorn) closes idle connections after 5 s; a request sent at that moment would be lost, so we let go first.
UPSTREAM_IDLE = "3s"
FLUSH_SECONDS = 1
"""How old the histograms may be that Envoy shows; counters are shown as they are."""
# Answers that Envoy makes because the server is gone or too slow; direct responses come through here too, hence the filter.
_JSON_FAILURES = {
    "filter": {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "edgefleet.local"}}}},
    "body_format_override": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}},
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host and port of a server that speaks plain HTTP."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Read `http://host:port`. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"not a model server's address: {url!r} (write http://HOST:PORT without a path)")
        return cls(parts.hostname, parts.port or 80)

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A revision of a model, by its full hash."""

    model: str
    revision: str

    @property
    def served_name(self) -> str:
        """The name under which the model server knows it: `<model>--<rev8>`."""
        return f"{self.model}--{self.revision[:SHORT_HASH]}"

    @property
    def is_nobody(self) -> bool:
        """Whether requests are refused, and counted."""
        return self.revision == NOBODY


NOBODY = "nobody"
"""In place of a revision's hash: the old one has been stopped, and the new one does not serve yet."""

Table = Mapping[str, Target]
"""Model name to the revision that serves it."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a revision answers that has a server to itself: `path` there stands for `/v2/models/<model>` of the gateway."""

    endpoint: Endpoint
    path: str


Upstreams = Mapping[Target, Upstream]
"""For the revisions that are not at the site's one model server."""


def gateway_folder(state: Path) -> Path:
    """Where the gateway of a state folder keeps its files."""
    return state / "gateway"


def plan_bootstrap(
    *, host: str, port: int, clusters_path: str, routes_path: str, node: str = "edgefleet", front: bool = False
) -> dict[str, Any]:
    """The file that Envoy is started with. `node` names this Envoy; with `front` it answers at a Unix socket too, as clients see it."""
    listeners = [_listener({"socket_address": {"address": host, "port_value": port}}, routes_path)]
    if front:
        listeners.append({**_listener({"pipe": {"path": FRONT_SOCKET, "mode": 0o600}}, routes_path), "name": "front"})
    return {
        "node": {"id": node, "cluster": "edgefleet"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}}},
        "dynamic_resources": {"cds_config": {"path_config_source": {"path": clusters_path}, "resource_api_version": "V3"}},
        "static_resources": {"listeners": listeners},
        "stats_flush_interval": f"{FLUSH_SECONDS}s",
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{API}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _listener(address: dict[str, Any], routes_path: str) -> dict[str, Any]:
    connections = {
        "@type": f"{API}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "rds": {
            "route_config_name": ROUTE_CONFIG,
            "config_source": {"path_config_source": {"path": routes_path}, "resource_api_version": "V3"},
        },
        # A path such as /v2/models/x/../../repository must not pass as one of model x.
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "local_reply_config": {"mappers": [_JSON_FAILURES]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{API}.extensions.filters.http.router.v3.Router"}}
        ],
    }
    return {
        "name": "gateway",
        "address": address,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]}],
    }


def plan_clusters(targets: Iterable[Target], server: Endpoint, upstreams: Upstreams = MappingProxyType({})) -> dict[str, Any]:
    """The cluster file: one cluster for each revision that may be routed to. `server` is for those that are not in `upstreams`."""
    return _discovery([_cluster(target, server, upstreams.get(target)) for target in sorted(set(targets))])


def _cluster(target: Target, server: Endpoint, upstream: Upstream | None) -> dict[str, Any]:
    if upstream is not None:
        server = upstream.endpoint
    address = {"socket_address": {"address": server.host, "port_value": server.port}}
    found = {"model": target.model, "revision": target.revision, **asdict(upstream)} if upstream else None
    return {
        "@type": f"{API}.config.cluster.v3.Cluster",
        "name": target.served_name,
        "type": "STATIC" if _is_address(server.host) or target.is_nobody else "STRICT_DNS",
        "connect_timeout": "1s",
        # For an agent that starts later and finds this file: see read_upstreams.
        **({"metadata": {"filter_metadata": {METADATA: found}}} if found else {}),
        "load_assignment": {
            "cluster_name": target.served_name,
            "endpoints": [] if target.is_nobody else [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{API}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": UPSTREAM_IDLE},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def plan_routes(table: Table, upstreams: Upstreams = MappingProxyType({})) -> dict[str, Any]:
    """The route file. It also answers TABLE_PATH, which tells a client, and the agent after a switch, what is routed now."""
    version = table_version(table)
    models = {target.model: target.revision for target in sorted(table.values())}
    shown = json.dumps({"version": version, "models": models}, sort_keys=True)
    routes = [
        {"match": {"path": TABLE_PATH}, "direct_response": {"status": 200, "body": {"inline_string": shown}}},
        *(_route(target, upstreams.get(target)) for target in sorted(table.values())),
        {
            "match": {"prefix": "/"},
            "direct_response": {"status": 404, "body": {"inline_string": json.dumps({"error": "no such model at this site"})}},
        },
    ]
    json_answer = {"header": {"key": "content-type", "value": "application/json"}, "append_action": "ADD_IF_ABSENT"}
    host = {"name": "models", "domains": ["*"], "routes": routes, "response_headers_to_add": [json_answer]}
    return _discovery(
        [
            {
                "@type": f"{API}.config.route.v3.RouteConfiguration",
                "name": ROUTE_CONFIG,
                "virtual_hosts": [host],
                # A cluster that is not known yet must not make Envoy refuse the whole table.
                "validate_clusters": False,
            }
        ]
    )


def _route(target: Target, upstream: Upstream | None) -> dict[str, Any]:
    shown = f"/v2/models/{target.model}"
    path = upstream.path.rstrip("/") if upstream else f"/v2/models/{target.served_name}"
    # A prefix cannot be rewritten to nothing.
    at_root = {"regex_rewrite": {"pattern": {"regex": f"^{shown}/?"}, "substitution": "/"}}
    return {
        "match": {"path_separated_prefix": shown},
        "route": {
            "cluster": target.served_name,
            **({"prefix_rewrite": path} if path else at_root),
            "timeout": REQUEST_TIMEOUT,
            # Only what certainly never reached the server is sent again.
            "retry_policy": {"retry_on": "connect-failure,reset-before-request", "num_retries": 1},
        },
        "response_headers_to_add": [
            {"header": {"key": REVISION_HEADER, "value": target.revision}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ],
    }


def table_version(table: Table) -> str:
    """A short name of the table's content."""
    text = json.dumps(sorted((target.model, target.revision) for target in table.values()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _discovery(resources: list[dict[str, Any]]) -> dict[str, Any]:
    version = hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]
    return {"version_info": version, "resources": resources}


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def read_table(routes: Mapping[str, Any]) -> dict[str, Target]:
    """The table that a route file was planned from. Raises ValueError when it is not one of ours."""
    try:
        shown = routes["resources"][0]["virtual_hosts"][0]["routes"][0]["direct_response"]["body"]["inline_string"]
        return {model: Target(model, revision) for model, revision in json.loads(shown)["models"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("not a route file of ours") from error


def read_upstreams(clusters: Mapping[str, Any]) -> dict[Target, Upstream]:
    """The upstreams that a cluster file was planned with. Raises ValueError when it is not one of ours."""
    try:
        metadata = [one["metadata"]["filter_metadata"][METADATA] for one in clusters["resources"] if "metadata" in one]
        return {Target(one["model"], one["revision"]): Upstream(Endpoint(**one["endpoint"]), one["path"]) for one in metadata}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("not a cluster file of ours") from error
