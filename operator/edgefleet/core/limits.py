"""What the root keys allow around a model, whatever a hub orders: images, hosts, regions, and the exam. Pure.

Limits narrow and never widen: what core/pods.py forbids is forbidden under any of them. What a bundle says is read in trust/, who signed
an image is verified at the site (site/prefetch.py). Reasons, as core/site.py lists them:

    EndpointNotAllowed  the order names a registry (also of a container's image), mirror or proxy that is not in `endpoints`
    ResidencyDenied     the site's own region is not in `regions`; a site without a region is in none
    GoldenMissing       the order brings no golden set
    GoldenTooLow        it asks for less than `golden.min`
    GoldenNotAllowed    its golden set is none of `golden.digests`
    ImageNotAllowed     a container's image is of no repository in `images`, or nobody is named to sign it where others must be signed
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgefleet.api.assignment import FrozenRevision, Order
from edgefleet.api.quantities import parse_share

_NAME = re.compile(r"[a-zA-Z0-9.:-]+(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")

BEYOND_LIMITS = frozenset(
    {"EndpointNotAllowed", "ResidencyDenied", "GoldenMissing", "GoldenTooLow", "GoldenNotAllowed", "ImageNotAllowed"}
    | {"ImageSignatureMissing", "ImageSignatureInvalid", "ImageThresholdNotMet"}
)
"""The reasons, and those for images that too few have signed."""


@dataclass(frozen=True, slots=True)
class GoldenLimit:
    """Each order brings a golden set with at least `min` percent; one of `digests`, unless that is empty."""

    min: int = 0
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """For one model; None sets no limit, an empty tuple allows nothing.

    `images` and `endpoints` are patterns: see covers_image and covers_host.
    """

    images: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    golden: GoldenLimit | None = None


@dataclass(frozen=True)
class LimitsByModel:
    """What `models` says of a model counts line by line before `default`."""

    default: Limits = field(default_factory=Limits)
    models: Mapping[str, Limits] = field(default_factory=dict)

    def of(self, model: str) -> Limits:
        """Those of one model."""
        own, default = self.models.get(model, Limits()), self.default
        return Limits(
            images=default.images if own.images is None else own.images,
            endpoints=default.endpoints if own.endpoints is None else own.endpoints,
            regions=default.regions if own.regions is None else own.regions,
            golden=default.golden if own.golden is None else own.golden,
        )


@dataclass(frozen=True, slots=True)
class Excess:
    """What goes beyond a limit. `reason` is CamelCase; `message` names the field, what was found, and what is allowed."""

    reason: str
    message: str


def find_excess(order: Order, limits: Limits, region: str | None) -> Excess | None:
    """The first thing in an order that its limits do not allow at a site of this region (None: it was told none)."""
    revision = order.revision
    if revision is None:
        return None
    return (
        _find_foreign_image(revision, limits)
        or find_foreign_endpoint(order, limits)
        or _find_foreign_region(limits, region)
        or _find_other_exam(revision, limits)
    )


def find_foreign_endpoint(order: Order, limits: Limits) -> Excess | None:
    """The first host that an order names and may not name."""
    if limits.endpoints is None:
        return None
    for where, host in _endpoints(order):
        if not any(covers_host(pattern, host) for pattern in limits.endpoints):
            return Excess("EndpointNotAllowed", f"{where} names {host}; the trust bundle allows {_listed(limits.endpoints)}")
    return None


def find_unsigned_image(revision: FrozenRevision, limits: Limits, signed: Sequence[str]) -> Excess | None:
    """The first image that is neither below one of the repositories whose images must be signed, nor in `images`.

    One image has many spellings to a container runtime (a tag beside the digest, a port, no registry). Where signatures are asked for, a
    spelling that nobody named must not do without them.
    """
    known = (*signed, *(limits.images or ()))
    for name, digest in list_images(revision) if signed else ():
        if not any(covers_image(pattern, name) for pattern in known):
            return Excess(
                "ImageNotAllowed",
                f"serving.deployment.template names image {name[:200]}@{digest[:19]}; neither imageSigners of the trust bundle "
                f"({_listed(signed)}) nor its limits.images names that: write registry/path@sha256:..., without a tag, as it is there",
            )
    return None


def covers_host(pattern: str, host: str) -> bool:
    """Whether `host` or `host:port`, as an order spells it, is allowed: literally, or below `.example.org`; a port is part of both."""
    return host.endswith(pattern) and host != pattern if pattern.startswith(".") else host == pattern


def covers_image(pattern: str, name: str) -> bool:
    """Whether an image's name (without digest) is that of a pattern: literally, or below `registry.example/serving/*`."""
    if not _NAME.fullmatch(name):
        return False
    return name.startswith(pattern[:-1]) if pattern.endswith("/*") else name == pattern


def list_images(revision: FrozenRevision) -> tuple[tuple[str, str], ...]:
    """The images of all containers of a revision, once each: name and digest."""
    deployment = revision.serving.deployment
    if deployment is None:
        return ()
    spec = deployment.template.spec
    images = dict.fromkeys(container.image for container in (*spec.init_containers, *spec.containers))
    return tuple((name, digest) for name, _, digest in (image.rpartition("@") for image in images))


def _endpoints(order: Order) -> Iterator[tuple[str, str]]:
    if order.revision is not None:
        yield "revision.repository", order.revision.repository.partition("/")[0]
        if order.revision.golden is not None:
            yield "revision.golden.repository", order.revision.golden.repository.partition("/")[0]
        for name, _ in list_images(order.revision):
            yield f"serving.deployment.template, image {name[:200]},", _registry_of(name)
    for entry in order.registries or ():
        if entry.mirror is not None:
            yield f"registries[{entry.match}].mirror", entry.mirror.partition("/")[0]
    if order.proxy is not None:
        yield "proxy.https", order.proxy.https.removeprefix("http://")


def _registry_of(image: str) -> str:
    """Whom a container runtime asks for an image of this name."""
    first, slash, _ = image.partition("/")
    return first if slash and (first == "localhost" or re.search(r"[.:A-Z]", first)) else "docker.io"


def _find_foreign_region(limits: Limits, region: str | None) -> Excess | None:
    if limits.regions is None or region in limits.regions:
        return None
    here = f"this site is in {region}" if region else "this site was told no region (`edgefleet agent --region`)"
    return Excess("ResidencyDenied", f"{here}; the trust bundle allows {_listed(limits.regions)}")


def _find_other_exam(revision: FrozenRevision, limits: Limits) -> Excess | None:
    demanded, golden = limits.golden, revision.golden
    if demanded is None:
        return None
    if golden is None:
        return Excess("GoldenMissing", f"revision.golden is absent; the trust bundle demands one with at least {demanded.min}%")
    if parse_share(golden.min) < demanded.min:
        return Excess("GoldenTooLow", f"revision.golden.min is {golden.min}; the trust bundle demands at least {demanded.min}%")
    if demanded.digests and golden.digest not in demanded.digests:
        return Excess("GoldenNotAllowed", f"revision.golden.digest is {golden.digest}; the trust bundle allows {_listed(demanded.digests)}")
    return None


def _find_foreign_image(revision: FrozenRevision, limits: Limits) -> Excess | None:
    if limits.images is None:
        return None
    for name, digest in list_images(revision):
        if not any(covers_image(pattern, name) for pattern in limits.images):
            return Excess(
                "ImageNotAllowed",
                f"serving.deployment.template names image {name[:200]}@{digest[:19]}; the trust bundle allows {_listed(limits.images)} "
                "(registry/path, without a tag)",
            )
    return None


def _listed(allowed: Sequence[str]) -> str:
    more = f" and {len(allowed) - 6} more" if len(allowed) > 6 else ""
    return (", ".join(allowed[:6]) + more) or "none"
