"""The YAML of the examples: read by the kinds that the product reads it with, and nothing in it is dropped on the way."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgefleet.api.fleet import EdgeFleet
from edgefleet.api.meta import API_VERSION, Kind
from edgefleet.api.model import EdgeModel
from edgefleet.api.policy import RolloutPolicy
from edgefleet.api.site import EdgeSite

EXAMPLES = Path(__file__).parents[3] / "examples"
KINDS: dict[str, type[Kind]] = {kind.__name__: kind for kind in (EdgeFleet, EdgeModel, RolloutPolicy, EdgeSite)}


def _objects() -> list[Any]:
    found = []
    for path in sorted(EXAMPLES.glob("**/*.yaml")):
        for body in yaml.safe_load_all(path.read_text()):
            if isinstance(body, dict) and body.get("apiVersion") == API_VERSION:
                found.append(pytest.param(body, id=f"{path.relative_to(EXAMPLES)}:{body['kind']}/{body['metadata']['name']}"))
    return found


@pytest.mark.parametrize("body", _objects())
def test_each_field_is_one_that_the_kind_knows(body: dict[str, Any]) -> None:
    read = KINDS[body["kind"]].parse(body).to_json_dict()
    assert _missing(body["spec"], read["spec"]) == []


def test_there_are_nine_sites_in_three_regions() -> None:
    sites = list(yaml.safe_load_all((EXAMPLES / "digits/manifests/sites.yaml").read_text()))
    regions = [site["spec"]["region"] for site in sites]
    assert {region: regions.count(region) for region in regions} == {"kz": 4, "de": 4, "us": 1}


def _missing(written: Any, read: Any, path: str = "spec") -> list[str]:
    """Paths that were written and are not read with the same value."""
    match written:
        case dict():
            inner = read if isinstance(read, dict) else {}
            return [gap for key, value in written.items() for gap in _missing(value, inner.get(key), f"{path}.{key}")]
        case list():
            items: list[Any] = read if isinstance(read, list) and len(read) == len(written) else [None] * len(written)
            pairs = enumerate(zip(written, items, strict=True))
            return [gap for index, (a, b) in pairs for gap in _missing(a, b, f"{path}[{index}]")]
        case _:
            return [] if written == read else [f"{path}: wrote {written!r}, read {read!r}"]
