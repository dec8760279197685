"""`edgefleet support-bundle`: one file that says how an installation is, for whoever is to help. What is taken stands in support_hub.py and
support_site.py, what is taken out again in core/redaction.py."""

import asyncio
import io
import json
import os
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet import __version__
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, connecting
from edgefleet.cli.output import CommandFailed, print_note
from edgefleet.core.redaction import redact_object, redact_text
from edgefleet.kube.errors import ApiError

PART_SECONDS = 60.0
MAX_TEXT_BYTES = 8 << 20
"""Of a log, the end is kept."""

Part = Callable[[], Awaitable[Mapping[str, Any]]]
"""Gives files by name: `bytes` and `str` as text, anything else as JSON. All of it is redacted after that."""

ABOUT = """This is what `edgefleet support-bundle` of version {version} found at {time}.

Secrets were not read. What looks like a credential was replaced by [redacted]: private keys, tokens, credentials in URLs, values of
environment variables, last-applied configurations. Names of sites, fleets, registries and people are in it: read it before you send it.

{missing}
"""


def support_bundle(
    file: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="[default: edgefleet-support-TIME.tgz]")] = None,
    state: Annotated[Path | None, typer.Option(help="At a site: the agent's state folder, instead of the hub.", file_okay=False)] = None,
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Where the hub keeps its own objects.")] = "edgefleet-system",
    log: Annotated[
        list[Path] | None, typer.Option(help="A log to add, where the hub or agent is no pod; may be given several times.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="A metrics page to add: http://HOST:PORT/metrics.")] = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Pack what one needs to understand an installation into one file, without its secrets.

    \b
      edgefleet support-bundle                  at the hub: kinds, runs, conditions, Events, Leases, versions,
                                                `edgefleet check`, and the hub's pods, logs and metrics
      edgefleet support-bundle --state DIR      at a site: what the agent remembers, its trust bundle,
                                                the gateway's files and log, what lies in the store

    Secrets are never read, keys in a state folder neither. What looks like a credential (in annotations, messages, URLs, logs, environment
    variables) is taken out. Look at the file before you send it: names of sites, registries and people are in it.

    What may not be read, or does not answer, is left out and named in about.txt. The file is readable for you alone.

    Exit codes: 0 done, 1 refused or failed (stderr says why), 2 wrong usage.
    """
    now = datetime.now(UTC)
    target = file or Path(f"edgefleet-support-{now:%Y%m%dT%H%M%SZ}.tgz")
    if target.is_dir() or not target.parent.is_dir():
        raise typer.BadParameter(f"{target} is no file in a folder that exists", param_hint="--output")
    if metrics is not None and not metrics.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{metrics}: write http://HOST:PORT/metrics", param_hint="--metrics")
    files, missing = asyncio.run(_collect(state, namespace, tuple(log or ()), metrics, kubeconfig, context))
    if not files:
        raise CommandFailed("NothingFound", "; ".join(missing) or "there is nothing to pack")
    said = "Left out:\n" + "\n".join(f"- {one}" for one in missing) if missing else "Nothing was left out."
    files["about.txt"] = redact_text(ABOUT.format(version=__version__, time=f"{now:%Y-%m-%dT%H:%M:%SZ}", missing=said))
    write_bundle(target, files, now)
    for one in missing:
        print_note(f"left out: {redact_text(one)}")
    typer.echo(f"{target}: {len(files)} files, {target.stat().st_size} bytes; look at it before you send it")


async def _collect(
    state: Path | None, namespace: str, logs: tuple[Path, ...], metrics: str | None, kubeconfig: Path | None, context: str | None
) -> tuple[dict[str, str], list[str]]:
    from edgefleet.cli.support_site import collect_logs, collect_metrics, site_parts

    extra: dict[str, Part] = {f"log {path.name}": lambda path=path: collect_logs(path) for path in logs}  # type: ignore[misc]
    if metrics is not None:
        extra["metrics"] = lambda: collect_metrics(metrics)
    if state is not None:
        if not (state / "state.json").is_file():
            raise CommandFailed("StateMissing", f"{state} is no state folder of an agent: there is no state.json in it")
        return await gather_parts({**site_parts(state), **extra})
    from edgefleet.cli.support_hub import hub_parts

    async with connecting(kubeconfig, context) as api:
        return await gather_parts({**hub_parts(api, namespace), **extra})


async def gather_parts(parts: Mapping[str, Part], limit: float = PART_SECONDS) -> tuple[dict[str, str], list[str]]:
    """All files, redacted, and what could not be had. One part that fails or hangs costs no other."""
    files: dict[str, str] = {}
    missing = []
    for name, part in parts.items():
        try:
            async with asyncio.timeout(limit):
                found = await part()
        except TimeoutError:
            missing.append(f"{name}: no answer within {limit:g} s")
        except ApiError as error:
            missing.append(f"{name}: {error.message}")
        except Exception as error:
            missing.append(f"{name}: {type(error).__name__}: {error}")
        else:
            for path, content in found.items():
                if isinstance(content, Exception):
                    missing.append(f"{path}: {content}")
                else:
                    files[path] = to_safe_text(content)
    return files, missing


def to_safe_text(content: Any) -> str:
    """What may be packed of a text (its end) or a JSON value."""
    if isinstance(content, bytes):
        return redact_text(content[-MAX_TEXT_BYTES:].decode(errors="replace"))
    if isinstance(content, str):
        return redact_text(content)
    return json.dumps(redact_object(content), indent=1, sort_keys=True) + "\n"


def write_bundle(target: Path, files: Mapping[str, str], now: datetime) -> None:
    """A .tgz with everything in one folder, complete or not at all, mode 0600. Raises OSError."""
    draft = target.with_name(f".{target.name}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            data = text.encode()
            entry = tarfile.TarInfo(f"edgefleet-support/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    draft.replace(target)
