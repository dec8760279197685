"""What a site runs on: found out, then overridden by a file that a person wrote at the site.

Overridden facts are named in `declared`, so that nobody takes them for measured. Which variant fits is decided in core/.
"""

import os
import platform
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgefleet.api.site import Hardware

FEATURES = frozenset({"avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve"})
"""Processor flags that tell variants apart, as /proc/cpuinfo names them."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_ACCELERATORS = (("nvidia", "/dev/nvidiactl"), ("nvidia", "/dev/nvhost-gpu"), ("amd", "/dev/kfd"), ("hailo", "/dev/hailo0"))
_FACTS = ("arch", "accelerator", "memory", "features")


class HardwareInvalid(Exception):
    """The hardware file is not usable; the message names field and remedy."""


def discover_hardware(root: Path = Path("/")) -> Hardware:
    """What this machine has. `root` is where proc/ and dev/ are."""
    machine = platform.machine()
    return Hardware(
        arch=_ARCHITECTURES.get(machine, machine),
        accelerator=next((name for name, device in _ACCELERATORS if (root / device.lstrip("/")).exists()), None),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        features=_read_features(root / "proc" / "cpuinfo"),
    )


def declare_hardware(found: Hardware, file: Path) -> Hardware:
    """`found` with the facts of a YAML file in place of the discovered ones. Raises HardwareInvalid."""
    try:
        declared: Any = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise HardwareInvalid(f"--hardware {file}: {' '.join(str(error).split())}") from error
    if not isinstance(declared, dict) or not declared:
        raise HardwareInvalid(f"--hardware {file}: write one or more of {', '.join(_FACTS)}, for example `features: [avx512_vnni]`")
    unknown = sorted(str(key) for key in declared.keys() - set(_FACTS))
    if unknown:
        raise HardwareInvalid(f"--hardware {file}: unknown fact {unknown[0]!r}; allowed are {', '.join(_FACTS)}")
    try:
        return Hardware.model_validate({**found.model_dump(), **declared, "declared": tuple(sorted(declared))})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HardwareInvalid(f"--hardware {file}: {field} is {first['input']!r}: {first['msg']}") from error


def _read_features(cpuinfo: Path) -> tuple[str, ...]:
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(FEATURES & set(value.split())))
    return ()
