"""`edgefleet trust set-limits`: what the trust bundle allows around models, from a file that people keep and review."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from edgefleet.cli.output import CommandFailed
from edgefleet.cli.trust_folder import DaysOption, DryRunOption, Folder, FolderArgument, RootKeysOption, Signing
from edgefleet.trust.bundle_content import POLICY_FORMAT, BundleContent, read_content, write_content
from edgefleet.trust.errors import Rejected, rejecting

FIELDS = ("limits", "imageSigners")


def set_limits(
    folder: FolderArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML with limits and imageSigners: docs/security.md.", exists=True)],
    valid_days: DaysOption = 365,
    root_key: RootKeysOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Hold sites to the limits of FILE. They take the place of those that are there; an empty file takes all away."""
    found = Folder.open(folder)
    with rejecting("LimitsInvalid", str(file)):
        wanted: Any = yaml.safe_load(file.read_text()) or {}
        if not isinstance(wanted, dict) or set(wanted) - set(FIELDS):
            raise ValueError(f"it may have the fields {' and '.join(FIELDS)}, and no other")
        held = {name: value for name, value in write_content(found.content).items() if name not in FIELDS}
        # Read under the format that knows limits; the lowest one that is enough is written.
        content = _read(file, {**held, **wanted, "formatVersion": POLICY_FORMAT})
    unknown = sorted(content.limits.models.keys() - content.publishers.keys())
    if unknown:
        raise CommandFailed(
            "ModelUnknown",
            f"{file}: limits.models names {', '.join(unknown)}; the bundle has {', '.join(sorted(content.publishers)) or 'no models'}",
        )
    found.propose(
        replace(found.content, limits=content.limits, image_signers=content.image_signers), Signing(root_key, valid_days, dry_run)
    )


def _read(file: Path, document: dict[str, Any]) -> BundleContent:
    try:
        return read_content(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Rejected("LimitsInvalid", f"{file}: {where}: {first['msg']}; found {str(first['input'])[:60]!r}") from error
    except Rejected as error:
        raise Rejected(error.reason, f"{file}: {error.message}") from error
