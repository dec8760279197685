"""`edgefleet model export` and `edgefleet site import`: a signed release carried to a site that no registry reaches.

Both verify as hub and site do, before anything is copied; the agent verifies once more when an order asks for the release.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.cli.artifacts import (
    CaOption,
    fetch_golden_verdict,
    fetch_release_verdict,
    model_of,
    open_client,
    read_reference,
)
from edgefleet.cli.output import CommandFailed, Format, FormatOption, print_facts, print_json, print_note, showing_bytes
from edgefleet.cli.verification import Trust, print_signers, show_signers, telling, trusting
from edgefleet.oci import media
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.errors import ContentError, MalformedManifest
from edgefleet.oci.fetch import Blob, fetch
from edgefleet.oci.index import name_variants, parse_index
from edgefleet.oci.layout import Layout, copy_blob
from edgefleet.oci.manifest import Descriptor, parse_descriptor, parse_descriptors, parse_document
from edgefleet.oci.reference import Repository
from edgefleet.oci.referrers import MAX_BUNDLE_BYTES, MAX_REFERRERS, list_referrers
from edgefleet.trust.release import verify_golden, verify_release

NameOption = Annotated[str | None, typer.Option("--name", help="Model name that must be attested; default: last part of the repository.")]


@trusting()
def export_release(
    ref: Annotated[str, typer.Argument(metavar="REF", help="registry/repository:tag or registry/repository@sha256:...")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the layout; made if it is not there.", file_okay=False)],
    trust: Trust,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; may be given several times. [default: all]")] = None,
    golden: Annotated[str | None, typer.Option(metavar="REF", help="Take this golden set along.")] = None,
    name: NameOption = None,
    ca: CaOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Verify a release, and write all of it to a folder. Signatures too, as an OCI image layout; a broken export goes on where it stopped.

    \b
      edgefleet model export registry.example/digits:1.0 --to /media/stick --key publisher.pub
      edgefleet site import /media/stick --state /var/lib/edgefleet --key publisher.pub      # at the site
    """
    reference = read_reference(ref)
    exam = read_reference(golden) if golden else None
    repository, layout = reference.repository, Layout(to)
    model = name or model_of(reference)
    publisher = trust.find_publisher(model)
    with open_client(ca) as client:
        digest = client.resolve(reference)
        verdict, _ = fetch_release_verdict(client, repository, digest, model=model, publisher=publisher)
        index = client.fetch_manifest(repository, digest)
        listed = {entry.annotations[media.VARIANT_PREFIX + "name"]: entry for entry in parse_index(index, str(reference))}
        unknown = sorted(set(variant or ()) - set(listed))
        if unknown:
            raise CommandFailed("NoVariant", f"{reference} has no variant {unknown[0]!r}; it has {', '.join(sorted(listed))}")
        chosen = sorted(variant or listed)
        layout.prepare()
        layout.write(index)
        entries = [Descriptor(media.INDEX, digest, len(index), media.MODEL, {media.LAYOUT_MODEL: model})]
        for one in chosen:
            print_note(f"variant {one}")
            _export_manifest(client, repository, listed[one].digest, layout)
        entries += _export_attached(client, repository, digest, layout)
        if exam is not None:
            golden_digest = client.resolve(exam)
            fetch_golden_verdict(client, exam.repository, golden_digest, model=model, publisher=publisher)
            print_note("golden set")
            size = _export_manifest(client, exam.repository, golden_digest, layout)
            entries.append(Descriptor(media.MANIFEST, golden_digest, size, media.GOLDEN))
            entries += _export_attached(client, exam.repository, golden_digest, layout)
    layout.finish(entries)
    found = {"digest": digest, "model": model, "version": verdict.version, "variants": chosen, "golden": golden_digest if exam else None}
    if output is Format.JSON:
        print_json({**found, "signers": show_signers(verdict.signers)})
    else:
        print_facts({label: value for label, value in {**found, "to": to}.items() if value is not None})
        print_signers(verdict.signers)


@trusting()
def import_release(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `edgefleet model export` wrote.", exists=True, file_okay=False)],
    state: Annotated[Path, typer.Option(help="The agent's state folder; the agent may be running.", exists=True, file_okay=False)],
    trust: Trust,
    output: FormatOption = Format.TABLE,
) -> None:
    """Take a carried release to this site. The next order for it needs no registry; again is harmless, a broken import goes on.

    With --root alone (root.json that the site pinned), the publishers of the site's own trust bundle are believed. Run it as the user of
    the agent, which takes the release to its store when an order asks for it, and verifies it once more.
    """
    from edgefleet.site.inbox import Inbox, inbox_folder

    if trust.root is not None and trust.bundle is None:
        trust = replace(trust, bundle=state / "bundle.json")
    source = Layout(folder)
    entry = source.find(media.INDEX, media.MODEL)
    if entry is None:
        raise MalformedManifest(f"{folder}: no release of edgefleet is in it")
    model = entry.annotations.get(media.LAYOUT_MODEL, "")
    publisher = trust.find_publisher(model)
    index = source.read(entry.digest)
    listed = parse_index(index, str(folder))
    exam = source.find(media.MANIFEST, media.GOLDEN)
    with telling(output, digest=entry.digest, model=model):
        verdict = verify_release(digest=entry.digest, model=model, bundles=source.bundles(entry.digest), publisher=publisher)
        verdict.require_variants(name_variants(listed))
        if exam is not None:
            verify_golden(digest=exam.digest, model=model, bundles=source.bundles(exam.digest), publisher=publisher)
    target = Inbox(inbox_folder(state)).place(entry.digest)
    target.prepare()
    variants = [one for one in listed if source.path(one.digest).is_file()]
    if not variants:
        raise CommandFailed("NoVariant", f"{folder}: the manifest of no variant is there: export it again")
    for one in variants:
        _import_manifest(source, one.digest, target)
    for part in source.entries():
        if part.media_type == media.INDEX:
            target.write(source.read(part.digest))
        else:
            _import_manifest(source, part.digest, target)
    target.finish(source.entries())
    names = [one.annotations[media.VARIANT_PREFIX + "name"] for one in variants]
    found = {"digest": entry.digest, "model": model, "version": verdict.version, "seq": verdict.seq, "variants": names}
    if output is Format.JSON:
        print_json({**found, "signers": show_signers(verdict.signers)})
    else:
        print_facts(found)
        print_signers(verdict.signers)


def _blobs(manifest: bytes, what: str) -> list[tuple[str, Blob]]:
    document = parse_document(manifest, media.MANIFEST, what)
    parts = [parse_descriptor(document.get("config"), f"{what}: config"), *parse_descriptors(document, "layers", MAX_REFERRERS, what)]
    return [(part.annotations.get(media.FILEPATH, ""), part.blob) for part in parts]


def _export_manifest(client: RegistryClient, repository: Repository, digest: str, layout: Layout) -> int:
    data = client.fetch_manifest(repository, digest)
    for label, blob in _blobs(data, f"{repository}@{digest}"):
        with showing_bytes(label or blob.digest[:19], blob.size) as bar:
            fetch(client, repository, blob, layout.path(blob.digest), progress=lambda have, bar=bar: bar.update(0, completed=have))  # type: ignore[misc]
        if label:
            print_note(f"  {label} ({blob.size:,} bytes)")
    layout.write(data)
    return len(data)


def _export_attached(client: RegistryClient, repository: Repository, digest: str, layout: Layout) -> list[Descriptor]:
    problems: list[str] = []
    found: dict[str, Descriptor] = {}
    for entry in list_referrers(client, repository, digest, problems):
        if entry.digest in found or len(found) >= MAX_REFERRERS:
            continue
        try:
            data = client.fetch_manifest(repository, entry.digest)
            subject = parse_descriptor(parse_document(data, media.MANIFEST, entry.digest).get("subject"), f"{entry.digest}: subject")
            blobs = _blobs(data, entry.digest)
            if subject.digest != digest or any(blob.size > MAX_BUNDLE_BYTES for _, blob in blobs):
                raise MalformedManifest(f"{entry.digest}: attached to another artifact, or larger than {MAX_BUNDLE_BYTES} bytes")
            _export_manifest(client, repository, entry.digest, layout)
        except ContentError as error:
            problems.append(error.message)
            continue
        found[entry.digest] = Descriptor(media.MANIFEST, entry.digest, len(data), entry.artifact_type, entry.annotations)
    for problem in problems:
        print_note(f"not taken along: {problem}")
    return list(found.values())


def _import_manifest(source: Layout, digest: str, target: Layout) -> None:
    data = source.read(digest)
    for label, blob in _blobs(data, digest):
        with showing_bytes(label or blob.digest[:19], blob.size) as bar:
            copy_blob(source.path(blob.digest), blob, target.path(blob.digest), lambda have, bar=bar: bar.update(0, completed=have))  # type: ignore[misc]
    target.write(data)
