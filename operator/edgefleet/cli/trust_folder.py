"""A folder of trust: root.json (what sites pinned), bundle.json (in force), and bundle.json.draft (waits for signatures).

Every command that changes the bundle comes through here: it shows what changes, signs with the root keys that are at hand, and writes the
bundle or, while signatures are missing, the draft. What a draft may be is decided in trust/bundle_draft.py.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.api.meta import format_time
from edgefleet.cli.artifacts import naming, read_private_key
from edgefleet.cli.output import CommandFailed, print_note
from edgefleet.trust.bundle import TrustBundle, open_bundle, require_root
from edgefleet.trust.bundle_content import BundleContent, write_content
from edgefleet.trust.bundle_draft import Draft, make_draft, read_draft, read_last_root, sign_draft
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PublicKey

ROOT, BUNDLE, DRAFT = "root.json", "bundle.json", "bundle.json.draft"
LONG_AGO = datetime.fromtimestamp(0, UTC)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A folder with root.json and bundle.json, as `trust init` makes it.")]
RootKeysOption = Annotated[
    list[Path] | None,
    typer.Option("--root-key", help="Root key to sign with; may be given several times; default: DIR/root-*.key. Too few make a draft."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")]
DaysOption = Annotated[
    int, typer.Option(min=1, max=3650, help="How long the bundle is good. Sites activate nothing under one past its end.")
]


@dataclass(frozen=True)
class Signing:
    """How a changing command signs: with which root keys, for how many days, or not at all (`dry_run`)."""

    root_keys: Sequence[Path] | None = None
    valid_days: int = 365
    dry_run: bool = False


@dataclass(frozen=True)
class Folder:
    """The folder, and the bundle in force in it: verified, but perhaps past its end, since the next one must follow from it."""

    path: Path
    data: bytes
    held: TrustBundle

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """Raises Rejected, CommandFailed(RootMissing), OSError; each names the file."""
        data = (path / BUNDLE).read_bytes()
        return cls(path, data, verify_file(path / BUNDLE, path / ROOT, now=LONG_AGO))

    @property
    def content(self) -> BundleContent:
        """What the bundle in force says, to be changed by dataclasses.replace."""
        return BundleContent(**{field.name: getattr(self.held, field.name) for field in fields(BundleContent)})

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """Each key's id: whose it is (`root`, `hub`, `publisher`), and the command that takes it out."""
        publishers = [key.id for publisher in self.held.publishers.values() for key in publisher.keys]
        return (
            dict.fromkeys(publishers, ("publisher", "revoke --key"))
            | {key.id: ("hub", "replace-hub-key") for key in self.held.hub_keys}
            | {key.id: ("root", "rotate --remove") for key in read_last_root(self.data).keys}
        )

    def require_free(self, keys: Sequence[PublicKey], part: str) -> None:
        """One key, one part: a hub that could sign releases needs no publisher. Raises CommandFailed(KeyInUse)."""
        for key in keys:
            other, _ = self.parts.get(key.id, (part, ""))
            if other != part:
                raise CommandFailed(
                    "KeyInUse",
                    f"{key.id} is a {other} key already and cannot be a {part} key as well: `edgefleet trust make-key` makes another",
                )

    def propose(self, content: BundleContent, signing: Signing, *, root: bytes | None = None, always: bool = False) -> None:
        """Make the next version with this content, under `root` if there is a new one; nothing where nothing changes, unless `always`.

        Raises CommandFailed(DraftPending), Rejected, OSError.
        """
        if root is None and not always and write_content(content) == write_content(self.content):
            print_note(f"nothing changes: {self.path / BUNDLE} version {self.held.version} says that already")
            return
        now = datetime.now(UTC)
        ends = now + timedelta(days=signing.valid_days)
        draft = make_draft(self.data, version=self.held.version + 1, content=content, expires_at=ends, root=root)
        show_draft(read_draft(draft, held=self.data, now=now))
        root_ends = read_last_root(draft).expires_at
        if root_ends < ends:
            print_note(f"warning: its root ends before it, {format_time(root_ends)}: see `edgefleet trust rotate --root-valid-days`")
        if signing.dry_run:
            print_note("nothing is written: --dry-run")
            return
        if (self.path / DRAFT).exists():
            raise CommandFailed(
                "DraftPending",
                f"{self.path / DRAFT} waits for signatures: give them (`edgefleet trust sign`), or remove it to begin anew",
            )
        self.sign(draft, signing.root_keys)

    def sign(self, draft: bytes, root_keys: Sequence[Path] | None) -> None:
        """Add the signatures of these root keys, or of those that lie in the folder; write the bundle, or the draft that it is yet.

        Raises Rejected, OSError.
        """
        now = datetime.now(UTC)
        for path in sorted(self.path.glob("root-*.key")) if root_keys is None else root_keys:
            key = read_private_key(path)
            try:
                draft = sign_draft(draft, key, held=self.data, now=now)
            except Rejected as error:
                # A folder may hold keys of roots that are past; one that was named is meant.
                if root_keys is not None or error.reason != "RootKeyUnknown":
                    raise Rejected(error.reason, f"{path}: {error.message}") from error
        found = read_draft(draft, held=self.data, now=now)
        if found.missing:
            _replace(self.path / DRAFT, draft)
            show_missing(found, self.path / DRAFT)
            return
        # Refused here rather than at every site.
        open_bundle(draft, pinned_root=(self.path / ROOT).read_bytes(), floor_version=found.version, now=now)
        _replace(self.path / BUNDLE, draft)
        (self.path / DRAFT).unlink(missing_ok=True)
        print_note(f"{self.path / BUNDLE} is version {found.version}; the hub hands it to the sites once it has it:")
        print_note(
            f"  kubectl -n edgefleet-system create configmap trust-bundle --from-file={BUNDLE}={self.path / BUNDLE} "
            "--dry-run=client -o yaml | kubectl apply -f -"
        )


def verify_file(bundle: Path, root: Path, *, now: datetime) -> TrustBundle:
    """The bundle in a file, under the root in another. Raises Rejected, CommandFailed(RootMissing), OSError; each names the file."""
    data = bundle.read_bytes()
    if not root.is_file():
        raise CommandFailed("RootMissing", f"{root} is not there: it is the root that sites pinned (`trust show` takes it as --root)")
    with naming(root):
        require_root(root.read_bytes())
    with naming(bundle):
        return open_bundle(data, pinned_root=root.read_bytes(), floor_version=0, now=now)


def show_draft(draft: Draft) -> None:
    """On stdout, one line for each fact that goes or comes."""
    for line in draft.changes:
        typer.echo(line)


def show_missing(draft: Draft, file: Path) -> None:
    """On stderr: who must sign yet."""
    count = sum(one.count for one in draft.missing)
    print_note(f"{file} is version {draft.version} and lacks {count} signature(s):")
    for one in draft.missing:
        print_note("\n    ".join((f"  {one.what}: {one.count} of", *one.keys)))
    print_note(f"  each holder, with root.json and bundle.json beside it: edgefleet trust sign {file} --root-key KEY")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A file that was not there. Raises FileExistsError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".new")
    part.unlink(missing_ok=True)
    write_new(part, data, 0o644)
    part.replace(path)
