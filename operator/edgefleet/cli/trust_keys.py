"""`edgefleet trust make-key | rotate | replace-hub-key | renew | sign`: for people who keep root keys on sticks, not all in one place."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from edgefleet.cli.artifacts import naming, read_public_keys
from edgefleet.cli.output import CommandFailed, print_facts, print_note
from edgefleet.cli.trust_folder import (
    DRAFT,
    DaysOption,
    DryRunOption,
    Folder,
    FolderArgument,
    RootKeysOption,
    Signing,
    show_draft,
    show_missing,
    write_new,
)
from edgefleet.cli.trust_publishers import read_key_id
from edgefleet.trust.bundle import make_root
from edgefleet.trust.bundle_draft import read_draft, read_last_root
from edgefleet.trust.keys import PrivateKey

ROOT_DAYS = 3650


def make_key(
    file: Annotated[Path, typer.Argument(metavar="FILE.key", help="Where the private key goes, such as a stick; FILE.pub goes beside it.")],
) -> None:
    """Make one key pair, for a root, a hub or a publisher. `rotate`, `replace-hub-key` and `add-publisher` take its public half."""
    if file.suffix != ".key":
        raise typer.BadParameter(f"{file} must end in .key", param_hint="FILE.key")
    public = file.with_suffix(".pub")
    present = [str(path) for path in (file, public) if path.exists()]
    if present:
        raise CommandFailed("AlreadyExists", f"{', '.join(present)} is there: keys are never overwritten, choose another name")
    key = PrivateKey.generate()
    write_new(file, key.to_pem().encode(), 0o600)
    write_new(public, key.public.to_pem().encode(), 0o644)
    print_facts({"key": key.public.id, "private": file, "public": public})


def rotate(
    folder: FolderArgument,
    add: Annotated[list[Path] | None, typer.Option(help="Public half of a root key that joins (PEM); may be given several times.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Root key that goes: its id, as `trust show` has it, or a file with its public half.")
    ] = None,
    root_threshold: Annotated[int | None, typer.Option(min=1, max=8, help="How many root keys must sign; default: as it is.")] = None,
    root_valid_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help=f"How long the new root is good; default: {ROOT_DAYS}.")
    ] = None,
    valid_days: DaysOption = 365,
    root_key: RootKeysOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Make the next root: other keys, threshold or end. As many old keys as had to sign sign it, and as many new ones.

    Sites that pinned any root before follow by themselves: the bundle carries all roots. root.json stays as sites pinned it.
    """
    found = Folder.open(folder)
    held = read_last_root(found.data)
    keys = {one.id: one for one in held.keys}
    for name in remove or ():
        gone = read_key_id(name, "--remove")
        if gone not in keys:
            raise CommandFailed("RootKeyUnknown", f"{gone} is none of the root keys: {', '.join(keys)}")
        del keys[gone]
    joining = read_public_keys(add or ())
    found.require_free(joining, "root")
    keys |= {one.id: one for one in joining}
    threshold = root_threshold or held.threshold
    if threshold > len(keys):
        raise typer.BadParameter(f"{threshold} of {len(keys)} root keys cannot sign", param_hint="--root-threshold")
    if set(keys) == {one.id for one in held.keys} and threshold == held.threshold and root_valid_days is None:
        print_note(f"nothing changes: root {held.version} has these keys and this threshold already (--root-valid-days moves its end)")
        return
    ends = datetime.now(UTC) + timedelta(days=root_valid_days or ROOT_DAYS)
    root = make_root(tuple(keys.values()), signers=(), threshold=threshold, version=held.version + 1, expires_at=ends)
    found.propose(found.content, Signing(root_key, valid_days, dry_run), root=root)


def replace_hub_key(
    folder: FolderArgument,
    key: Annotated[list[Path], typer.Option("--key", help="Public half of the hub's new key (PEM).")],
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Believe orders by the old keys as well, until you run this without.")
    ] = False,
    valid_days: DaysOption = 365,
    root_key: RootKeysOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Let the hub sign orders with another key. Hand out the bundle first, then give the hub its new Secret and start it again.

    With --keep-old sites obey both meanwhile. If the old key is stolen, leave that out: orders by it are refused as soon as a site has the
    bundle, what serves goes on, and the hub signs every order anew, under its old sequence.
    """
    found = Folder.open(folder)
    old = found.content.hub_keys if keep_old else ()
    new = read_public_keys(key)
    found.require_free(new, "hub")
    keys = {one.id: one for one in (*old, *new)}
    found.propose(replace(found.content, hub_keys=tuple(keys.values())), Signing(root_key, valid_days, dry_run))


def renew(folder: FolderArgument, valid_days: DaysOption = 365, root_key: RootKeysOption = None, dry_run: DryRunOption = False) -> None:
    """Make the next version with a later end. Nothing else is new; its root may end before it: `trust rotate --root-valid-days`."""
    found = Folder.open(folder)
    found.propose(found.content, Signing(root_key, valid_days, dry_run), always=True)


def sign(
    draft: Annotated[Path, typer.Argument(metavar="DRAFT", help=f"{DRAFT}, in a folder with root.json and bundle.json.")],
    root_key: Annotated[list[Path] | None, typer.Option("--root-key", help="Root key to sign with; without one, only show.")] = None,
) -> None:
    """Show what a draft changes; with --root-key, sign it. With the last signature it becomes bundle.json.

    It is compared with the bundle.json beside it, which is verified under root.json: take both from where you know them from, not from
    who sends the draft.
    """
    data = draft.read_bytes()
    if draft.name != DRAFT:
        raise typer.BadParameter(f"{draft} must be named {DRAFT}", param_hint="DRAFT")
    found = Folder.open(draft.parent)
    with naming(draft):
        reading = read_draft(data, held=found.data, now=datetime.now(UTC))
    show_draft(reading)
    if root_key or not reading.missing:
        found.sign(data, root_key or ())
    else:
        show_missing(reading, draft)
