"""`edgefleet trust`: make the keys and the trust bundle that sites believe, and show a bundle; what changes one is in trust_publishers.py,
trust_limits.py and trust_keys.py."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.api.meta import format_time
from edgefleet.cli.artifacts import require_name
from edgefleet.cli.output import EXIT_CODES, CommandFailed, Format, FormatOption, print_facts, print_json, print_note, print_table, short
from edgefleet.cli.trust_folder import BUNDLE, DRAFT, ROOT, DaysOption, verify_file, write_new
from edgefleet.cli.trust_keys import ROOT_DAYS, make_key, renew, replace_hub_key, rotate, sign
from edgefleet.cli.trust_limits import set_limits
from edgefleet.cli.trust_publishers import ModelsOption, add_publisher, revoke
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.bundle_draft import list_facts, read_last_root
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher

app = typer.Typer(help="Make, show and change what sites believe.", epilog=EXIT_CODES, no_args_is_help=True)

ENDS_SOON = timedelta(days=30)
TABLED = re.compile(r"(root|bundle)[.]|hubKeys: |publishers[.][^.]+[.](keys|identities|threshold|minReleaseSeq): ")
"""Facts that `show` has above; whatever else a bundle says comes as it is written."""


@app.command(epilog=EXIT_CODES)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where keys and bundle go; made if it is not there.")],
    model: ModelsOption,
    root_keys: Annotated[int, typer.Option(min=1, max=8, help="How many root keys to make.")] = 1,
    root_threshold: Annotated[int, typer.Option(min=1, max=8, help="How many of them must sign a bundle.")] = 1,
    valid_days: DaysOption = 365,
) -> None:
    """Make all first keys, and trust bundle version 1. Nothing is overwritten.

    \b
      root-N.key       sign bundles: keep them off line, apart from each other
      root-N.pub       stay here: they name a root key that is lost, in `edgefleet trust rotate --remove`
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
        expires_at=now + timedelta(days=ROOT_DAYS),
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
    public = {f"root-{number}.pub": key.public.to_pem().encode() for number, key in enumerate(roots, start=1)}
    public |= {"hub.pub": hub.public.to_pem().encode(), "publisher.pub": publisher.public.to_pem().encode(), ROOT: root, BUNDLE: bundle}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    present = sorted(name for name in {*private, *public} if (folder / name).exists())
    if present:
        raise CommandFailed("AlreadyExists", f"{folder} holds {', '.join(present)}: keys are never overwritten, choose another folder")
    for name, data in private.items():
        write_new(folder / name, data, 0o600)
    for name, data in public.items():
        write_new(folder / name, data, 0o644)
    print_note(f"{len(private)} private keys and bundle version 1 are in {folder}; take the root keys off line")
    print_table(("FILE", "KEY"), [(name, short(PrivateKey.from_pem(data).public.id)) for name, data in private.items()])


@app.command(epilog=EXIT_CODES)
def show(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="bundle.json, or the folder that it is in.")],
    root: Annotated[Path | None, typer.Option(help="The root that sites pinned; default: root.json beside the bundle.")] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Verify a trust bundle as a site does, and show all of it. A draft is shown by `edgefleet trust sign`."""
    now = datetime.now(UTC)
    bundle = bundle / BUNDLE if bundle.is_dir() else bundle
    if bundle.name == DRAFT:
        raise typer.BadParameter(f"{bundle} is a draft: `edgefleet trust sign {bundle}` shows it", param_hint="BUNDLE")
    found = verify_file(bundle, root or bundle.parent / ROOT, now=now)
    data = bundle.read_bytes()
    last = read_last_root(data)
    if found.expires_at - now < ENDS_SOON:
        command = "rotate --root-valid-days" if last.expires_at <= found.expires_at else "renew"
        print_note(f"warning: it ends {format_time(found.expires_at)}; past that sites activate nothing: see `edgefleet trust {command}`")
    if output is Format.JSON:
        trust: dict[str, Any] = json.loads(data)["trust"]
        more = {name: value for name, value in trust.items() if name not in ("formatVersion", "publishers", "hubKeys", "trustedRoot")}
        print_json(
            {
                "version": found.version,
                "expiresAt": format_time(found.expires_at),
                "root": {
                    "version": last.version,
                    "keys": [key.id for key in last.keys],
                    "threshold": last.threshold,
                    "expiresAt": format_time(last.expires_at),
                },
                "hubKeys": [key.id for key in found.hub_keys],
                "publishers": {
                    model: {
                        "keys": [key.id for key in publisher.keys],
                        "identities": [one.id for one in publisher.identities],
                        "threshold": publisher.threshold,
                        "minReleaseSeq": publisher.min_release_seq,
                        "requiredPredicates": list(publisher.predicates),
                    }
                    for model, publisher in found.publishers.items()
                },
                **more,
            }
        )
        return
    print_facts(
        {
            "version": found.version,
            "expires": format_time(found.expires_at),
            "root": f"version {last.version}, {last.threshold} of {len(last.keys)} keys, until {format_time(last.expires_at)}",
            "root key": [key.id for key in last.keys],
            "hub key": [key.id for key in found.hub_keys],
        }
    )
    print_table(
        ("MODEL", "PUBLISHERS", "THRESHOLD", "LOWEST SEQUENCE"),
        [(model, " ".join(_names(entry)), entry.threshold, entry.min_release_seq) for model, entry in sorted(found.publishers.items())],
        title="publishers",
        folding=("PUBLISHERS",),
    )
    keys = sorted({key.id for entry in found.publishers.values() for key in entry.keys})
    if keys:
        print_table(("KEY",), [(one,) for one in keys], title="publisher keys")
    rest = [fact for fact in list_facts(data) if not TABLED.match(fact)]
    if rest:
        typer.echo("\n" + "\n".join(rest))


def _names(publisher: Publisher) -> list[str]:
    return [short(key.id) for key in publisher.keys] + [one.id for one in publisher.identities]


# In the order of a bundle's life, as `--help` lists them.
for name, command in (
    ("add-publisher", add_publisher),
    ("revoke", revoke),
    ("set-limits", set_limits),
    ("replace-hub-key", replace_hub_key),
    ("renew", renew),
    ("rotate", rotate),
    ("sign", sign),
    ("make-key", make_key),
):
    app.command(name, epilog=EXIT_CODES)(command)
