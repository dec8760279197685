"""The small value types that every kind shares: names, durations, shares, sizes and digests.

Durations are Go strings (`1h30m`), shares are strings (`5%`), sizes are Kubernetes quantities (`20Gi`): what people already type
elsewhere. They stay strings in the API, because a revision is a hash over them, and are read into Python values here.
"""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import Field

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)]
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)]
RevisionHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Duration = Annotated[str, Field(pattern=r"^([0-9]{1,6}(ms|s|m|h)){1,4}$", max_length=32)]
Share = Annotated[str, Field(pattern=r"^(100|[0-9]{1,2})%$", max_length=4)]
Percent = Annotated[str, Field(pattern=r"^(100|[0-9]{1,2}(\.[0-9]{1,3})?)%$", max_length=8)]
"""A share with up to three decimals: `0.1%`."""
Increase = Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,3})?%$", max_length=9)]
"""How much more than usual, in percent of the usual; may exceed 100 %."""
Size = Annotated[str, Field(pattern=r"^[0-9]{1,12}(Ki|Mi|Gi|Ti)?$", max_length=16)]
Repository = Annotated[
    str,
    Field(
        pattern=r"^[a-zA-Z0-9.\[\]:-]{1,128}/[a-z0-9]+([._-][a-z0-9]+|__[a-z0-9]+|-+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$",
        max_length=255,
    ),
]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$", max_length=128)]
LabelKey = Annotated[str, Field(min_length=1, max_length=316)]
LabelValue = Annotated[str, Field(max_length=63)]
Reason = Annotated[str, Field(pattern=r"^([A-Z][A-Za-z]{0,63})?$", max_length=64)]
Message = Annotated[str, Field(max_length=1024)]
Timestamp = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_FACTORS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def parse_duration(text: str) -> timedelta:
    """Read a Go duration such as `1h30m`. Raises ValueError naming the text."""
    parts = re.findall(r"(\d+)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration: {text!r} (write for example 30s, 10m or 1h30m)")
    return timedelta(seconds=sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts))


def parse_share(text: str) -> int:
    """Read a share such as `5%` as whole percent, 0 to 100. Raises ValueError naming the text."""
    if not re.fullmatch(r"(100|\d{1,2})%", text):
        raise ValueError(f"not a share: {text!r} (write for example 5%)")
    return int(text[:-1])


def parse_percent(text: str) -> float:
    """Read a Percent or Increase such as `0.1%` as a fraction: 0.001. Raises ValueError naming the text."""
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?%", text):
        raise ValueError(f"not a percentage: {text!r} (write for example 0.1%)")
    # Divided once, from whole thousandths: 0.1% is the double nearest to 0.001 on every machine.
    whole, _, part = text[:-1].partition(".")
    return int(whole + part.ljust(3, "0")) / 100_000


def parse_size(text: str) -> int:
    """Read a size such as `20Gi` as bytes. Raises ValueError naming the text."""
    match = re.fullmatch(r"(\d{1,12})(Ki|Mi|Gi|Ti)?", text)
    if not match:
        raise ValueError(f"not a size: {text!r} (write for example 512Mi or 20Gi)")
    return int(match[1]) * _SIZE_FACTORS[match[2] or ""]
