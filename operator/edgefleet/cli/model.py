"""`edgefleet model`: push, verify, inspect and pull releases of models."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.api.meta import format_time
from edgefleet.cli.artifacts import (
    CaOption,
    PrivateKeyOption,
    fetch_release_verdict,
    model_of,
    open_client,
    read_private_key,
    read_reference,
    require_tag,
    sign_release,
)
from edgefleet.cli.output import (
    EXIT_CODES,
    CommandFailed,
    Format,
    FormatOption,
    print_facts,
    print_json,
    print_note,
    print_table,
    short,
    show_size,
    showing_bytes,
)
from edgefleet.cli.recipe import read_recipe
from edgefleet.cli.verification import Trust, print_signers, show_signers, telling, trusting
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import RegistryError
from edgefleet.oci.fetch import fetch
from edgefleet.oci.index import fetch_index, fetch_variant
from edgefleet.oci.push import push_model, tag_manifest
from edgefleet.oci.reference import Reference
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.errors import Rejected
from edgefleet.trust.release import GOLDEN_PREDICATE, RELEASE_PREDICATE, SIGN_PREDICATE
from edgefleet.trust.signatures import read_claim

app = typer.Typer(help="Push, verify, inspect and pull releases of models.", epilog=EXIT_CODES, no_args_is_help=True)

_KNOWN = {SIGN_PREDICATE: "signature", RELEASE_PREDICATE: "release", GOLDEN_PREDICATE: "golden set"}

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="registry/repository:tag or registry/repository@sha256:...")]
NameOption = Annotated[str | None, typer.Option("--name", help="Model name that must be attested; default: last part of the repository.")]


@app.command(epilog=EXIT_CODES)
def push(
    ref: Annotated[str, typer.Argument(metavar="REF", help="registry/repository:tag")],
    recipe_file: Annotated[Path | None, typer.Option("--from", help="YAML that describes the release; see above.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="name=N,arch=A,file=F[,file=F...][,precision=P,accelerator=A,features=F+F,minMemory=512Mi,priority=N]"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Model name, the EdgeModel's metadata.name.")] = None,
    version: Annotated[str | None, typer.Option(help="Version, for people.")] = None,
    seq: Annotated[int | None, typer.Option(help="Release sequence: higher than that of any release before.")] = None,
    key: PrivateKeyOption = None,
    sign: Annotated[bool, typer.Option("--sign/--no-sign", help="Unsigned releases are refused by every hub and site.")] = True,
    ca: CaOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Push a release and sign it. One manifest per variant, one index, a signature and an attestation; again is harmless.

    The tag is moved last, when the signatures are there. Describe the release with options, or in a YAML file:

    \b
      name: digits
      version: "1.0"
      seq: 1
      variants:
        - {name: fp32, arch: amd64, files: {model.onnx: build/fp32.onnx}}
        - name: int8
          arch: amd64
          features: [avx512_vnni]   # the site must have all of them
          minMemory: 512Mi
          priority: 10              # highest wins where several fit
          files: {model.onnx: build/int8.onnx}

    \b
      edgefleet model push registry.example/digits:1.0 --from release.yaml --key trust/publisher.key
    """
    reference = read_reference(ref)
    tag = require_tag(reference)
    if sign and key is None:
        raise typer.BadParameter("give the publisher's private key, or --no-sign for a release that must be refused", param_hint="--key")
    recipe, folder = read_recipe(recipe_file, variant or [], {"name": name, "version": version, "seq": seq})
    signer = read_private_key(key) if sign and key else None
    variants = [entry.to_files(folder) for entry in recipe.variants]
    repository = reference.repository
    with open_client(ca) as client:
        digest = push_model(client, repository, name=recipe.name, version=recipe.version, variants=variants, say=print_note)
        if signer is not None:
            facts: dict[str, Any] = {"model": recipe.name, "version": recipe.version, "seq": recipe.seq}
            print_note("signed" if sign_release(client, repository, digest, signer, **facts) else "was signed before")
        _warn_of_sequence(client, reference, digest, recipe.seq)
        tag_manifest(client, repository, digest, tag)
    found = {
        "reference": str(reference),
        "digest": digest,
        "model": recipe.name,
        "version": recipe.version,
        "seq": recipe.seq,
        "signedBy": signer.public.id if signer else None,
    }
    if output is Format.JSON:
        print_json(found)
    else:
        print_facts(
            {
                "ref": reference,
                "digest": digest,
                "model": recipe.name,
                "version": recipe.version,
                "seq": recipe.seq,
                "signer": signer.public.id if signer else "nobody: hubs and sites will refuse it",
            }
        )


@app.command(epilog=EXIT_CODES)
@trusting()
def verify(ref: RefArgument, trust: Trust, name: NameOption = None, ca: CaOption = None, output: FormatOption = Format.TABLE) -> None:
    """Check a release as hub and sites do. Enough trusted publishers must have signed it, and attested it for the model.

    \b
      edgefleet model verify registry.example/digits:1.0 --key publisher.pub
      edgefleet model verify registry.example/digits:1.0 --bundle trust/bundle.json --root trust/root.json
    """
    reference = read_reference(ref)
    model = name or model_of(reference)
    publisher = trust.find_publisher(model)
    with open_client(ca) as client:
        digest = client.resolve(reference)
        with telling(output, digest=digest, model=model):
            verdict, _ = fetch_release_verdict(client, reference.repository, digest, model=model, publisher=publisher)
    facts = {"digest": digest, "model": model, "version": verdict.version, "seq": verdict.seq}
    created = format_time(verdict.created_at)
    if output is Format.JSON:
        told = {"createdAt": created, "signedBy": list(verdict.signed_by), "signers": show_signers(verdict.signers)}
        print_json({"verified": True, **facts, **told})
    else:
        print_facts({**facts, "created": created})
        print_signers(verdict.signers)


@app.command(epilog=EXIT_CODES)
def inspect(ref: RefArgument, ca: CaOption = None, output: FormatOption = Format.TABLE) -> None:
    """Show a release's variants and what is attached to it. Nothing is verified: `model verify` does that."""
    reference = read_reference(ref)
    with open_client(ca) as client:
        digest = client.resolve(reference)
        index = fetch_index(client, reference.repository, digest)
        claims, problems = _read_claims(client, reference, digest)
    if output is Format.JSON:
        print_json(
            {
                "reference": str(reference),
                "digest": digest,
                "variants": [variant.to_json_dict() for variant in index.variants],
                "attached": claims,
                "problems": problems,
            }
        )
        return
    print_facts({"ref": reference, "digest": digest})
    print_table(
        ("NAME", "SIZE", "ARCH", "ACCEL", "FEATURES", "MEMORY", "PRIO", "DIGEST"),
        [
            (
                variant.name,
                show_size(variant.size),
                variant.arch,
                variant.accelerator or "-",
                " ".join(variant.features) or "-",
                show_size(variant.min_memory) if variant.min_memory else "-",
                variant.priority,
                short(variant.digest),
            )
            for variant in index.variants
        ],
        title="variants",
        folding=("NAME", "FEATURES"),
    )
    if claims:
        print_table(
            ("CLAIM", "NAMES", "SAYS"),
            [(_KNOWN.get(claim["predicateType"], claim["predicateType"]), _named(claim), _brief(claim)) for claim in claims],
            title="attached (claims, not verified: `model verify` does that)",
            folding=("CLAIM", "NAMES", "SAYS"),
        )
    else:
        typer.echo("\nnothing is attached: hubs and sites will refuse it")
    for problem in problems:
        print_note(f"not used: {problem}")


@app.command(epilog=EXIT_CODES)
@trusting()
def pull(
    ref: RefArgument,
    variant: Annotated[str, typer.Option(help="Which variant.")],
    to: Annotated[Path, typer.Option(help="Folder for the files; made if it is not there.")],
    trust: Trust,
    name: NameOption = None,
    ca: CaOption = None,
) -> None:
    """Verify a release, then fetch the files of one variant. A broken pull goes on where it stopped.

    \b
      edgefleet model pull registry.example/digits:1.0 --variant fp32 --to model/ --key publisher.pub
    """
    reference = read_reference(ref)
    repository = reference.repository
    model = name or model_of(reference)
    publisher = trust.find_publisher(model)
    with open_client(ca) as client:
        digest = client.resolve(reference)
        fetch_release_verdict(client, repository, digest, model=model, publisher=publisher)
        variants = {found.name: found for found in fetch_index(client, repository, digest).variants}
        if variant not in variants:
            raise CommandFailed("NoVariant", f"{reference} has no variant {variant!r}; it has {', '.join(sorted(variants))}")
        for layer in fetch_variant(client, repository, digest, variants[variant].digest).layers:
            target = to / layer.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with showing_bytes(layer.path, layer.blob.size) as bar:
                fetch(client, repository, layer.blob, target, progress=lambda have, bar=bar: bar.update(0, completed=have))  # type: ignore[misc]
            print_note(f"{target} ({layer.blob.size:,} bytes)")


def _warn_of_sequence(client: RegistryClient, reference: Reference, digest: str, seq: int) -> None:
    """On stderr, where what the tag names so far is another release, of a sequence that is no lower."""
    try:
        before = client.resolve(reference)
        if before == digest:
            return
        claims, _ = _read_claims(client, reference, before)
    except RegistryError:
        # The tag is new, or names what nobody can read: nothing to compare with, and no reason not to push.
        return
    said = [claim["predicate"].get("releaseSeq") for claim in claims if claim["predicateType"] == RELEASE_PREDICATE]
    highest = max((one for one in said if isinstance(one, int)), default=-1)
    if highest >= seq:
        print_note(f"warning: {reference} was {before} until now, of sequence {highest}: a new release needs a higher --seq than that")


def _read_claims(client: RegistryClient, reference: Reference, digest: str) -> tuple[list[dict[str, Any]], list[str]]:
    found = fetch_bundles(client, reference.repository, digest)
    claims, problems = [], list(found.problems)
    for candidate in found.candidates:
        try:
            claim = read_claim(candidate.data)
        except Rejected as error:
            problems.append(f"{candidate.source}: {error.message}")
            continue
        claims.append(
            {
                "predicateType": claim.statement.predicate_type,
                **({"namesSubject": claim.names, "namesIssuer": claim.issuer} if claim.issuer else {"namesKey": claim.names}),
                "aboutThis": digest in claim.statement.digests,
                "predicate": dict(claim.statement.predicate),
                "source": candidate.source,
            }
        )
    return claims, problems


def _named(claim: dict[str, Any]) -> str:
    return short(claim["namesKey"]) if "namesKey" in claim else f"{claim['namesSubject']} of {claim['namesIssuer']}"


def _brief(claim: dict[str, Any]) -> str:
    said = " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in claim["predicate"].items())
    return said if claim["aboutThis"] else f"about another artifact {said}"
