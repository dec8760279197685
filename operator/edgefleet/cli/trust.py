"""`edgefleet trust`: make the keys and the trust bundle that sites believe, show a bundle, change its publishers."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.api.meta import format_time
from edgefleet.cli.artifacts import naming, read_private_key, read_public_keys, require_name
from edgefleet.cli.output import EXIT_CODES, CommandFailed, Format, FormatOption, print_facts, print_json, print_note, print_table, short
from edgefleet.trust.bundle import TrustBundle, make_bundle, make_root, open_bundle, read_roots, require_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.errors import rejecting
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PrivateKey, PublicKey
from edgefleet.trust.publishers import Publisher

app = typer.Typer(help="Make, show and change what sites believe.", epilog=EXIT_CODES, no_args_is_help=True)

ROOT_LIFETIME = timedelta(days=3650)
ROOT, BUNDLE = "root.json", "bundle.json"

ModelsOption = Annotated[list[str], typer.Option("--model", help="Model name that the publisher may release; may be given several times.")]
DaysOption = Annotated[
    int, typer.Option(min=1, max=3650, help="How long the bundle is good. Sites activate nothing under one past its end.")
]


@app.command(epilog=EXIT_CODES)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where keys and bundle go; made if it is not there.")],
    model: ModelsOption,
    root_keys: Annotated[int, typer.Option(min=1, max=8, help="How many root keys to make.")] = 1,
    root_threshold: Annotated[int, typer.Option(min=1, max=8, help="How many of them must sign a bundle.")] = 1,
    valid_days: DaysOption = 365,
) -> None:
    """Make root keys, a hub key, a publisher key and trust bundle version 1. Nothing is overwritten.

    \b
      root-N.key       sign bundles: keep them off line, apart from each other
      root.json        sites pin this, once:   edgefleet agent --trusted-root root.json
      hub.key          the hub signs assignments with it, as a Secret:
                       kubectl -n edgefleet-system create secret generic hub-key --from-file=hub.key
      publisher.key    signs releases:         edgefleet model push --key publisher.key
      publisher.pub    for the hub's gate, as a Secret named in EdgeModel spec.verify.keys
      bundle.json      what sites believe:     kubectl -n edgefleet-system create configmap trust-bundle --from-file=bundle.json
    """
    if root_threshold > root_keys:
        raise typer.BadParameter(f"{root_threshold} of {root_keys} keys cannot sign", param_hint="--root-threshold")
    models = [require_name(name, "--model") for name in model]
    roots = [PrivateKey.generate() for _ in range(root_keys)]
    hub, publisher = PrivateKey.generate(), PrivateKey.generate()
    now = datetime.now(UTC)
    root = make_root(
        [key.public for key in roots],
        signers=roots,
        threshold=root_threshold,
        version=1,
        expires_at=now + ROOT_LIFETIME,
    )
    bundle = make_bundle(
        roots=[root],
        signers=roots,
        version=1,
        content=BundleContent({name: Publisher((publisher.public,)) for name in models}, (hub.public,)),
        expires_at=now + timedelta(days=valid_days),
    )
    private = {f"root-{number}.key": key.to_pem().encode() for number, key in enumerate(roots, start=1)}
    private |= {"hub.key": hub.to_pem().encode(), "publisher.key": publisher.to_pem().encode()}
    public = {"hub.pub": hub.public.to_pem().encode(), "publisher.pub": publisher.public.to_pem().encode(), ROOT: root, BUNDLE: bundle}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    present = sorted(name for name in {*private, *public} if (folder / name).exists())
    if present:
        raise CommandFailed("AlreadyExists", f"{folder} holds {', '.join(present)}: keys are never overwritten, choose another folder")
    for name, data in private.items():
        _write_new(folder / name, data, 0o600)
    for name, data in public.items():
        _write_new(folder / name, data, 0o644)
    print_note(f"{len(private)} private keys and bundle version 1 are in {folder}; take the root keys off line")
    print_table(("FILE", "KEY"), [(name, short(PrivateKey.from_pem(data).public.id)) for name, data in private.items()])


@app.command(epilog=EXIT_CODES)
def show(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    root: Annotated[Path | None, typer.Option(help="The root that sites pinned; default: root.json beside the bundle.")] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Verify a trust bundle under the pinned root, as a site does, and show whom it believes."""
    found = _open(bundle, root)
    if output is Format.JSON:
        print_json(
            {
                "version": found.version,
                "expiresAt": format_time(found.expires_at),
                "hubKeys": [key.id for key in found.hub_keys],
                "publishers": {
                    model: {
                        "keys": [key.id for key in publisher.keys],
                        "identities": [one.id for one in publisher.keyless.identities] if publisher.keyless else [],
                        "threshold": publisher.threshold,
                        "minReleaseSeq": publisher.min_release_seq,
                    }
                    for model, publisher in found.publishers.items()
                },
            }
        )
        return
    hub_keys = [key.id for key in found.hub_keys]
    print_facts({"version": found.version, "expires": format_time(found.expires_at), "hub key": hub_keys})
    print_table(
        ("MODEL", "PUBLISHERS", "THRESHOLD", "LOWEST SEQUENCE"),
        [(model, " ".join(_names(entry)), entry.threshold, entry.min_release_seq) for model, entry in sorted(found.publishers.items())],
        title="publishers",
        folding=("PUBLISHERS",),
    )


@app.command("set-publisher", epilog=EXIT_CODES)
def set_publisher(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `trust init`, with the root keys in it.")],
    model: ModelsOption,
    key: Annotated[list[Path] | None, typer.Option("--key", help="Public key of a publisher (PEM); may be given several times.")] = None,
    identity: Annotated[
        list[str] | None,
        typer.Option(help="Subject of a Sigstore certificate, such as a workflow's URI; may be given several times."),
    ] = None,
    identity_regex: Annotated[
        list[str] | None, typer.Option(help="The same as a regular expression for the whole subject; all who match are one publisher.")
    ] = None,
    issuer: Annotated[str, typer.Option(help="URL of the OpenID Connect issuer that gave out the identities.")] = "",
    sigstore_root: Annotated[
        Path | None, typer.Option(help="trusted_root.json of the Sigstore; default: the one that the bundle has.", exists=True)
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, max=8, help="How many of the keys and identities must sign a release.")] = 1,
    min_seq: Annotated[int, typer.Option(min=0, help="Lowest release sequence that sites accept.")] = 0,
    valid_days: DaysOption = 365,
) -> None:
    """Write the next version of the bundle, with these publishers for these models; the others stay."""
    if not (key or identity or identity_regex):
        raise typer.BadParameter("name a publisher: --key, or --identity with --issuer", param_hint="--key")
    identities = _read_identities(issuer, identity or [], identity_regex or [])
    old = _open(folder / BUNDLE, folder / ROOT)
    distinct: dict[str, PublicKey] = {entry.id: entry for entry in read_public_keys(key or ())}
    if threshold > len(distinct) + len(identities):
        raise typer.BadParameter(f"{threshold} of {len(distinct) + len(identities)} publishers cannot sign", param_hint="--threshold")
    root = _read_sigstore_root(sigstore_root) if sigstore_root else _held_root(old)
    if identities and root is None:
        raise typer.BadParameter("identities need the trusted_root.json of their Sigstore", param_hint="--sigstore-root")
    keyless = Keyless(identities, root) if identities and root else None
    changed = {require_name(name, "--model"): Publisher(tuple(distinct.values()), threshold, min_seq, keyless) for name in model}
    publishers = {name: _under(entry, root) for name, entry in {**old.publishers, **changed}.items()}
    signers = [read_private_key(path) for path in sorted(folder.glob("root-*.key"))]
    data = (folder / BUNDLE).read_bytes()
    new = make_bundle(
        roots=read_roots(data),
        signers=signers,
        version=old.version + 1,
        content=BundleContent(publishers, old.hub_keys, old.revoked),
        expires_at=datetime.now(UTC) + timedelta(days=valid_days),
    )
    # Refused here rather than at every site: too few root keys in the folder, for example.
    open_bundle(new, pinned_root=(folder / ROOT).read_bytes(), floor_version=old.version + 1, now=datetime.now(UTC))
    part = folder / (BUNDLE + ".new")
    part.unlink(missing_ok=True)
    _write_new(part, new, 0o644)
    part.replace(folder / BUNDLE)
    print_note(f"{folder / BUNDLE} is version {old.version + 1}; the hub hands it to the sites once it has it:")
    print_note(
        f"  kubectl -n edgefleet-system create configmap trust-bundle --from-file={BUNDLE}={folder / BUNDLE} "
        "--dry-run=client -o yaml | kubectl apply -f -"
    )


def _read_identities(issuer: str, subjects: list[str], patterns: list[str]) -> tuple[Identity, ...]:
    if bool(issuer) != bool(subjects or patterns):
        raise typer.BadParameter("--issuer and --identity (or --identity-regex) go together", param_hint="--issuer")
    with rejecting("IdentityInvalid", "--identity-regex"):
        found = [Identity(issuer, subject) for subject in subjects] + [Identity(issuer, subject_regex=one) for one in patterns]
    return tuple({one.id: one for one in found}.values())


def _read_sigstore_root(path: Path) -> bytes:
    # Loads Sigstore's library, which takes a second: only where it is needed.
    from edgefleet.trust.sigstore_root import open_root

    data = path.read_bytes()
    with naming(path):
        open_root(data)
    return data


def _held_root(bundle: TrustBundle) -> bytes | None:
    return next((entry.keyless.trusted_root for entry in bundle.publishers.values() if entry.keyless), None)


def _under(publisher: Publisher, root: bytes | None) -> Publisher:
    """A bundle has one trusted root: a new one is for everybody in it."""
    if publisher.keyless is None or root is None:
        return publisher
    return replace(publisher, keyless=Keyless(publisher.keyless.identities, root))


def _names(publisher: Publisher) -> list[str]:
    return [short(key.id) for key in publisher.keys] + ([one.id for one in publisher.keyless.identities] if publisher.keyless else [])


def _open(bundle: Path, root: Path | None) -> TrustBundle:
    data = bundle.read_bytes()
    pinned = root or bundle.parent / ROOT
    if not pinned.is_file():
        raise CommandFailed("RootMissing", f"{pinned} is not there: it is the root that sites pinned (`trust show` takes it as --root)")
    with naming(pinned):
        require_root(pinned.read_bytes())
    with naming(bundle):
        return open_bundle(data, pinned_root=pinned.read_bytes(), floor_version=0, now=datetime.now(UTC))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
