"""What a site says of its hardware, and what a person overrides."""

from pathlib import Path

import pytest

from edgefleet.api.site import Hardware
from edgefleet.site.hardware import HardwareInvalid, declare_hardware, discover_hardware

FOUND = Hardware(arch="amd64", memory=1 << 30, features=("avx2",))


def test_this_machine_is_discovered() -> None:
    found = discover_hardware()
    assert found.arch in ("amd64", "arm64", "arm")
    assert found.memory > 1 << 26
    assert found.declared == ()


def test_features_and_accelerators_are_read_from_the_system(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx2 avx512_vnni sse\nflags: amx_int8\n")
    (tmp_path / "dev" / "nvidiactl").touch()
    found = discover_hardware(tmp_path)
    assert (found.features, found.accelerator) == (("avx2", "avx512_vnni"), "nvidia")
    assert discover_hardware(tmp_path / "proc").features == ()


def test_declared_facts_replace_discovered_ones_and_are_named(tmp_path: Path) -> None:
    file = tmp_path / "hardware.yaml"
    file.write_text("features: [avx512_vnni]\naccelerator: hailo\n")
    found = declare_hardware(FOUND, file)
    assert (found.arch, found.memory) == ("amd64", 1 << 30)
    assert (found.features, found.accelerator) == (("avx512_vnni",), "hailo")
    assert found.declared == ("accelerator", "features")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write one or more of"),
        ("- arch", "write one or more of"),
        ("gpu: yes", "unknown fact 'gpu'"),
        ("declared: []", "unknown fact 'declared'"),
        ("memory: much", "memory is 'much'"),
        ("features: avx2", "features is 'avx2'"),
        ("arch: 'AMD 64'", "arch is 'AMD 64'"),
        ("a: [", "hardware.yaml"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "hardware.yaml"
    file.write_text(text)
    with pytest.raises(HardwareInvalid, match=complaint.replace("[", r"\[")):
        declare_hardware(FOUND, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HardwareInvalid, match=r"absent\.yaml"):
        declare_hardware(FOUND, tmp_path / "absent.yaml")
