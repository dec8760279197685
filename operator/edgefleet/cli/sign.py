"""`edgefleet model sign`: one more publisher stands for a release that is there already.

What it attests is what trusted publishers attested before it, or what the options say; never silently something else.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.cli.artifacts import (
    CaOption,
    fetch_release_verdict,
    fetch_variants,
    model_of,
    open_client,
    read_private_key,
    read_reference,
    require_name,
    sign_release,
)
from edgefleet.cli.output import CommandFailed, Format, FormatOption, print_facts, print_json, print_note
from edgefleet.cli.verification import Trust, trusting
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.errors import Rejected
from edgefleet.trust.release import RELEASE_PREDICATE
from edgefleet.trust.signatures import read_claim


@trusting(key="--signer", leave=("threshold", "min_seq", "require_predicate"))
def sign(
    ref: Annotated[str, typer.Argument(metavar="REF", help="registry/repository:tag or registry/repository@sha256:...")],
    key: Annotated[Path, typer.Option(help="Private key that signs (PEM).")],
    trust: Trust,
    name: Annotated[str | None, typer.Option("--name", help="Model name; default: last part of the repository.")] = None,
    version: Annotated[str | None, typer.Option(help="Version; default: what trusted publishers attested.")] = None,
    seq: Annotated[int | None, typer.Option(min=0, help="Release sequence; default: what trusted publishers attested.")] = None,
    contradict: Annotated[bool, typer.Option("--contradict", help="Attest it although somebody attested something else.")] = False,
    ca: CaOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Sign a release as one more publisher. It adds this key's signature and attestation; again is harmless.

    Version and sequence are taken from what publishers that you trust attested (--signer with their public keys, or --bundle with --root),
    or given. Nothing is signed that contradicts an attestation that is there, whoever made it.

    \b
      edgefleet model sign registry.example/digits:1.0 --key second.key --signer first.pub
      edgefleet model sign registry.example/digits:1.0 --key second.key --version 1.0 --seq 1

    Without a key it is cosign that signs; release.json is in docs/security.md:

    \b
      cosign sign registry.example/digits@sha256:...
      cosign attest --type https://edgefleet.io/attestation/release/v1 --predicate release.json registry.example/digits@sha256:...
    """
    reference = read_reference(ref)
    model = require_name(name or model_of(reference), "--name")
    signer = read_private_key(key)
    if (version is None) is not (seq is None):
        raise typer.BadParameter("--version and --seq go together", param_hint="--seq")
    publisher = trust.find_publisher(model, counting=1) if version is None else None
    repository = reference.repository
    with open_client(ca) as client:
        digest = client.resolve(reference)
        if publisher is not None:
            verdict, _ = fetch_release_verdict(client, repository, digest, model=model, publisher=publisher)
            version, seq = verdict.version, verdict.seq
        facts: dict[str, Any] = {"model": model, "version": version, "seq": seq}
        said = {"model": model, "version": version, "releaseSeq": seq, "variants": fetch_variants(client, repository, digest)}
        for claim in _find_contradictions(fetch_bundles(client, repository, digest).bundles, digest, said):
            if not contradict:
                raise CommandFailed("AttestationContradicted", f"{claim}: nothing is signed; if it is wrong, say --contradict")
            print_note(f"contradicted: {claim}")
        print_note("signed" if sign_release(client, repository, digest, signer, **facts) else "was signed before")
    found = {"digest": digest, **facts}
    if output is Format.JSON:
        print_json({"reference": str(reference), **found, "signedBy": signer.public.id})
    else:
        print_facts({**found, "signer": signer.public.id})


def _find_contradictions(bundles: tuple[bytes, ...], digest: str, said: dict[str, Any]) -> list[str]:
    """What attestations of this release say otherwise. That nobody has verified them does not matter: it only keeps from signing."""
    found = []
    for bundle in bundles:
        try:
            claim = read_claim(bundle)
        except Rejected:
            continue
        if claim.statement.predicate_type != RELEASE_PREDICATE or digest not in claim.statement.digests:
            continue
        other = claim.statement.predicate
        wrong = [field for field, value in said.items() if field in other and other[field] != value]
        if wrong:
            found.append(
                f"an attestation that names {claim.names[:200]} says {wrong[0]} {str(other[wrong[0]])[:200]}, "
                f"to be signed is {wrong[0]} {str(said[wrong[0]])[:200]}"
            )
    return found
