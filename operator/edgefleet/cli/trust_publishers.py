"""`edgefleet trust add-publisher | revoke`: whom sites believe, and whom and what not any more."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.api.meta import parse_time
from edgefleet.api.quantities import DIGEST_PATTERN
from edgefleet.cli.artifacts import naming, read_public_keys, require_name
from edgefleet.cli.output import CommandFailed, print_note
from edgefleet.cli.trust_folder import DaysOption, DryRunOption, Folder, FolderArgument, RootKeysOption, Signing
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PublicKey
from edgefleet.trust.publishers import Publisher, Revoked

ModelsOption = Annotated[list[str], typer.Option("--model", help="Model name that the publisher may release; may be given several times.")]
IdentityOption = Annotated[
    list[str] | None, typer.Option(help="Subject of a Sigstore certificate, such as a workflow's URI; may be given several times.")
]
RegexOption = Annotated[
    list[str] | None, typer.Option(help="The same as a regular expression for the whole subject; all who match are one publisher.")
]
IssuerOption = Annotated[str, typer.Option(help="URL of the OpenID Connect issuer that gave out the identities.")]


class TooFew(StrEnum):
    """What becomes of a model that a revocation leaves with fewer publishers than must sign."""

    REFUSE = "refuse"
    LOWER = "lower"
    DROP = "drop"


def add_publisher(
    folder: FolderArgument,
    model: ModelsOption,
    key: Annotated[list[Path] | None, typer.Option("--key", help="Public key of a publisher (PEM); may be given several times.")] = None,
    identity: IdentityOption = None,
    identity_regex: RegexOption = None,
    issuer: IssuerOption = "",
    sigstore_root: Annotated[
        Path | None, typer.Option(help="trusted_root.json of the Sigstore; default: the one that the bundle has.", exists=True)
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(min=1, max=8, help="How many of the keys and identities must sign a release; default: as it is, 1 at first."),
    ] = None,
    min_seq: Annotated[int | None, typer.Option(min=0, help="Lowest release sequence that sites accept; default: as it is.")] = None,
    predicate: Annotated[
        list[str] | None, typer.Option(help="Predicate type that a release must bear beside edgefleet's own; may be given several times.")
    ] = None,
    replace_all: Annotated[bool, typer.Option("--replace", help="These publishers and rules instead of those that are there.")] = False,
    valid_days: DaysOption = 365,
    root_key: RootKeysOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Let publishers release models. They join those who may already; with --replace, they take their place."""
    wanted = [require_name(name, "--model") for name in model]
    named = bool(key or identity or identity_regex)
    if not named and (replace_all or not (threshold or min_seq is not None or predicate or sigstore_root)):
        raise typer.BadParameter("name a publisher: --key, or --identity with --issuer", param_hint="--key")
    identities = read_identities(issuer, identity or [], identity_regex or [])
    found = Folder.open(folder)
    content = found.content
    root = _read_sigstore_root(sigstore_root) if sigstore_root else _held_root(content.publishers)
    if identities and root is None:
        raise typer.BadParameter("identities need the trusted_root.json of their Sigstore", param_hint="--sigstore-root")
    keys = read_public_keys(key or ())
    found.require_free(keys, "publisher")
    _require_not_revoked(content.revoked, keys, identities)
    changed = {}
    for name in wanted:
        old = None if replace_all else content.publishers.get(name)
        changed[name] = _join(old, keys, identities, root, threshold, min_seq, tuple(predicate or ()))
        if changed[name].threshold > len(changed[name].names):
            raise typer.BadParameter(
                f"{changed[name].threshold} of {len(changed[name].names)} publishers of {name} cannot sign", param_hint="--threshold"
            )
    # A bundle has one trusted root: a new one is for everybody in it.
    publishers = {name: _under(entry, root) for name, entry in {**content.publishers, **changed}.items()}
    signers = tuple(replace(one, publisher=_under(one.publisher, root)) for one in content.image_signers)
    found.propose(replace(content, publishers=publishers, image_signers=signers), Signing(root_key, valid_days, dry_run))


def revoke(
    folder: FolderArgument,
    digest: Annotated[list[str] | None, typer.Option(help="Digest of a release that nobody may run any more (sha256:...).")] = None,
    key: Annotated[list[str] | None, typer.Option(help="A publisher's key: its id (sha256:...) or a file with its public half.")] = None,
    identity: IdentityOption = None,
    identity_regex: RegexOption = None,
    issuer: IssuerOption = "",
    stop_serving_by: Annotated[
        str, typer.Option(metavar="TIME", help="With --digest: a site that has nothing else to serve goes on until this time (RFC 3339).")
    ] = "",
    too_few: Annotated[
        TooFew,
        typer.Option(help="A model is left with fewer publishers than must sign: lower its threshold, or drop it from the bundle."),
    ] = TooFew.REFUSE,
    valid_days: DaysOption = 365,
    root_key: RootKeysOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Let sites believe a release or a publisher no more. A key or identity leaves all models; a digest counts whoever signed it."""
    if not (digest or key or identity or identity_regex):
        raise typer.BadParameter("name what is revoked: --digest, --key, or --identity with --issuer", param_hint="--digest")
    for one in digest or ():
        if not re.fullmatch(DIGEST_PATTERN, one):
            raise typer.BadParameter(f"{one!r} is not sha256: and 64 hexadecimal digits", param_hint="--digest")
    identities = read_identities(issuer, identity or [], identity_regex or [])
    by = _read_time(stop_serving_by, digest)
    found = Folder.open(folder)
    content = found.content
    keys = frozenset(read_key_id(one, "--key") for one in key or ())
    for one, (part, command) in found.parts.items():
        if one in keys and part != "publisher":
            raise CommandFailed("NotAPublisher", f"{one} is a {part} key: `edgefleet trust {command}` takes it out")
    for one in sorted(keys - found.parts.keys() - content.revoked.keys):
        print_note(f"note: {one} is no publisher of this bundle; it is revoked all the same")
    known = {one.id for one in content.revoked.identities}
    revoked = replace(
        content.revoked,
        digests=content.revoked.digests | frozenset(digest or ()),
        stops={**content.revoked.stops, **(dict.fromkeys(digest or (), by) if by else {})},
        keys=content.revoked.keys | keys,
        identities=(*content.revoked.identities, *(one for one in identities if one.id not in known)),
    )
    publishers = _without(content.publishers, revoked, too_few)
    found.propose(replace(content, publishers=publishers, revoked=revoked), Signing(root_key, valid_days, dry_run))


def _read_time(text: str, digests: list[str] | None) -> datetime | None:
    if not text:
        return None
    if not digests:
        raise typer.BadParameter("only what --digest names can stop serving", param_hint="--stop-serving-by")
    try:
        found = parse_time(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-01-31T18:00:00Z", param_hint="--stop-serving-by")
    return found


def read_key_id(text: str, option: str) -> str:
    """The id of a key that is named by its id or by a file with its public half. Raises typer.BadParameter, Rejected."""
    if re.fullmatch(DIGEST_PATTERN, text):
        return text
    if not Path(text).is_file():
        raise typer.BadParameter(f"{text!r} is neither a key's id (sha256: and 64 digits, see `trust show`) nor a file", param_hint=option)
    return read_public_keys([Path(text)])[0].id


def read_identities(issuer: str, subjects: Sequence[str], patterns: Sequence[str]) -> tuple[Identity, ...]:
    """Identities of one issuer. Raises typer.BadParameter, Rejected(IdentityInvalid)."""
    if bool(issuer) != bool(subjects or patterns):
        raise typer.BadParameter("--issuer and --identity (or --identity-regex) go together", param_hint="--issuer")
    with rejecting("IdentityInvalid", "--identity-regex"):
        found = [Identity(issuer, subject) for subject in subjects] + [Identity(issuer, subject_regex=one) for one in patterns]
    return tuple({one.id: one for one in found}.values())


def _join(
    old: Publisher | None,
    keys: Sequence[PublicKey],
    identities: Sequence[Identity],
    root: bytes | None,
    threshold: int | None,
    min_seq: int | None,
    predicates: Sequence[str],
) -> Publisher:
    base = old or Publisher(())
    joined = {one.id: one for one in (*base.keys, *keys)}
    both = {one.id: one for one in (*base.identities, *identities)}
    return replace(
        base,
        keys=tuple(joined.values()),
        keyless=Keyless(tuple(both.values()), root) if both and root else None,
        threshold=base.threshold if threshold is None else threshold,
        min_release_seq=base.min_release_seq if min_seq is None else min_seq,
        predicates=tuple(dict.fromkeys((*base.predicates, *predicates))),
    )


def _without(publishers: Mapping[str, Publisher], revoked: Revoked, too_few: TooFew) -> dict[str, Publisher]:
    left, short = {}, []
    for model, entry in publishers.items():
        keys = tuple(key for key in entry.keys if key.id not in revoked.keys)
        identities = tuple(one for one in entry.identities if not _is_revoked(one, revoked))
        keyless = Keyless(identities, entry.keyless.trusted_root) if entry.keyless and identities else None
        kept = replace(entry, keys=keys, keyless=keyless)
        if len(kept.names) >= kept.threshold:
            left[model] = kept
        elif too_few is TooFew.LOWER and kept.names:
            left[model] = replace(kept, threshold=len(kept.names))
        elif too_few is not TooFew.DROP:
            short.append(f"{model} ({len(kept.names)} left, {kept.threshold} must sign)")
    if short:
        raise CommandFailed(
            "PublishersTooFew",
            f"without what is revoked too few publishers are left for {', '.join(sorted(short))}: add others first "
            "(`edgefleet trust add-publisher`), or say --too-few lower (while one is left) or --too-few drop",
        )
    return left


def _is_revoked(identity: Identity, revoked: Revoked) -> bool:
    return any(one.id == identity.id or (identity.subject and one.admits(identity.issuer, identity.subject)) for one in revoked.identities)


def _require_not_revoked(revoked: Revoked, keys: Sequence[PublicKey], identities: Sequence[Identity]) -> None:
    for key in keys:
        if key.id in revoked.keys:
            raise Rejected("PublisherRevoked", f"{key.id} is revoked in this bundle: whatever it signs is refused")
    for one in identities:
        if _is_revoked(one, revoked):
            raise Rejected("PublisherRevoked", f"{one.id} is revoked in this bundle: whatever it signs is refused")


def _read_sigstore_root(path: Path) -> bytes:
    # Loads Sigstore's library, which takes a second: only where it is needed.
    from edgefleet.trust.sigstore_root import open_root

    data = path.read_bytes()
    with naming(path):
        open_root(data)
    return data


def _held_root(publishers: Mapping[str, Publisher]) -> bytes | None:
    return next((entry.keyless.trusted_root for entry in publishers.values() if entry.keyless), None)


def _under(publisher: Publisher, root: bytes | None) -> Publisher:
    if publisher.keyless is None or root is None:
        return publisher
    return replace(publisher, keyless=Keyless(publisher.keyless.identities, root))
