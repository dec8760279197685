"""`edgefleet site verify`: whether what a site runs, and what lies in its store, may be believed, seen again without any network.

It reads the agent's state folder and changes nothing in it, so the agent may be running. Signatures are verified as the agent does before
it activates anything, under the trust bundle that is in force there; then every file is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from edgefleet.cli.artifacts import naming
from edgefleet.cli.output import CommandFailed, Format, FormatOption, print_facts, print_json, short, show_size, showing_bytes
from edgefleet.cli.verification import print_signers, show_signers
from edgefleet.oci.errors import RegistryError
from edgefleet.site.prefetch import Evidence, verify_evidence
from edgefleet.site.state import SiteState
from edgefleet.site.store import RevisionRecord, Store
from edgefleet.trust.bundle import TrustBundle, open_bundle, require_root
from edgefleet.trust.errors import Rejected
from edgefleet.trust.release import verify_release
from edgefleet.trust.signatures import SignedBy


@dataclass
class Finding:
    """One revision of one fleet. `role`: `serves`, `served before`, or `stored`. Good if `reason` is empty."""

    fleet: str
    role: str
    revision: str
    record: RevisionRecord | None
    signers: tuple[SignedBy, ...] = ()
    reason: str = ""
    message: str = ""
    damaged: list[str] = field(default_factory=list)

    def to_json_dict(self, bundle: int) -> dict[str, Any]:
        """For `-o json`."""
        found: dict[str, Any] = {"fleet": self.fleet, "role": self.role, "revision": self.revision, "verified": not self.reason}
        if self.record is not None:
            release = self.record.revision
            found |= {"model": release.model, "digest": release.digest, "version": release.version, "seq": release.seq}
            found |= {"variant": release.variant.name, "bytes": sum(self.record.blobs().values())}
        found |= {"signers": show_signers(self.signers), "bundleVersion": bundle}
        return found | ({"reason": self.reason, "message": self.message} if self.reason else {})


def verify_site(
    state: Annotated[Path, typer.Option(help="The agent's state folder; the agent may be running.")],
    root: Annotated[Path, typer.Option(help="root.json that the site pinned.")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Verify again what a site runs, and all in its store. Who signed it, under the site's trust bundle, and every byte of its files.

    It needs no network and changes nothing. Run it as the agent's user, or as root. Exit code 1 if anything is not to be believed.

    \b
      edgefleet site verify --state /var/lib/edgefleet --root root.json
    """
    memory = _read_state(state)
    bundle, ended = _open_bundle(state, root, memory)
    store = Store(state / "store", reading=True)
    findings = list(_find(memory, store))
    for one in findings:
        if one.record is not None:
            _verify(one, one.record, store, bundle)
    wrong = [one for one in findings if one.reason]
    if output is Format.JSON:
        told = [one.to_json_dict(bundle.version) for one in findings]
        print_json({"site": memory.site, "verified": not wrong, "bundleVersion": bundle.version, "bundleEnded": ended, "revisions": told})
    else:
        _print(memory.site, bundle, ended, findings)
    if wrong:
        raise CommandFailed(
            wrong[0].reason, f"{len(wrong)} of {len(findings)} revisions are not to be believed: {wrong[0].fleet}: {wrong[0].message}"
        )


def _read_state(folder: Path) -> SiteState:
    file = folder / "state.json"
    if not file.is_file():
        raise CommandFailed("StateMissing", f"{file} is not there: name the state folder of an agent that has run")
    try:
        return SiteState.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise CommandFailed("StateUnreadable", f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _open_bundle(state: Path, root: Path, memory: SiteState) -> tuple[TrustBundle, bool]:
    """The bundle in force, and whether it is past its end: then a site activates nothing new, and goes on with what it believed."""
    file = state / "bundle.json"
    if not file.is_file():
        raise CommandFailed("TrustMissing", f"{file} is not there: no trust bundle has come to this site yet")
    with naming(root):
        require_root(root.read_bytes())
    with naming(file):
        found = open_bundle(
            file.read_bytes(),
            pinned_root=root.read_bytes(),
            floor_version=memory.bundle_version,
            floor_root=memory.root_version,
            now=datetime.fromtimestamp(0, UTC),
        )
    return found, datetime.now(UTC) >= found.expires_at


def _find(memory: SiteState, store: Store) -> Iterator[Finding]:
    """What serves each fleet first, then what served before it, then all else in the store."""
    told = set()
    for role, attribute in (("serves", "active"), ("served before", "previous")):
        for fleet, state in sorted(memory.fleets.items()):
            revision = getattr(state, attribute)
            if revision is None or (revision, fleet) in told:
                continue
            told.add((revision, fleet))
            record = store.find(revision)
            if record is not None:
                yield Finding(fleet, role, revision, record)
            elif role == "serves":
                yield Finding(fleet, role, revision, None, reason="StoreDamaged", message=f"revision {revision[:8]} is not in the store")
    for record in store.records():
        if all(revision != record.revision.hash for revision, _ in told):
            yield Finding(record.fleet, "stored", record.revision.hash, record)


def _verify(finding: Finding, record: RevisionRecord, store: Store, bundle: TrustBundle) -> None:
    revision = record.revision
    try:
        with showing_bytes(f"{revision.model} {revision.version}", sum(record.blobs().values())) as bar:
            finding.damaged = [
                part.name or f"evidence {part.digest[:19]}"
                for part in record.parts()
                if not store.holds(part, lambda count: bar.advance(bar.task_ids[0], count))
            ]
        if finding.damaged:
            raise Rejected("StoreDamaged", f"{', '.join(finding.damaged)}: gone, or not what was verified")
        publisher = bundle.publishers.get(revision.model)
        if publisher is None:
            raise Rejected("TrustNotAtSite", f"trust bundle {bundle.version} names no publisher of model {revision.model!r}")
        evidence = _read_evidence(record, store)
        manifest = verify_evidence(evidence, revision, publisher)
        named = {layer.path: layer.blob.digest for layer in manifest.layers}
        if named != {blob.name: blob.digest for blob in record.files}:
            raise Rejected("EvidenceMismatch", "the files in the store's record are not those of the signed manifest")
        finding.signers = verify_release(
            digest=revision.digest, model=revision.model, bundles=evidence.bundles, publisher=publisher
        ).signers
    except (Rejected, RegistryError) as error:
        finding.reason, finding.message = error.reason, error.message


def _read_evidence(record: RevisionRecord, store: Store) -> Evidence:
    def read(part: Any) -> bytes:
        # Whatever became of it since it was held, verification says.
        return (store.read(part) if part is not None else None) or b""

    return Evidence(
        index=read(record.index),
        manifest=read(record.manifest),
        bundles=tuple(map(read, record.bundles)),
        golden_manifest=read(record.golden_manifest) or None,
        golden_bundles=tuple(map(read, record.golden_bundles)),
    )


def _print(site: str, bundle: TrustBundle, ended: bool, findings: list[Finding]) -> None:
    print_facts({"site": site, "bundle": f"version {bundle.version}{', which has ended: nothing new is activated' if ended else ''}"})
    for one in findings:
        typer.echo(f"\n{one.fleet}: {one.role}: {'verified' if not one.reason else f'NOT BELIEVED: {one.reason}'}")
        facts: dict[str, Any] = {"rev": short(one.revision)}
        if one.record is not None:
            release = one.record.revision
            size = show_size(sum(one.record.blobs().values()))
            facts |= {"digest": release.digest, "model": release.model, "version": f"{release.version}, sequence {release.seq}"}
            facts |= {"variant": f"{release.variant.name}, {len(one.record.files)} files, {size} read"}
        print_facts(facts)
        print_signers(one.signers)
        if one.reason:
            print_facts({"why    ": one.message})
    if not findings:
        typer.echo("\nnothing serves here, and nothing is stored")
