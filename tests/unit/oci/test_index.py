"""Indexes and manifests: what they say is read exactly; what they must not say is a named error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.api.model import Variant
from edgefleet.oci import media
from edgefleet.oci.errors import ContentError, LayerUnsupported, MalformedManifest, TooLarge
from edgefleet.oci.index import parse_index, read_variant, variant_annotations
from edgefleet.oci.manifest import parse_model_manifest

PREFIX = media.VARIANT_PREFIX


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def entry(number: int = 1, arch: Any = "amd64", platform: Any = None, **facts: str) -> dict[str, Any]:
    annotations = {PREFIX + key.replace("_", "-"): value for key, value in {"name": f"v{number}", **facts}.items()}
    return {
        "mediaType": media.MANIFEST,
        "digest": digest(number),
        "size": 500,
        "platform": platform if platform is not None else {"os": "linux", "architecture": arch},
        "annotations": {**annotations, "org.example.other": "ignored"},
    }


def index(*entries: Any, **changes: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": media.INDEX, "manifests": list(entries), **changes}).encode()


def test_all_facts_are_read() -> None:
    (found,) = parse_index(
        index(entry(1, "arm64", accelerator="nvidia", features="b,a", min_memory="2Gi", precision="int8", priority="7")), "x"
    )
    assert read_variant(found, 123, "x") == Variant(
        name="v1",
        digest=digest(1),
        size=123,
        arch="arm64",
        accelerator="nvidia",
        features=("a", "b"),
        min_memory=2 << 30,
        precision="int8",
        priority=7,
    )


def test_facts_are_written_as_they_are_read() -> None:
    variant = Variant(
        name="v1",
        digest=digest(1),
        size=9,
        arch="amd64",
        accelerator="npu",
        features=("a", "b"),
        min_memory=5,
        precision="int4",
        priority=3,
    )
    written = {**entry(), "annotations": variant_annotations(variant)}
    (found,) = parse_index(index(written), "x")
    assert read_variant(found, 9, "x") == variant


def test_the_platform_variant_of_arm64_says_nothing_new() -> None:
    parse_index(index(entry(platform={"os": "linux", "architecture": "arm64", "variant": "v8"})), "x")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"[]", "schemaVersion", id="a list"),
        pytest.param(b"[" * 40_000, "not JSON", id="deeply nested"),
        pytest.param(index(entry(), schemaVersion=1), "schemaVersion", id="schema 1"),
        pytest.param(index(entry(), mediaType=media.MANIFEST), "mediaType", id="a manifest"),
        pytest.param(index(), "without variants", id="no variants"),
        pytest.param(index(entry(), manifests={}), "manifests is not a list", id="manifests is a map"),
        pytest.param(index("x"), "not a descriptor", id="an entry is text"),
        pytest.param(index({**entry(), "digest": "sha256:xyz"}), "not a SHA-256 digest", id="bad digest"),
        pytest.param(index({**entry(), "digest": digest(1) + "\n"}), "not a SHA-256 digest", id="digest with a line break"),
        pytest.param(index({**entry(), "size": -1}), "size", id="negative size"),
        pytest.param(index({**entry(), "size": True}), "size", id="size is true"),
        pytest.param(index({**entry(), "size": 1 << 60}), "size", id="absurd size"),
        pytest.param(index({**entry(), "mediaType": media.INDEX}), "not a manifest", id="an index in the index"),
        pytest.param(index({**entry(), "annotations": {PREFIX + "name": 5}}), "map of strings", id="annotation is a number"),
        pytest.param(index({**entry(), "annotations": None}), "name", id="no name"),
        pytest.param(index(entry(1), {**entry(2), "annotations": entry(1)["annotations"]}), "two variants are called", id="a name twice"),
        pytest.param(index(entry(1), {**entry(2), "digest": digest(1)}), "two variants have the manifest", id="a digest twice"),
        pytest.param(index(entry(name="Not A Name")), "name", id="bad name"),
        pytest.param(index(entry(arch="AMD 64")), "arch", id="bad arch"),
        pytest.param(index(entry(arch=5)), "arch", id="arch is a number"),
        pytest.param(index(entry(platform={})), "platform", id="no platform"),
        pytest.param(index(entry(platform={"os": "windows", "architecture": "amd64"})), "platform", id="windows"),
        pytest.param(index(entry(platform={"os": "linux", "architecture": "arm", "variant": "v7"})), "platform.variant", id="armv7"),
        pytest.param(index(entry(platform={"os": "linux", "architecture": "amd64", "os.features": ["x"]})), "platform", id="os features"),
        pytest.param(index(entry(min_driver="550")), "min-driver", id="unknown fact"),
        pytest.param(index(entry(min_memory="lots")), "lots", id="bad memory"),
        pytest.param(index(entry(priority="-1")), "priority", id="negative priority"),
        pytest.param(index(entry(priority="1001")), "priority", id="priority too high"),
        pytest.param(index(entry(priority="٣")), "priority", id="priority in other digits"),
        pytest.param(index(entry(features="a,,b")), "features", id="empty feature"),
        pytest.param(index(entry(features=",".join(f"f{n}" for n in range(17)))), "features", id="too many features"),
    ],
)
def test_what_index_is_refused(data: bytes, named: str) -> None:
    with pytest.raises(MalformedManifest, match=named):
        parse_index(data, "registry.example/x")


def test_too_many_variants() -> None:
    parse_index(index(*[entry(number) for number in range(32)]), "x")
    with pytest.raises(TooLarge):
        parse_index(index(*[entry(number) for number in range(33)]), "x")


def layer(path: Any = "model.onnx", media_type: str = media.WEIGHT_LAYER, number: int = 1, key: str = media.FILEPATH) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(number), "size": 10, "annotations": {key: path} if path is not None else {}}


def manifest(*layers: Any, **changes: Any) -> bytes:
    document = {"schemaVersion": 2, "mediaType": media.MANIFEST, "artifactType": media.MODEL, "config": {}, "layers": list(layers)}
    return json.dumps({**document, **changes}).encode()


def test_raw_layers_are_files() -> None:
    data = manifest(
        layer(), layer("conf/a.json", "application/vnd.cncf.model.weight.config.v1.raw", 2), layer("README.md", key=media.TITLE)
    )
    found = parse_model_manifest(data, "x")
    assert [file.path for file in found.layers] == ["model.onnx", "conf/a.json", "README.md"]
    assert found.size == 30


@pytest.mark.parametrize(
    "path",
    ["", None, "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", ".hidden", "a\\b", "a\0b", "a b", "a\n", "C:x", "x" * 256, "ä"],
    ids=repr,
)
def test_what_path_is_refused(path: str | None) -> None:
    with pytest.raises(MalformedManifest, match="path"):
        parse_model_manifest(manifest(layer(path)), "x")


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_two_files_do_not_claim_one_place(paths: tuple[str, str]) -> None:
    with pytest.raises(MalformedManifest, match="two layers"):
        parse_model_manifest(manifest(layer(paths[0]), layer(paths[1], number=2)), "x")


@pytest.mark.parametrize(
    ("data", "error", "named"),
    [
        (manifest(layer(media_type="application/vnd.cncf.model.weight.v1.tar+gzip")), LayerUnsupported, "archive"),
        (manifest(layer(media_type="application/octet-stream")), LayerUnsupported, "octet-stream"),
        (manifest(layer(), artifactType="application/vnd.kitops"), MalformedManifest, "artifactType"),
        (manifest(), MalformedManifest, "no layers"),
        (manifest(*[layer(f"f{number}", number=number) for number in range(65)]), TooLarge, "65"),
    ],
    ids=["archive", "unknown type", "not a model", "empty", "too many"],
)
def test_what_manifest_is_refused(data: bytes, error: type[ContentError], named: str) -> None:
    with pytest.raises(error, match=named):
        parse_model_manifest(data, "x")


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4))


@given(st.sampled_from(["digest", "size", "mediaType", "platform", "annotations", "artifactType"]), JSON)
def test_any_json_in_any_field_is_read_or_refused_by_name(field: str, value: Any) -> None:
    for parse, data in ((parse_index, index({**entry(), field: value})), (parse_model_manifest, manifest({**layer(), field: value}))):
        try:
            parse(data, "x")
        except ContentError:
            continue
