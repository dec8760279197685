"""The files of a site's identity, in the folder `identity` of its state.

    hub.json      what the site joined as: pinned
    site.pem      its certificate, with its key: one file, so that a key never lies beside the certificate of another
    next-*.key    a key that a certificate was asked for, kept until it comes
    note.json     what the agent said last, for people at the site

When which is written is decided in identity.py.
"""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from edgefleet.api.join import JoinFile
from edgefleet.api.meta import Schema, format_time
from edgefleet.site.durable import write_durably
from edgefleet.trust.errors import Rejected
from edgefleet.trust.identity import ClientCertificate, read_certificate
from edgefleet.trust.keys import PrivateKey

PINNED, OWN, NOTE = "hub.json", "site.pem", "note.json"


class IdentityInvalid(Exception):
    """A join file, or a state folder, that no site can be. The message names the file and what to do."""


class Pinned(Schema):
    """What stays the same for the life of the state folder (`site`, `root`), and what the last join file said (`hub`, `ca`); `token` is the
    hash of the token that was used, so that a restart does not use it again."""

    format_version: Literal[1] = 1
    site: str
    hub: str
    ca: str
    root: str
    token: str


class Note(Schema):
    """What was said last, for people at the site."""

    text: str = ""
    since: str = ""


def identity_folder(state: Path) -> Path:
    """Where the identity of a state folder is kept."""
    return state / "identity"


def read_join_file(path: Path) -> JoinFile:
    """Raises IdentityInvalid."""
    try:
        return JoinFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise IdentityInvalid(f"{path}: {error.strerror}: a join file was expected (`edgefleet site join` at the hub makes it)") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IdentityInvalid(f"{path} is no join file of `edgefleet site join`: {where}: {first['msg']}") from error


def describe(folder: Path) -> dict[str, Any]:
    """What a state folder says of its site's identity, for people and `-o json`; `valid` is by this machine's clock.

    Raises IdentityInvalid if there is none.
    """
    pinned, held = read_pinned(folder), read_own(folder)
    try:
        note = Note.model_validate_json((folder / NOTE).read_bytes())
    except (OSError, ValidationError):
        note = Note()
    if pinned is None and not note.text:
        raise IdentityInvalid(f"{folder}: no site has joined with this state folder: start `edgefleet agent --join FILE` with it")
    return {
        "site": pinned.site if pinned else None,
        "hub": pinned.hub if pinned else None,
        "valid": held is not None and held.begins_at <= datetime.now(UTC) < held.ends_at,
        "endsAt": format_time(held.ends_at) if held else None,
        "note": note.text,
        "since": note.since or None,
    }


def load_or_make_key(path: Path) -> PrivateKey:
    """A key to ask with. It is on disk before it is told: an answer that comes after a crash is not lost."""
    with suppress(FileNotFoundError, Rejected):
        return PrivateKey.from_pem(path.read_bytes())
    key = PrivateKey.generate()
    write_durably(path, key.to_pem().encode())
    return key


def read_pinned(folder: Path) -> Pinned | None:
    """What the site joined as; None before that. Raises IdentityInvalid."""
    path = folder / PINNED
    try:
        return Pinned.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError as error:
        raise IdentityInvalid(
            f"{path} cannot be read ({error.errors()[0]['msg']}): restore it, or remove its folder and join anew"
        ) from error


def read_own(folder: Path) -> ClientCertificate | None:
    """The site's certificate; None before the first. Raises IdentityInvalid."""
    path = folder / OWN
    try:
        return read_certificate(path.read_bytes()) if path.exists() else None
    except Rejected as error:
        raise IdentityInvalid(f"{path} cannot be read ({error.message}): remove it and join anew") from error


def digest_token(token: str) -> str:
    """How a used token is remembered."""
    return hashlib.sha256(token.encode()).hexdigest()
