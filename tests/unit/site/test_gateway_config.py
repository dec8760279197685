"""What Envoy is told. That Envoy takes it is shown in tests/integration/test_gateway.py."""

import json

import pytest

from edgefleet.site.gateway_config import (
    FLUSH_SECONDS,
    NOBODY,
    Endpoint,
    Target,
    Upstream,
    plan_bootstrap,
    plan_clusters,
    plan_routes,
    read_table,
    read_upstreams,
    table_version,
)

A, B = Target("weld", "a" * 64), Target("paint", "b" * 64)
SERVER = Endpoint("127.0.0.1", 8080)


def test_one_cluster_for_each_revision_whatever_the_order() -> None:
    found = plan_clusters([B, A, A], SERVER)
    assert [resource["name"] for resource in found["resources"]] == ["paint--bbbbbbbb", "weld--aaaaaaaa"]
    assert found == plan_clusters([A, B], SERVER)
    assert found["version_info"] != plan_clusters([A], SERVER)["version_info"]


def test_a_server_by_name_is_resolved_and_one_by_address_is_not() -> None:
    kinds = {host: plan_clusters([A], Endpoint(host, 80))["resources"][0]["type"] for host in ("127.0.0.1", "::1", "mlserver.local")}
    assert kinds == {"127.0.0.1": "STATIC", "::1": "STATIC", "mlserver.local": "STRICT_DNS"}


def test_each_model_goes_to_exactly_one_revision_and_all_else_nowhere() -> None:
    routes = plan_routes({"weld": A, "paint": B})["resources"][0]["virtual_hosts"][0]["routes"]
    sent = {route["match"].get("path_separated_prefix"): route["route"] for route in routes if "route" in route}
    assert {path: route["cluster"] for path, route in sent.items()} == {
        "/v2/models/paint": "paint--bbbbbbbb",
        "/v2/models/weld": "weld--aaaaaaaa",
    }
    assert sent["/v2/models/weld"]["prefix_rewrite"] == "/v2/models/weld--aaaaaaaa"
    assert routes[-1]["match"] == {"prefix": "/"}
    assert routes[-1]["direct_response"]["status"] == 404
    assert json.loads(routes[-1]["direct_response"]["body"]["inline_string"])["error"]


def test_a_revision_with_a_server_of_its_own_is_sent_there_and_found_again() -> None:
    pod = {A: Upstream(Endpoint("192.0.2.7", 9000), "/v2/models/weld"), B: Upstream(Endpoint("192.0.2.8", 8000), "/")}
    clusters = plan_clusters([A, B], SERVER, pod)
    address = clusters["resources"][1]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert address == {"address": "192.0.2.7", "port_value": 9000}
    routes = plan_routes({"weld": A, "paint": B}, pod)["resources"][0]["virtual_hosts"][0]["routes"]
    paint, weld = routes[1]["route"], routes[2]["route"]
    assert weld["prefix_rewrite"] == "/v2/models/weld"
    assert paint["regex_rewrite"] == {"pattern": {"regex": "^/v2/models/paint/?"}, "substitution": "/"}
    assert read_upstreams(json.loads(json.dumps(clusters))) == pod
    assert read_upstreams(plan_clusters([A, B], SERVER)) == {}


def test_a_model_that_nobody_serves_has_a_cluster_without_endpoints() -> None:
    nobody = Target("weld", NOBODY)
    (cluster,) = plan_clusters([nobody], Endpoint("mlserver.local", 80))["resources"]
    assert (cluster["name"], cluster["type"], cluster["load_assignment"]["endpoints"]) == ("weld--nobody", "STATIC", [])


def test_the_table_can_be_read_back_from_the_routes() -> None:
    table = {"weld": A, "paint": B}
    routes = plan_routes(table)
    assert read_table(routes) == table
    assert read_table(plan_routes({})) == {}
    shown = json.loads(routes["resources"][0]["virtual_hosts"][0]["routes"][0]["direct_response"]["body"]["inline_string"])
    assert shown["version"] == table_version(table) != table_version({"weld": A})


@pytest.mark.parametrize("routes", [{}, {"resources": []}, {"resources": [{"virtual_hosts": [{"routes": [{}]}]}]}, {"resources": 1}])
def test_a_foreign_route_file_is_refused(routes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a route file of ours"):
        read_table(routes)


def test_the_bootstrap_bounds_connections_and_hides_its_admin() -> None:
    found = plan_bootstrap(host="127.0.0.1", port=8000, clusters_path="/c", routes_path="/r")
    assert found["admin"]["address"] == {"pipe": {"path": "admin.sock", "mode": 0o600}}
    (monitor,) = found["overload_manager"]["resource_monitors"]
    assert monitor["typed_config"]["max_active_downstream_connections"] > 0
    assert found["stats_flush_interval"] == f"{FLUSH_SECONDS}s"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:8080", Endpoint("127.0.0.1", 8080)),
        ("http://mlserver.local/", Endpoint("mlserver.local", 80)),
        ("http://[::1]:9000", Endpoint("::1", 9000)),
    ],
)
def test_server_addresses(url: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(url) == endpoint
    assert Endpoint.parse(endpoint.url) == endpoint


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "https://x:1", "http://", "http://x/v2", "http://x?y", "http://u:p@x", "http://x:99999"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not a model server's address|[Pp]ort"):
        Endpoint.parse(url)
