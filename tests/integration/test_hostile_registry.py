"""A site before a registry that lies in every way we know: nothing wrong gets into the store, and each refusal has a name.

The order, the trust bundle, the store and HTTP are real; the registry is the lab's, with its answers spoilt.
"""

import base64
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.assignment import Order
from edgefleet.api.model import EdgeModel
from edgefleet.hub.models import Models
from edgefleet.kube.resources import SECRETS, Resource
from edgefleet.oci.client import RegistryClient, digest_of
from edgefleet.oci.errors import DigestMismatch
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.transport import Patience
from edgefleet.trust.bundle import open_bundle
from edgefleet.trust.release import sign_digest
from tests.integration.hostile_answers import SPOILS, Hostile, Plan, draw_plan
from tests.integration.hostile_releases import KEY, MODEL, NOW, OTHER, RELEASES, STRANGER, attach, list_referrers, put_release, write_trust
from tests.integration.hostile_site import HURRY, access_to, bring
from tests.lab.registry import Fault, Registry, Request
from tests.lab.registry_tokens import TokenAuth

MIXES, LANES = 1000, 6
MAX_GROWTH = 150 << 20
LOGIN = (TokenAuth().username, TokenAuth().password)


@dataclass
class Scene:
    """A registry that wants a login, another host that it may send clients to, and an order for each of RELEASES."""

    registry: Registry
    elsewhere: Registry
    root: Path
    bundle: Path
    orders: dict[str, Order] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """What the other host was told of logins."""

    def bring(self, name: str, folder: Path, plan: Plan | None = None, silence: float = 5) -> dict[str, Any]:
        """Have a site carry out the order for a release, against the registry that is spoilt so; its answer."""
        trust = open_bundle(self.bundle.read_bytes(), pinned_root=self.root.read_bytes(), floor_version=1, now=NOW)
        self.registry.fault = Hostile(self.elsewhere.url, plan or [])
        try:
            return bring(self.orders[name], trust, access_to({self.registry.host: LOGIN}, silence), folder, NOW)
        finally:
            self.registry.fault = None

    def listen(self, request: Request) -> Fault | None:
        """The other host asks for the login, and takes it where it can get it."""
        if "authorization" in request.headers:
            self.told.append(request.headers["authorization"])
        if request.path.endswith("?challenge"):
            return Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{self.elsewhere.url}/token",service="elsewhere"'})
        return Fault(status=200, body=b'{"token":"stolen"}') if request.path.startswith("/token") else None


@contextmanager
def open_scene(folder: Path) -> Iterator[Scene]:
    with Registry(auth=TokenAuth()) as registry, Registry() as elsewhere:
        scene = Scene(registry, elsewhere, *write_trust(folder))
        scene.orders = {name: put_release(registry, name) for name in RELEASES}
        elsewhere.content, elsewhere.fault = registry.content, scene.listen
        yield scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("trust")) as opened:
        yield opened


def look_into(folder: Path) -> list[str]:
    """Which releases a store holds complete. Fails where a file at its final name is not what the name says, or one of them is missing."""
    blobs = {path.name for path in (folder / "blobs").iterdir()}
    for name in blobs:
        if not name.endswith((".part", ".new")):
            assert hashlib.sha256((folder / "blobs" / name).read_bytes()).hexdigest() == name
    records = [json.loads(path.read_bytes()) for path in (folder / "revisions").glob("*.json")]
    for record in records:
        needed = [
            *record["files"],
            *record["bundles"],
            record["index"],
            record["manifest"],
            record["goldenManifest"],
            record["goldenLines"],
        ]
        assert {blob["digest"].removeprefix("sha256:") for blob in needed} <= blobs
    return [record["revision"]["repository"].rpartition("/")[2] for record in records]


@pytest.mark.parametrize("name", RELEASES)
def test_what_should_not_be_released_is_refused_by_name(name: str, scene: Scene, tmp_path: Path) -> None:
    answer = scene.bring(name, tmp_path)
    assert (answer["reason"], answer["named"]) == (RELEASES[name].reason, True), answer
    assert look_into(tmp_path) == (["good"] if name == "good" else [])


@pytest.mark.parametrize("name", SPOILS)
def test_a_spoilt_answer_is_refused_by_name_or_got_round(name: str, scene: Scene, tmp_path: Path) -> None:
    part, reason, _ = SPOILS[name]
    answer = scene.bring("good", tmp_path, [(name, part, "always")], silence=HURRY if reason == "RegistryStalled" else 5)
    assert scene.told == []
    assert (answer["reason"], answer["named"]) == (reason, True), answer
    assert look_into(tmp_path) == ([] if reason else ["good"])


def test_a_tag_that_moves_between_two_reads_moves_nothing(registry: Registry) -> None:
    orders = {name: put_release(registry, name) for name in ("good", "index in an index")}
    (good, path), (other, elsewhere) = ((one.revision.digest, one.revision.repository) for one in orders.values() if one.revision)
    repository = Repository.parse(path)
    content = registry.content
    content.tags[repository.path]["v1"] = good
    with RegistryClient(patience=Patience(attempts=1)) as client:
        digest = client.resolve(Reference(repository, tag="v1"))
        moved = content.find_manifest(Repository.parse(elsewhere).path, other)
        content.put_manifest(repository.path, moved.data, moved.media_type, tag="v1")
        assert client.resolve(Reference(repository, tag="v1")) == other
        assert digest == good
        assert client.fetch_manifest(repository, digest) == content.find_manifest(repository.path, good).data
        # The registry moves what the digest names as well.
        content.swap_blob(good, moved.data)
        with pytest.raises(DigestMismatch, match=other):
            client.fetch_manifest(repository, digest)


def test_a_refusal_says_why_each_candidate_failed(registry: Registry, tmp_path: Path) -> None:
    registry.referrers = False
    root, bundle = write_trust(tmp_path)
    trust = open_bundle(bundle.read_bytes(), pinned_root=root.read_bytes(), floor_version=1, now=NOW)
    order = put_release(registry, "unsigned")
    assert order.revision is not None
    path, digest = Repository.parse(order.revision.repository).path, order.revision.digest
    bundles = [b"large" * 250_000, b"spoilt", b"no bundle", sign_digest(STRANGER, digest), sign_digest(KEY, OTHER)]
    moved, gone = attach(registry, path, OTHER, [b"any"]), {"mediaType": "any", "digest": "sha256:" + "5" * 64, "size": 1}
    listed = [*moved, gone, *attach(registry, path, digest, bundles)]
    list_referrers(registry, path, digest, listed)
    registry.corrupt_blob(digest_of(b"spoilt"))
    answer = bring(order, trust, access_to({}, silence=5), tmp_path / "store", NOW)
    assert answer["reason"] == "SignatureInvalid"
    names = [f"referrer {one['digest'][:19]}: " for one in listed]
    for cause in (
        names[0] + "MalformedManifest: its subject is sha256:",
        names[1] + "NotFound: ",
        names[2] + "SizeMismatch: ",
        names[3] + "DigestMismatch: ",
        "candidate 1: not a Sigstore bundle",
        "candidate 2: not signed by a trusted key",
        "candidate 3: it is about " + OTHER,
    ):
        assert cause in answer["detail"]
    assert len(answer["detail"]) <= 1024


class OneModel:
    """The API server, registries and events of a hub with one EdgeModel and its keys. A fake: it keeps the last status."""

    def __init__(self, client: RegistryClient, order: Order) -> None:
        assert order.revision is not None
        self._client = client
        self._keys = {"data": {"ours.pub": base64.b64encode(KEY.public.to_pem().encode()).decode()}}
        golden = order.revision.golden
        assert golden is not None
        self._model = {
            "apiVersion": "edgefleet.io/v1alpha1",
            "kind": "EdgeModel",
            "metadata": {"name": order.model, "namespace": "vision", "generation": 1},
            "spec": {
                "source": {"repository": order.revision.repository, "digest": order.revision.digest},
                "verify": {"keys": {"secretRef": "keys"}},
                "serving": [{"match": {"arch": "amd64"}, "repository": {}}],
                "golden": {"repository": golden.repository, "digest": golden.digest, "min": "90%"},
            },
        }
        self.status: dict[str, Any] = {}

    async def get(self, resource: Resource, *_: str | None) -> dict[str, Any]:
        return self._keys if resource == SECRETS else self._model

    async def apply(self, _: Resource, body: dict[str, Any], **__: Any) -> None:
        self.status = body["status"]

    async def open(self, _: EdgeModel) -> RegistryClient:
        return self._client

    async def tell(self, *_: Any) -> None: ...


async def test_a_person_at_the_hub_sees_why_a_candidate_failed(registry: Registry) -> None:
    with RegistryClient(patience=Patience(attempts=1)) as client:
        for name, status in (("good", "True"), ("referrer of another subject", "False")):
            fake: Any = OneModel(client, put_release(registry, name))
            await Models(fake, fake, fake).reconcile(("vision", MODEL))
            (source,) = (one for one in fake.status["conditions"] if one["type"] == "SourceVerified")
            assert source["status"] == status, source
    assert source["reason"] == "SignatureInvalid"
    assert f"its subject is {OTHER}" in source["message"]


class Lane:
    """One site in a process of its own, before a registry of its own."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self._folder = scene, folder
        self.growth = 0
        logins = json.dumps({scene.registry.host: LOGIN})
        command = [sys.executable, "-m", "tests.integration.hostile_site", str(scene.root), str(scene.bundle), logins]
        self._site = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # What an honest pull takes is no growth.
        self.complete(self._folder / "first")

    def ask(self, name: str, store: Path) -> dict[str, Any]:
        """The site's answer to an order for a release."""
        assert self._site.stdin is not None
        assert self._site.stdout is not None
        asked = {"order": self.scene.orders[name].to_json_dict(), "folder": str(store), "now": NOW.isoformat()}
        self._site.stdin.write(json.dumps(asked) + "\n")
        self._site.stdin.flush()
        answer: dict[str, Any] = json.loads(self._site.stdout.readline())
        self.growth = max(self.growth, answer["peak"] - answer["start"])
        return answer

    def complete(self, store: Path) -> None:
        """Have an honest registry bring the good release; on a busy machine it may be silent for longer than a site in a hurry bears."""
        answers = (self.ask("good", store)["reason"] for _ in range(20))
        assert next(reason for reason in answers if reason != "RegistryStalled") == ""
        assert look_into(store) == ["good"]

    def play(self, seed: int) -> str:
        """One mix; the reason that the site gave. Fails, naming the seed, where something wrong got in or no name was given."""
        chance = random.Random(seed)
        name = "good" if chance.random() < 0.6 else chance.choice(sorted(RELEASES))
        hostile = Hostile(self.scene.elsewhere.url, draw_plan(seed), seed)
        store = self._folder / str(seed)
        what = f"seed {seed}: {name}, {hostile.plan}"
        self.scene.registry.fault = hostile
        answer = self.ask(name, store)
        self.scene.registry.fault = None
        assert answer["named"], f"{what}: {answer}"
        assert look_into(store) == (["good"] if not answer["reason"] else []), f"{what}: {answer}"
        if seed % 10 == 0:
            # What the hostile registry left behind does not hinder an honest one.
            self.complete(store)
        shutil.rmtree(store)
        return str(answer["reason"])

    def stop(self) -> None:
        """End the site."""
        self._site.communicate(timeout=10)


@pytest.mark.timeout(300)
def test_of_a_thousand_mixes_nothing_wrong_gets_in(tmp_path: Path) -> None:
    with ExitStack() as stack:
        lanes = []
        for number in range(LANES):
            folder = tmp_path / str(number)
            folder.mkdir()
            lanes.append(Lane(stack.enter_context(open_scene(folder)), folder))
            stack.callback(lanes[-1].stop)

        def play(number: int) -> list[str]:
            return [lanes[number].play(seed) for seed in range(number, MIXES, LANES)]

        with ThreadPoolExecutor(LANES) as pool:
            reasons = Counter(reason for found in pool.map(play, range(LANES)) for reason in found)
        growth = max(lane.growth for lane in lanes)
        told = [one for lane in lanes for one in lane.scene.told]
    print(f"\nseeds 0 to {MIXES - 1}: {reasons.pop('')} complete and right; refused: {dict(reasons.most_common())}")
    print(f"memory grew by {growth / 2**20:.0f} MiB at most")
    assert told == []
    assert growth <= MAX_GROWTH
    # Mixes that are all refused for one reason would try little.
    assert len(reasons) >= 12
    assert max(reasons.values()) < MIXES / 2
