"""Durations, shares and sizes as people type them."""

from datetime import timedelta

import pytest

from edgefleet.api.quantities import parse_duration, parse_percent, parse_share, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("1h1m1s1ms", 3661.001), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "1d", "1.5h", "h", "10m ", "-1s"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "percent"), [("0%", 0), ("5%", 5), ("100%", 100)])
def test_shares(text: str, percent: int) -> None:
    assert parse_share(text) == percent


@pytest.mark.parametrize("text", ["", "5", "101%", "5.5%", "-1%", "%"])
def test_not_a_share(text: str) -> None:
    with pytest.raises(ValueError, match="not a share"):
        parse_share(text)


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("1Ki", 1024), ("20Gi", 20 << 30), ("2Ti", 2 << 40), ("3Mi", 3 << 20)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "1G", "1.5Gi", "-1"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "fraction"), [("0.1%", 0.001), ("5%", 0.05), ("100%", 1.0), ("150%", 1.5), ("99.95%", 0.9995)])
def test_percentages_become_fractions(text: str, fraction: float) -> None:
    assert parse_percent(text) == fraction


@pytest.mark.parametrize("text", ["", "5", "%", "0.1234%", "-1%", "1e2%"])
def test_what_is_no_percentage_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="not a percentage"):
        parse_percent(text)
