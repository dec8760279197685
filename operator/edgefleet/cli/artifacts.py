"""What the commands for models and golden sets share: keys from files, a registry client for a person, and finding bundles
before believing one. Finding is oci's part, believing trust's; they meet here.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.api.quantities import NAME_PATTERN
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.credentials import read_docker_config
from edgefleet.oci.errors import ReferenceInvalid
from edgefleet.oci.index import name_variants, parse_index
from edgefleet.oci.push import attach_bundle
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.referrers import Discovery, fetch_bundles
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.release import (
    GOLDEN_PREDICATE,
    RELEASE_PREDICATE,
    SIGN_PREDICATE,
    GoldenFacts,
    ReleaseFacts,
    VerifiedGolden,
    VerifiedRelease,
    attest_golden,
    attest_release,
    sign_digest,
    verify_golden,
    verify_release,
)

PrivateKeyOption = Annotated[
    Path | None, typer.Option("--key", help="Private key that signs (PEM), such as DIR/publisher.key of `edgefleet trust init`.")
]
CaOption = Annotated[Path | None, typer.Option("--ca", help="CA certificates of the registry (PEM), instead of the system's.")]


def open_client(ca: Path | None) -> RegistryClient:
    """A client with the logins of docker, oras or cosign (`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`)."""
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    return RegistryClient(credentials=read_docker_config(config) if config.is_file() else {}, ca=ca)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A file that is rejected is named by the error."""
    try:
        yield
    except Rejected as error:
        raise Rejected(error.reason, f"{path}: {error.message}") from error


def read_reference(text: str) -> Reference:
    """The REF of a command line. Raises typer.BadParameter."""
    try:
        return Reference.parse(text)
    except ReferenceInvalid as error:
        raise typer.BadParameter(error.message, param_hint="REF") from error


def read_private_key(path: Path) -> PrivateKey:
    """Raises Rejected(KeyInvalid) naming the file, OSError."""
    with naming(path):
        return PrivateKey.from_pem(path.read_bytes())


def read_public_keys(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """Raises Rejected(KeyInvalid) naming the file, OSError."""
    keys = []
    for path in paths:
        data = path.read_bytes()
        if b"PRIVATE KEY-----" in data:
            raise Rejected("KeyInvalid", f"{path} is a private key: name the file with its public half, such as {path.stem}.pub")
        with naming(path):
            keys.append(PublicKey.from_pem(data))
    return tuple(keys)


def model_of(reference: Reference) -> str:
    """The model's name where none is given: the last part of the repository."""
    return reference.repository.path.rpartition("/")[2]


def require_tag(reference: Reference) -> str:
    """The tag to push under. Raises typer.BadParameter."""
    if reference.tag is None:
        raise typer.BadParameter(f"{reference}: push to a tag, such as {reference.repository}:1.0; the digest follows", param_hint="REF")
    return reference.tag


def require_name(name: str, option: str) -> str:
    """A model's name. Raises typer.BadParameter."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter(f"{name!r}: lower-case letters, digits and -, at most 40 characters", param_hint=option)
    return name


def fetch_release_verdict(
    client: RegistryClient, repository: Repository, digest: str, *, model: str, publisher: Publisher
) -> tuple[VerifiedRelease, Discovery]:
    """Find a release's bundles and believe them, also what they say of its variants. Raises RegistryError, Rejected."""
    found = fetch_bundles(client, repository, digest)
    verdict = verify_release(digest=digest, model=model, bundles=found.bundles, publisher=publisher, problems=found.problems)
    if verdict.variants:
        verdict.require_variants(fetch_variants(client, repository, digest))
    return verdict, found


def fetch_variants(client: RegistryClient, repository: Repository, digest: str) -> dict[str, str]:
    """The variants that an index names: name to digest. Raises RegistryError."""
    return name_variants(parse_index(client.fetch_manifest(repository, digest), f"{repository}@{digest}"))


def fetch_golden_verdict(
    client: RegistryClient, repository: Repository, digest: str, *, model: str, publisher: Publisher
) -> VerifiedGolden:
    """Find a golden set's bundles and believe them. Raises RegistryError, Rejected."""
    found = fetch_bundles(client, repository, digest)
    return verify_golden(digest=digest, model=model, bundles=found.bundles, publisher=publisher, problems=found.problems)


def sign_release(
    client: RegistryClient, repository: Repository, digest: str, key: PrivateKey, *, model: str, version: str, seq: int
) -> bool:
    """Attach this key's signature and attestation unless they are there; whether anything was written. Raises RegistryError."""
    try:
        verdict, _ = fetch_release_verdict(client, repository, digest, model=model, publisher=Publisher((key.public,)))
        if (verdict.version, verdict.seq) == (version, seq) and verdict.variants:
            return False
    except Rejected:
        pass
    variants = fetch_variants(client, repository, digest)
    facts = ReleaseFacts(model=model, version=version, release_seq=seq, created_at=datetime.now(UTC), variants=variants)
    bundles = [(SIGN_PREDICATE, sign_digest(key, digest)), (RELEASE_PREDICATE, attest_release(key, digest, facts))]
    _attach(client, repository, digest, bundles)
    return True


def sign_golden(client: RegistryClient, repository: Repository, digest: str, key: PrivateKey, *, model: str) -> bool:
    """Attach this key's signature and attestation unless they are there; whether anything was written. Raises RegistryError."""
    try:
        fetch_golden_verdict(client, repository, digest, model=model, publisher=Publisher((key.public,)))
        return False
    except Rejected:
        pass
    facts = GoldenFacts(model=model, created_at=datetime.now(UTC))
    bundles = [(SIGN_PREDICATE, sign_digest(key, digest)), (GOLDEN_PREDICATE, attest_golden(key, digest, facts))]
    _attach(client, repository, digest, bundles)
    return True


def _attach(client: RegistryClient, repository: Repository, digest: str, bundles: Iterable[tuple[str, bytes]]) -> None:
    for predicate_type, bundle in bundles:
        attach_bundle(client, repository, digest, bundle, predicate_type)
