"""Which times the demo shortens against real use. Nothing else differs: the manifests, commands and programs are a user's."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shortened:
    """`key: real` becomes `key: demo` in one manifest; without a file it is a flag that the stage passes."""

    what: str
    key: str
    real: str
    demo: str
    file: str = ""


RENEW = Shortened("the agents' heartbeat and report", "--renew", "60s", "2s")
SHORTENED = (
    Shortened("how often a tag is looked up", "interval", "10m", "2s", "model.yaml"),
    Shortened("how often a tag is looked up", "interval", "10m", "2s", "retail.yaml"),
    Shortened("how long a wave is watched at least", "min", "30m", "5s", "policy.yaml"),
    Shortened("silence after which a site is skipped", "skipAfter", "1h", "60s", "policy.yaml"),
    RENEW,
)


def shorten(text: str, file: str) -> str:
    """The manifest with demo times. Raises ValueError where it no longer holds the time that this table names."""
    for entry in SHORTENED:
        if entry.file == file:
            old, new = f"{entry.key}: {entry.real}\n", f"{entry.key}: {entry.demo}\n"
            if text.count(old) != 1:
                raise ValueError(f"{file}: expected exactly one line `{old.strip()}`, found {text.count(old)}: change times.py with it")
            text = text.replace(old, new)
    return text


def read_manifest(folder: Path, file: str, replacements: dict[str, str]) -> str:
    """A manifest with demo times and the addresses of this run. Raises ValueError for a replacement that does not occur."""
    text = shorten((folder / file).read_text(), file)
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text
