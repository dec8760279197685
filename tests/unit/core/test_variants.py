"""Which variant and which serving entry fit a site's hardware."""

import pytest

from edgefleet.api.model import HardwareMatch, RepositoryRuntime, Serving, Variant
from edgefleet.api.site import Hardware
from edgefleet.core.variants import fit_serving, fit_variant
from tests.unit.core.facts_of import variant

GPU = Hardware(arch="amd64", accelerator="nvidia", memory=8 << 30, features=("avx512", "vnni"))
CPU = Hardware(arch="amd64", memory=1 << 30)

PLAIN = variant("fp32")
QUANTISED = variant("int8", features=("vnni",))
CUDA = variant("cuda", accelerator="nvidia")
BIG = variant("big", min_memory=4 << 30)
ARM = variant("arm", arch="arm64")
WANTED = variant("wanted", priority=5)


@pytest.mark.parametrize(
    ("variants", "hardware", "expected"),
    [
        pytest.param([ARM], CPU, None, id="other-arch"),
        pytest.param([CUDA], CPU, None, id="accelerator-missing"),
        pytest.param([QUANTISED], CPU, None, id="feature-missing"),
        pytest.param([BIG], CPU, None, id="too-little-memory"),
        pytest.param([], CPU, None, id="none-published"),
        pytest.param([PLAIN], GPU, "fp32", id="asks-for-less"),
        pytest.param([PLAIN, QUANTISED], GPU, "int8", id="more-features-first"),
        pytest.param([QUANTISED, CUDA], GPU, "cuda", id="accelerator-before-features"),
        pytest.param([PLAIN, BIG], GPU, "big", id="more-memory-first"),
        pytest.param([CUDA, WANTED], GPU, "wanted", id="priority-before-all"),
        pytest.param([variant("b"), variant("a")], GPU, "a", id="then-by-name"),
    ],
)
def test_fit_variant(variants: list[Variant], hardware: Hardware, expected: str | None) -> None:
    found = fit_variant(variants, hardware)
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        pytest.param([{}], 0, id="empty-matches-all"),
        pytest.param([{"arch": "arm64"}, {"arch": "amd64"}], 1, id="first-that-fits"),
        pytest.param([{"accelerator": "tpu"}, {}], 1, id="other-accelerator"),
        pytest.param([{"arch": "amd64", "accelerator": "nvidia"}], 0, id="both"),
        pytest.param([{"arch": "arm64"}], None, id="none"),
    ],
)
def test_fit_serving(matches: list[dict[str, str]], expected: int | None) -> None:
    serving = [Serving(match=HardwareMatch(**match), repository=RepositoryRuntime()) for match in matches]
    assert fit_serving(serving, GPU) is (None if expected is None else serving[expected])
