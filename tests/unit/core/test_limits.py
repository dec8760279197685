"""What the root keys allow around a model, whatever a hub orders."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.model import Golden, Serving, Variant
from edgefleet.api.site import Proxy, RegistryAccess
from edgefleet.core.limits import (
    GoldenLimit,
    Limits,
    LimitsByModel,
    covers_host,
    covers_image,
    find_excess,
    find_unsigned_image,
    list_images,
)

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
EXAM, OTHER = "sha256:" + "e" * 64, "sha256:" + "f" * 64
IMAGE = "registry.example/serving/mlserver@sha256:" + "5" * 64
LIMITS = Limits(
    images=("registry.example/serving/*",),
    endpoints=("registry.example", "mirror.local:5000", "proxy.local:3128"),
    regions=("kz", "de"),
    golden=GoldenLimit(90, (EXAM,)),
)


def pods(*images: str, init: tuple[str, ...] = ()) -> Serving:
    containers, before = (
        [{"name": f"c{number}", "image": image} for number, image in enumerate(group)] for group in (images or (IMAGE,), init)
    )
    template = {"spec": {"containers": containers, "initContainers": before}}
    return Serving.model_validate({"deployment": {"template": template, "port": 8080, "mountPath": "/models"}})


def order(*, registries: Any = None, proxy: Any = None, **revision: Any) -> Order:
    base = FrozenRevision(
        hash="a" * 64,
        model="weld",
        repository="registry.example/vision/weld",
        digest="sha256:" + "a" * 64,
        version="1.0",
        seq=1,
        variant=Variant(name="cpu", digest="sha256:" + "0" * 64, size=10, arch="amd64"),
        serving=pods(),
        golden=Golden(repository="registry.example/vision/exam", digest=EXAM, min="90%"),
    )
    return Order(
        site="plant-7",
        fleet="vision/plants",
        sequence=7,
        action="Run",
        model="weld",
        revision=base.model_copy(update=revision),
        registries=registries,
        proxy=proxy,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=14),
    )


def golden(**changes: Any) -> Golden:
    return Golden(**{"repository": "registry.example/vision/exam", "digest": EXAM, "min": "90%", **changes})


def mirror(host: str) -> tuple[RegistryAccess, ...]:
    return (RegistryAccess(match="registry.example", mirror=host),)


def test_what_stays_within_all_limits_passes() -> None:
    within = order(
        registries=mirror("mirror.local:5000/cache"), proxy=Proxy(https="http://proxy.local:3128"), serving=pods(IMAGE, init=(IMAGE,))
    )
    assert find_excess(within, LIMITS, "kz") is None
    assert find_excess(order(golden=golden(min="95%")), LIMITS, "de") is None
    withdrawal = order().model_copy(update={"action": "Withdraw", "revision": None})
    assert find_excess(withdrawal, LIMITS, None) is None


@pytest.mark.parametrize(
    ("beyond", "reason", "told"),
    [
        (order(repository="evil.example/vision/weld"), "EndpointNotAllowed", "revision.repository names evil.example"),
        (order(repository="registry.example:444/vision/weld"), "EndpointNotAllowed", "registry.example:444"),
        (order(golden=golden(repository="evil.example/exam")), "EndpointNotAllowed", "revision.golden.repository"),
        (order(registries=mirror("evil.example/cache")), "EndpointNotAllowed", "registries[registry.example].mirror"),
        (order(proxy=Proxy(https="http://proxy.local:3129")), "EndpointNotAllowed", "proxy.https names proxy.local:3129"),
        (order(golden=None), "GoldenMissing", "at least 90%"),
        (order(golden=golden(min="89%")), "GoldenTooLow", "is 89%"),
        (order(golden=golden(digest=OTHER)), "GoldenNotAllowed", OTHER),
        (order(serving=pods("registry.example/other/mlserver@sha256:" + "5" * 64)), "ImageNotAllowed", "other/mlserver"),
        (order(serving=pods(IMAGE, "evil.example/x@sha256:" + "5" * 64)), "ImageNotAllowed", "evil.example/x"),
        (order(serving=pods(init=("evil.example/x@sha256:" + "5" * 64,))), "ImageNotAllowed", "evil.example/x"),
    ],
)
def test_each_limit_refuses_by_name(beyond: Order, reason: str, told: str) -> None:
    excess = find_excess(beyond, LIMITS, "kz")
    assert excess is not None
    assert (excess.reason, told in excess.message) == (reason, True), excess
    assert find_excess(beyond, Limits(), "kz") is None


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("registry.example/serving/mlserver", ""),
        ("registry.example:443/serving/mlserver", "registry.example:443"),
        ("evil.example/x", "evil.example"),
        ("localhost/x", "localhost"),
        ("library/nginx", "docker.io"),
        ("library", "docker.io"),
        ("lIBRARY/x", "lIBRARY"),
    ],
)
def test_the_registry_of_an_image_is_an_endpoint_as_a_container_runtime_reads_it(name: str, host: str) -> None:
    excess = find_excess(order(serving=pods(f"{name}@{EXAM}")), Limits(endpoints=("registry.example", "library")), None)
    assert (
        excess is None if not host else excess is not None and excess.reason == "EndpointNotAllowed" and f"names {host};" in excess.message
    )


@pytest.mark.parametrize(
    ("name", "images", "refused"),
    [
        ("registry.example/serving/mlserver", None, False),
        ("registry.example/serving/mlserver", (), False),
        ("registry.example/serving/mlserver:1.0", None, True),
        ("registry.example:443/serving/mlserver", None, True),
        ("registry.example./serving/mlserver", None, True),
        ("rEGISTRY.example/serving/mlserver", None, True),
        ("registry.example/serving//mlserver", None, True),
        ("registry.example/tools/x", None, True),
        ("registry.example/tools/x", ("registry.example/serving/*",), True),
        ("registry.example/tools/x", ("registry.example/tools/*",), False),
        ("registry.example/tools/x:1.0", ("registry.example/tools/*",), True),
    ],
)
def test_where_images_must_be_signed_no_spelling_does_without(name: str, images: tuple[str, ...] | None, refused: bool) -> None:
    revision = order(serving=pods(f"{name}@{EXAM}")).revision
    assert revision is not None
    excess = find_unsigned_image(revision, Limits(images=images), ("registry.example/serving/*",))
    assert (excess.reason if excess else "") == ("ImageNotAllowed" if refused else "")
    assert excess is None or (name in excess.message and "without a tag" in excess.message)
    assert find_unsigned_image(revision, Limits(images=images), ()) is None, "where nobody signs, images alone counts"


@pytest.mark.parametrize("region", [None, "", "us", "KZ", "kz-2"])
def test_a_site_of_another_region_or_of_none_is_refused(region: str | None) -> None:
    excess = find_excess(order(), LIMITS, region)
    assert excess is not None
    assert excess.reason == "ResidencyDenied"


def test_no_images_means_no_pods_and_leaves_the_model_server_alone() -> None:
    none = Limits(images=())
    excess = find_excess(order(), none, None)
    assert excess is not None
    assert excess.reason == "ImageNotAllowed"
    assert find_excess(order(serving=Serving(repository={})), none, None) is None


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("registry.example", "registry.example", True),
        ("registry.example", "registry.example:443", False),
        ("registry.example", "evil.registry.example", False),
        ("registry.example", "registry.example.", False),
        (".factory.example", "a.factory.example", True),
        (".factory.example", "a.b.factory.example", True),
        (".factory.example", "factory.example", False),
        (".factory.example", "evilfactory.example", False),
        (".factory.example", "a.factory.example:22", False),
        (".factory.example:5000", "a.factory.example:5000", True),
    ],
)
def test_a_host_is_covered_literally_or_below_a_domain(pattern: str, host: str, covered: bool) -> None:
    assert covers_host(pattern, host) is covered


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("registry.example/serving/*", "registry.example/serving/a/b", True),
        ("registry.example/serving/*", "registry.example/serving", False),
        ("registry.example/serving/*", "registry.example/serving-evil/a", False),
        ("registry.example/serving/*", "registry.example/serving/../evil", False),
        ("registry.example/serving/*", "registry.example/serving//evil", False),
        ("registry.example/serving/*", "registry.example/serving/a:1.0", False),
        ("registry.example/serving/*", "evil.example/registry.example/serving/a", False),
        ("registry.example/serving/a", "registry.example/serving/a", True),
        ("registry.example/serving/a", "registry.example/serving/ab", False),
    ],
)
def test_an_image_is_covered_literally_or_below_a_path(pattern: str, name: str, covered: bool) -> None:
    assert covers_image(pattern, name) is covered


def test_a_models_own_lines_count_before_those_for_all() -> None:
    limits = LimitsByModel(Limits(regions=("kz",), images=()), {"weld": Limits(images=("registry.example/serving/*",))})
    assert limits.of("weld") == Limits(regions=("kz",), images=("registry.example/serving/*",))
    assert limits.of("other") == Limits(regions=("kz",), images=())


def test_each_image_is_listed_once() -> None:
    revision = order(serving=pods(IMAGE, IMAGE, init=(IMAGE,))).revision
    assert revision is not None
    assert list_images(revision) == (("registry.example/serving/mlserver", "sha256:" + "5" * 64),)
