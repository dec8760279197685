"""Credentials as `docker login`, `oras login` and `cosign login` leave them, and as a Kubernetes pull secret carries them."""

import base64
import json
from pathlib import Path

from edgefleet.oci.errors import Unauthorised
from edgefleet.oci.transport import Credentials

MAX_CONFIG_BYTES = 1 << 20


def read_docker_config(path: Path) -> dict[str, Credentials]:
    """Credentials by registry, from the `auths` of a docker config.json. Raises Unauthorised if it cannot be read, OSError."""
    with path.open("rb") as file:
        return parse_docker_config(file.read(MAX_CONFIG_BYTES), str(path))


def parse_docker_config(data: bytes, what: str) -> dict[str, Credentials]:
    """Credentials by registry (`host` or `host:port`). Raises Unauthorised, naming `what`; the message quotes nothing of the content."""
    found = {}
    try:
        for registry, entry in (json.loads(data).get("auths") or {}).items():
            host = registry.removeprefix("https://").removeprefix("http://").partition("/")[0]
            if entry.get("auth"):
                username, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
                found[host] = Credentials(username, password)
            elif entry.get("username"):
                found[host] = Credentials(entry["username"], entry.get("password", ""))
    except (ValueError, AttributeError, TypeError) as error:
        # The cause may quote the file, and with it a password.
        raise Unauthorised(f"{what}: not a docker config.json: {type(error).__name__}") from None
    return found
