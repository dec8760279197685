"""Golden vectors: a revision's hash never changes for what exists already, whatever optional fields are added."""

import pytest

from edgefleet.api.model import EdgeModelSpec, Golden, HardwareMatch, Release, RepositoryRuntime, Serving
from edgefleet.core.revision import compute_revision, hash_revision
from tests.unit.core.facts_of import digest_of, variant

PLAIN = (Serving(repository=RepositoryRuntime()),)
SPLIT = (
    Serving(match=HardwareMatch(arch="arm64", accelerator="nvidia"), repository=RepositoryRuntime()),
    Serving(match=HardwareMatch(arch="amd64"), repository=RepositoryRuntime()),
)
GOLDEN = Golden(repository="registry.example/vision/weld-golden", digest=digest_of("golden"), min="90%")

VECTORS = [
    pytest.param(PLAIN, None, "b9ceeccd38d7ff0cfec8c9eca135b8f7986c755cc41c874ce94a299aa45a0420", id="plain"),
    pytest.param(PLAIN, GOLDEN, "b445c6734e56dc4630454ba5a300c4521fc3beff9d5852034ea013c2e89916a7", id="golden"),
    pytest.param(SPLIT, GOLDEN, "89cad5546152a22ea889dbb1bb0da5032023abd1019d844acebfb276bc3e243b", id="split"),
]


@pytest.mark.parametrize(("serving", "golden", "expected"), VECTORS)
def test_golden_vectors(serving: tuple[Serving, ...], golden: Golden | None, expected: str) -> None:
    assert hash_revision(model="weld-qc", digest=digest_of("1.0"), serving=serving, golden=golden) == expected


def test_each_part_counts() -> None:
    def one(model: str = "weld-qc", digest: str = "1.0", serving: tuple[Serving, ...] = PLAIN, golden: Golden | None = None) -> str:
        return hash_revision(model=model, digest=digest_of(digest), serving=serving, golden=golden)

    easier = GOLDEN.model_copy(update={"min": "80%"})
    hashes = {
        one(),
        one(model="other"),
        one(digest="2.0"),
        one(serving=SPLIT),
        one(serving=SPLIT[::-1]),
        one(golden=GOLDEN),
        one(golden=easier),
    }
    assert len(hashes) == 7


def test_a_default_written_out_changes_nothing() -> None:
    written = (Serving(match=HardwareMatch(arch=None, accelerator=None), repository=RepositoryRuntime()),)
    digest = digest_of("1.0")
    assert hash_revision(model="m", digest=digest, serving=written, golden=None) == hash_revision(
        model="m", digest=digest, serving=PLAIN, golden=None
    )


def test_a_mirror_or_a_second_verification_is_the_same_revision() -> None:
    release = Release(
        digest=digest_of("1.0"),
        version="1.0",
        seq=7,
        variants=(variant("fp32"),),
        signed_by=("ada",),
        verified_at="2026-03-01T12:00:00Z",
    )
    spec = EdgeModelSpec.model_validate(
        {
            "source": {"repository": "registry.example/vision/weld-qc", "tag": "1.0"},
            "verify": {"keys": {"secretRef": "keys"}},
            "serving": [{"repository": {}}],
        }
    )
    first = compute_revision(model="weld-qc", release=release, source_repository="registry.example/vision/weld-qc", spec=spec)
    later = release.model_copy(update={"verified_at": "2026-04-01T12:00:00Z"})
    mirror = compute_revision(model="weld-qc", release=later, source_repository="mirror.example/weld-qc", spec=spec)
    assert first.hash == mirror.hash
    assert (first.version, first.seq, first.repository) == ("1.0", 7, "registry.example/vision/weld-qc")
    assert first.short == first.hash[:8]
