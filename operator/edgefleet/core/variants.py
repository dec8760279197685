"""Which variant of a release, and which way to serve it, fits a site's hardware. Says nothing about whether the site may have it."""

from collections.abc import Iterable

from edgefleet.api.model import Serving, Variant
from edgefleet.api.site import Hardware


def fit_variant(variants: Iterable[Variant], hardware: Hardware) -> Variant | None:
    """The best variant that runs on this hardware: highest priority, then the one that asks for most, then by name.

    Memory is in bytes. None if none fits.
    """
    fitting = [variant for variant in variants if _fits(variant, hardware)]
    return min(fitting, key=_preference, default=None)


def fit_serving(serving: Iterable[Serving], hardware: Hardware) -> Serving | None:
    """The first serving entry whose match holds for this hardware, or None."""
    return next((entry for entry in serving if _matches(entry, hardware)), None)


def _fits(variant: Variant, hardware: Hardware) -> bool:
    return (
        variant.arch == hardware.arch
        and variant.accelerator in (None, hardware.accelerator)
        and set(variant.features) <= set(hardware.features)
        and variant.min_memory <= hardware.memory
    )


def _preference(variant: Variant) -> tuple[int, bool, int, int, str]:
    return (-variant.priority, variant.accelerator is None, -len(variant.features), -variant.min_memory, variant.name)


def _matches(entry: Serving, hardware: Hardware) -> bool:
    return entry.match.arch in (None, hardware.arch) and entry.match.accelerator in (None, hardware.accelerator)
