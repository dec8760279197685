"""How a trust bundle writes its limits, and whose signature it demands of an image. What they mean is decided in core/limits.py."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edgefleet.api.meta import Schema
from edgefleet.api.quantities import Digest, Name, Share, parse_share
from edgefleet.api.site import Region
from edgefleet.core.limits import GoldenLimit, Limits, LimitsByModel, covers_image
from edgefleet.trust.publishers import Publisher

_HOST = re.compile(r"[.]?[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]{1,5})?|\[[0-9a-fA-F:.]{2,45}\](:[0-9]{1,5})?")
_IMAGES = re.compile(r"(?P<registry>[a-zA-Z0-9.-]+(:[0-9]{1,5})?)(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(/[*])?")


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is neither registry.example, registry.example:5000 nor .example (all below)")
    return text


def _images(text: str) -> str:
    found = _IMAGES.fullmatch(text)
    # A name without a registry means another one to a container runtime than it says.
    if not found or "/" not in text or not re.search(r"[.:]|^localhost$", found["registry"]):
        raise ValueError(f"{text!r} is neither registry.example/serving/mlserver nor registry.example/serving/* (all below)")
    return text


HostPattern = Annotated[str, Field(max_length=260), AfterValidator(_host)]
ImagePattern = Annotated[str, Field(max_length=255), AfterValidator(_images)]


class _Document(Schema):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class _GoldenDocument(_Document):
    min: Share
    digests: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()


class _ModelDocument(_Document):
    images: Annotated[tuple[ImagePattern, ...], Field(max_length=32)] | None = None
    endpoints: Annotated[tuple[HostPattern, ...], Field(max_length=32)] | None = None
    regions: Annotated[tuple[Region, ...], Field(max_length=64)] | None = None
    golden: _GoldenDocument | None = None


class LimitsDocument(_Document):
    """`limits` of a trust bundle."""

    default: _ModelDocument | None = None
    models: Annotated[dict[Name, _ModelDocument], Field(max_length=1024)] = Field(default_factory=dict)


@dataclass(frozen=True)
class ImageSigner:
    """Who must have signed the images of a pattern (see core/limits.py); the first entry that covers an image counts."""

    repository: str
    publisher: Publisher

    def covers(self, name: str) -> bool:
        """Whether this entry is for an image of this name."""
        return covers_image(self.repository, name)


def read_limits(document: LimitsDocument | None) -> LimitsByModel:
    """What it says."""
    if document is None:
        return LimitsByModel()
    return LimitsByModel(_read(document.default), {name: _read(entry) for name, entry in document.models.items()})


def write_limits(limits: LimitsByModel) -> dict[str, Any] | None:
    """The document, None where nothing is limited."""
    models = {name: written for name, entry in limits.models.items() if (written := _write(entry))}
    default = _write(limits.default)
    return ({"default": default} if default else {}) | ({"models": models} if models else {}) or None


def _read(document: _ModelDocument | None) -> Limits:
    if document is None:
        return Limits()
    golden = GoldenLimit(parse_share(document.golden.min), document.golden.digests) if document.golden else None
    return Limits(document.images, document.endpoints, document.regions, golden)


def _write(limits: Limits) -> dict[str, Any]:
    said: dict[str, Any] = {"images": limits.images, "endpoints": limits.endpoints, "regions": limits.regions}
    if limits.golden is not None:
        said["golden"] = {"min": f"{limits.golden.min}%"} | ({"digests": limits.golden.digests} if limits.golden.digests else {})
    return {name: value for name, value in said.items() if value is not None}
