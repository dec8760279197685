"""Which agents a hub speaks with."""

import pytest

from edgefleet.core.skew import judge_skew


@pytest.mark.parametrize(
    ("agent", "hub", "skew"),
    [
        ("1.4.0", "1.4.7", "same"),
        ("1.4.0.dev3+g12", "1.4.0", "same"),
        ("1.3.9", "1.4.0", "behind"),
        ("1.2.0", "1.4.0", "behind"),
        ("1.1.9", "1.4.0", "too_old"),
        ("1.5.0", "1.4.9", "newer"),
        ("0.9.0", "1.0.0", "too_old"),
        ("2.0.0", "1.9.0", "newer"),
        ("1.10.0", "1.9.0", "newer"),
        ("", "1.4.0", "unreadable"),
        ("latest", "1.4.0", "unreadable"),
        ("1", "1.4.0", "unreadable"),
    ],
)
def test_two_minor_versions_back_are_understood(agent: str, hub: str, skew: str) -> None:
    assert judge_skew(agent, hub) == skew
