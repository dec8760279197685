"""Registries as companies have them: logins at hub and site, private authorities, mirrors, and a proxy from the field only."""

import base64
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.site import Proxy, RegistryAccess
from edgefleet.kube.client import Api
from edgefleet.kube.resources import EDGE_MODELS, SECRETS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import Unreachable
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.transport import Patience
from edgefleet.oci.transport import Proxy as ClientProxy
from edgefleet.trust.orders import open_order, sign_order
from tests.integration.site_rig import ROLES, Rig, open_rig
from tests.integration.world import World
from tests.lab.cluster import Lab
from tests.lab.connect_proxy import ConnectProxy
from tests.lab.pki import Authority
from tests.lab.registry import Registry
from tests.lab.registry_tokens import TokenAuth
from tests.lab.server import ModelServer

ADDRESS = "192.0.2.10"
"""Documentation only (RFC 5737): nothing answers there, the proxy knows where it really is."""
HOST = f"{ADDRESS}:5443"
_names = itertools.count()


@dataclass
class Private:
    """A registry with TLS under a private authority and with logins, holding what `plain` holds; only a proxy leads to it."""

    registry: Registry
    authority: str
    auth: TokenAuth

    def hold(self, plain: Registry) -> None:
        """Hold what another registry holds."""
        self.registry.content = plain.content


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Private]:
    authority = Authority.make(tmp_path / "registry-ca", "registry-ca")
    serving = authority.issue_server("registry", [ADDRESS])
    auth = TokenAuth(password="hunter2-once")
    with Registry(auth=auth, tls=(serving.cert, serving.key)) as registry:
        yield Private(registry, authority.pair.cert.read_text(), auth)


@pytest.fixture
def proxy(private: Private) -> Iterator[ConnectProxy]:
    with ConnectProxy({HOST: private.registry.host}) as running:
        yield running


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    """The proxy that the environment names; processes started meanwhile inherit it. Nobody may ask it."""
    with ConnectProxy() as running:
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, running.url)
        # The API servers of the lab stay within reach.
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1,localhost")
        yield running
        assert running.asked == []


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, kinds, registry, model_server, f"shop-{next(_names)}") as running:
        role = await running.local.get(ROLES, "edgefleet-agent", running.namespace)
        rules = [*role["rules"], {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
        body = {"metadata": {"name": "edgefleet-agent", "namespace": running.namespace}, "rules": rules}
        await running.local.apply(ROLES, body, manager="test")
        yield running


async def put_secret(api: Api, namespace: str, name: str, entries: dict[str, str]) -> None:
    data = {entry: base64.b64encode(text.encode()).decode() for entry, text in entries.items()}
    await api.apply(SECRETS, {"metadata": {"name": name, "namespace": namespace}, "data": data}, manager="person")


def login(host: str, password: str, username: str = "user") -> dict[str, str]:
    auth = base64.b64encode(f"{username}:{password}".encode()).decode()
    return {".dockerconfigjson": json.dumps({"auths": {host: {"auth": auth}}})}


# The client


def test_a_proxy_that_was_named_is_asked_and_the_environments_is_not(private: Private, proxy: ConnectProxy, trap: ConnectProxy) -> None:
    digest = private.registry.content.put_manifest("vision/weld", b"{}", "application/vnd.oci.image.index.v1+json", "1")
    private.registry.auth = None
    reference = Reference(Repository.parse(f"{HOST}/vision/weld"), tag="1")
    patience = Patience(connect=2, read=2, attempts=1)
    with RegistryClient(ca=private.authority, proxy=ClientProxy(proxy.url), patience=patience) as client:
        assert client.resolve(reference) == digest
    assert proxy.asked == [HOST]
    with RegistryClient(proxy=ClientProxy(proxy.url), patience=patience) as client, pytest.raises(Unreachable, match="TLS failed"):
        client.resolve(reference)
    # A host to be reached directly is not asked of the proxy; here nothing answers there.
    proxy.asked.clear()
    short = Patience(connect=0.2, read=0.2, attempts=1)
    direct = ClientProxy(proxy.url, direct=(ADDRESS,))
    with RegistryClient(proxy=direct, patience=short) as client, pytest.raises(Unreachable):
        client.resolve(reference)
    assert proxy.asked == []


def test_a_proxy_that_refuses_is_named(private: Private) -> None:
    with (
        ConnectProxy() as closed,
        RegistryClient(proxy=ClientProxy(closed.url), patience=Patience(connect=2, attempts=1)) as client,
        pytest.raises(Unreachable, match="proxy http://127.0.0.1") as refused,
    ):
        client.resolve(Reference(Repository.parse(f"{HOST}/vision/weld"), tag="1"))
    assert "403" in refused.value.message


# The hub


async def test_the_hub_uses_a_models_secret_and_heals_when_it_is_replaced(world: World) -> None:
    world.push("1")
    auth = TokenAuth(password="hunter2-first")
    world.registry.auth = auth
    await put_secret(world.api, world.team, "pull", login(world.registry.host, "hunter2-first"))
    source = {"repository": str(world.repository), "tag": "1", "interval": "1s", "secretRef": "pull"}
    await world.name_release("1", source=source)
    await world.until_condition(EDGE_MODELS, "weld", "SourceVerified", "Verified")

    auth.password = "hunter2-second"
    auth.expire_all()
    said = await world.until_condition(EDGE_MODELS, "weld", "FetchFailed", "AuthenticationFailed")
    assert f"Secret {world.team}/pull (spec.source.secretRef)" in said["message"]
    body = await world.api.get(EDGE_MODELS, "weld", world.team)
    assert "hunter2" not in json.dumps(body["status"]) + world.log()

    await put_secret(world.api, world.team, "pull", login(world.registry.host, "hunter2-second"))

    async def healed() -> bool:
        conditions = (await world.api.get(EDGE_MODELS, "weld", world.team))["status"]["conditions"]
        return all(condition["type"] != "FetchFailed" for condition in conditions)

    await world.until("the new login is used without a restart", healed, limit=45)
    assert "hunter2" not in world.log()


async def test_the_hub_says_what_is_wrong_with_a_secret(world: World) -> None:
    world.push("1")
    source = {"repository": str(world.repository), "tag": "1", "interval": "1s", "secretRef": "pull"}
    await world.name_release("1", source=source)
    said = await world.until_condition(EDGE_MODELS, "weld", "FetchFailed", "SecretNotFound")
    assert f"{world.team}/pull" in said["message"]
    await put_secret(world.api, world.team, "pull", login("elsewhere.test", "x"))
    source["interval"] = "2s"
    await world.name_release("1", source=source)
    said = await world.until_condition(EDGE_MODELS, "weld", "FetchFailed", "SecretInvalid")
    assert "has no login for" in said["message"]
    assert "elsewhere.test" in said["message"]


async def test_the_hub_reaches_a_private_registry_through_its_own_proxy(
    world: World, private: Private, proxy: ConnectProxy, trap: ConnectProxy
) -> None:
    world.push("1")
    private.hold(world.registry)
    world.kill_hub()
    world.start_hub("--registry-proxy", proxy.url)
    await put_secret(world.api, world.team, "private", {**login(HOST, "hunter2-once"), "ca.crt": private.authority})
    source = {"repository": f"{HOST}/{world.repository.path}", "tag": "1", "interval": "1s", "secretRef": "private", "caRef": "private"}
    await world.name_release("1", source=source)
    await world.until_condition(EDGE_MODELS, "weld", "SourceVerified", "Verified")
    assert set(proxy.asked) == {HOST}


# The site


def test_an_order_without_registries_is_what_older_agents_know(rig: Rig) -> None:
    plain = rig.order(None).to_json_dict()
    assert "registries" not in plain
    assert "proxy" not in plain
    ways = rig.order(None, registries=(RegistryAccess(match=HOST, mirror="mirror.test/a"),), proxy=Proxy(https="http://10.0.0.1:3128"))
    again = open_order(sign_order(ways, rig.hub_key), [rig.hub_key.public])
    assert again == ways


async def test_the_site_uses_its_own_secret_authority_and_proxy(
    rig: Rig, private: Private, proxy: ConnectProxy, trap: ConnectProxy
) -> None:
    revision = rig.push("1.0", 1)
    private.hold(rig.registry)
    moved = revision.model_copy(update={"repository": f"{HOST}/{rig.model}"})
    ways: dict[str, Any] = {
        "registries": (RegistryAccess(match=HOST, secret_ref="private", ca_ref="private"),),
        "proxy": Proxy(https=proxy.url),
    }
    await put_secret(rig.local, rig.namespace, "private", {**login(HOST, "hunter2-once"), "ca.crt": private.authority})
    rig.start_agent()
    await rig.assign(moved, **ways)
    await rig.wait_for("Active")
    assert set(proxy.asked) == {HOST}
    assert "hunter2" not in rig.log()


async def test_a_refused_login_blocks_the_site_until_its_secret_is_replaced(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    rig.registry.auth = TokenAuth(password="hunter2-new")
    host = rig.registry.host
    ways = (RegistryAccess(match=host, secret_ref="pull"),)
    rig.start_agent()
    await rig.assign(revision, registries=ways)
    status = await rig.wait_for("Blocked", "SecretNotFound")
    assert (status.fault, f"Secret {rig.namespace}/pull" in status.message) == ("Site", True)
    await put_secret(rig.local, rig.namespace, "pull", login(host, "hunter2-old"))
    status = await rig.wait_for("Blocked", "AuthenticationFailed")
    assert f"Put a good login into Secret {rig.namespace}/pull" in status.message
    assert "hunter2" not in status.message + rig.log()
    await put_secret(rig.local, rig.namespace, "pull", login(host, "hunter2-new"))
    await rig.wait_for("Active")


async def test_a_mirror_is_asked_in_the_registrys_place_with_its_own_login(rig: Rig) -> None:
    revision = rig.push("1.0", 1)
    with Registry(auth=TokenAuth(username="mirror", password="hunter2-mirror")) as mirror:
        for digest, manifest in rig.registry.content.manifests[rig.model].items():
            assert mirror.content.put_manifest(f"cache/{rig.model}", manifest.data, manifest.media_type) == digest
        for digest in rig.registry.content.linked[rig.model]:
            mirror.content.put_blob(f"cache/{rig.model}", rig.registry.blobs[digest])
        rig.registry.requests.clear()
        weights = rig.weights_digest(revision)
        rig.registry.requests.clear()
        mirror.corrupt_blob(weights)
        ways = (RegistryAccess(match=rig.registry.host, mirror=f"{mirror.host}/cache", secret_ref="mirror"),)
        await put_secret(rig.local, rig.namespace, "mirror", login(mirror.host, "hunter2-mirror", "mirror"))
        rig.start_agent()
        await rig.assign(revision, registries=ways)
        await rig.wait_for("Blocked", "DigestMismatch")
        mirror.restore()
        await rig.wait_for("Active")
        assert rig.registry.requests == []
