"""`edgefleet golden`: push and verify golden sets, the labelled examples that a model must answer before it serves."""

from pathlib import Path
from typing import Annotated

import typer

from edgefleet.cli.artifacts import (
    CaOption,
    fetch_golden_verdict,
    open_client,
    read_private_key,
    read_reference,
    require_name,
    require_tag,
    sign_golden,
)
from edgefleet.cli.output import EXIT_CODES, Format, FormatOption, print_facts, print_json, print_note
from edgefleet.cli.verification import Trust, print_signers, show_signers, telling, trusting
from edgefleet.oci.golden import fetch_golden, parse_golden_lines
from edgefleet.oci.push import push_golden, tag_manifest

app = typer.Typer(help="Push and verify golden sets: labelled examples, an artifact of their own.", epilog=EXIT_CODES, no_args_is_help=True)

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="registry/repository:tag or registry/repository@sha256:...")]


@app.command(epilog=EXIT_CODES)
def push(
    ref: Annotated[str, typer.Argument(metavar="REF", help="registry/repository:tag")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines; see above.")],
    name: Annotated[str, typer.Option(help="The model that the set is for, the EdgeModel's metadata.name.")],
    key: Annotated[Path, typer.Option(help="Private key that signs (PEM).")],
    ca: CaOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Push a golden set, signed and attested for its model. Again is harmless. The digest goes into spec.golden of the EdgeModel.

    Each line of FILE is one example, its tensors as in the Open Inference Protocol v2. It counts as right when the output's largest
    value stands at the label's place, or its one integer is the label:

    \b
      {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0, 5, ...]}],
       "expect": {"output": "label", "label": 3}}
    """
    reference = read_reference(ref)
    tag = require_tag(reference)
    require_name(name, "--name")
    signer = read_private_key(key)
    data = file.read_bytes()
    lines = parse_golden_lines(data, str(file))
    with open_client(ca) as client:
        digest = push_golden(client, reference.repository, data)
        print_note("signed" if sign_golden(client, reference.repository, digest, signer, model=name) else "was signed before")
        tag_manifest(client, reference.repository, digest, tag)
    found = {"reference": str(reference), "digest": digest, "model": name, "lines": len(lines), "signedBy": signer.public.id}
    if output is Format.JSON:
        print_json(found)
    else:
        print_facts({"ref": reference, "digest": digest, "model": name, "lines": len(lines), "signer": signer.public.id})


@app.command(epilog=EXIT_CODES)
@trusting(leave=("min_seq", "require_predicate"))
def verify(
    ref: RefArgument,
    name: Annotated[str, typer.Option(help="The model that the set must be attested for.")],
    trust: Trust,
    ca: CaOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Check a golden set as hub and sites do. Enough trusted publishers must have signed and attested it; each line is read."""
    reference = read_reference(ref)
    publisher = trust.find_publisher(name)
    with open_client(ca) as client:
        digest = client.resolve(reference)
        with telling(output, digest=digest, model=name):
            verdict = fetch_golden_verdict(client, reference.repository, digest, model=name, publisher=publisher)
        lines = fetch_golden(client, reference.repository, digest)
    facts = {"digest": digest, "model": name, "lines": len(lines)}
    if output is Format.JSON:
        print_json({"verified": True, **facts, "signedBy": list(verdict.signed_by), "signers": show_signers(verdict.signers)})
    else:
        print_facts(facts)
        print_signers(verdict.signers)
