"""`edgefleet model adopt`: make a release of a signed artifact that another tool pushed without an index."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from edgefleet.api.model import Variant
from edgefleet.api.quantities import parse_size
from edgefleet.cli.artifacts import (
    CaOption,
    open_client,
    read_private_key,
    read_reference,
    require_name,
    require_tag,
    sign_release,
)
from edgefleet.cli.output import Format, FormatOption, print_facts, print_json, print_note
from edgefleet.cli.verification import Trust, print_signers, show_signers, trusting
from edgefleet.oci.push import push_adopted, tag_manifest
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.release import verify_signature


@trusting(key="--signer", leave=("min_seq", "require_predicate"))
def adopt(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact: registry/repository:tag or registry/repository@sha256:...")],
    to: Annotated[str, typer.Option("--to", metavar="REF", help="The release: registry/repository:tag, in the same repository.")],
    trust: Trust,
    key: Annotated[Path, typer.Option(help="Private key that signs the release (PEM).")],
    name: Annotated[str, typer.Option(help="Model name, the EdgeModel's metadata.name.")],
    version: Annotated[str, typer.Option(help="Version, for people.")],
    seq: Annotated[int, typer.Option(min=0, help="Release sequence: higher than that of any release before.")],
    arch: Annotated[str, typer.Option(help="Architecture that it runs on, such as amd64.")],
    variant: Annotated[str, typer.Option(help="Name of its one variant.")] = "default",
    precision: Annotated[str, typer.Option(help="Such as fp32 or int8.")] = "",
    accelerator: Annotated[str | None, typer.Option(help="Accelerator that it needs.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Feature that the site must have; may be given several times.")] = None,
    min_memory: Annotated[str, typer.Option(help="Memory that the site must have, such as 512Mi.")] = "0",
    ca: CaOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Wrap a signed artifact that has no index into a release. It may be a ModelPack, or plain files of `oras push`; again is harmless.

    Its signature is verified first, and nothing is pushed without one. Files stay where they are. The tag is moved last.

    \b
      edgefleet model adopt registry.example/digits:raw --to registry.example/digits:1.0 --signer theirs.pub
        --key trust/publisher.key --name digits --version 1.0 --seq 1 --arch amd64
    """
    source, target = read_reference(ref), read_reference(to)
    tag = require_tag(target)
    require_name(name, "--name")
    if target.repository != source.repository:
        raise typer.BadParameter(f"{target.repository}: name {source.repository}, where the files are", param_hint="--to")
    own, trusted = read_private_key(key), trust.find_publisher(name)
    try:
        facts = Variant(
            name=variant,
            digest="sha256:" + "0" * 64,
            size=0,
            arch=arch,
            precision=precision,
            accelerator=accelerator,
            features=tuple(sorted(feature or ())),
            min_memory=parse_size(min_memory),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--min-memory") from error
    repository = source.repository
    with open_client(ca) as client:
        found = client.resolve(source)
        attached = fetch_bundles(client, repository, found)
        signers = verify_signature(digest=found, bundles=attached.bundles, publisher=trusted, problems=attached.problems)
        print_note(f"{found} is signed by {', '.join(one.name for one in signers)}")
        digest = push_adopted(client, repository, found, name=name, version=version, facts=facts)
        print_note("signed" if sign_release(client, repository, digest, own, model=name, version=version, seq=seq) else "was signed before")
        tag_manifest(client, repository, digest, tag)
    told = {"reference": str(target), "digest": digest, "adopted": found, "model": name, "version": version, "seq": seq}
    if output is Format.JSON:
        print_json({**told, "adoptedFrom": show_signers(signers), "signedBy": own.public.id})
    else:
        print_facts(told)
        print_signers(signers)
