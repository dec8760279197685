"""`edgefleet site join` and `leave`: let a site in at the hub, and shut it out. `edgefleet site identity`: how it stands, at the site.

What a token and a certificate are good for is decided at the hub (core/joining.py); this makes the token, and takes rights away.
"""

import asyncio
import base64
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from edgefleet.api.join import JOIN_ENTRY, JOIN_SECRET, JoinFile
from edgefleet.api.meta import (
    EXPIRES_ANNOTATION,
    JOIN_ACCOUNT_PREFIX,
    JOIN_NAMESPACE,
    LEFT_ANNOTATION,
    SITE_LABEL,
    format_time,
    site_namespace,
)
from edgefleet.api.site import EdgeSite
from edgefleet.cli.artifacts import naming, require_name
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, connecting, server_now
from edgefleet.cli.output import CommandFailed, Format, FormatOption, print_facts, print_json, print_note, print_prose, read_period
from edgefleet.kube.client import Api
from edgefleet.kube.errors import Conflict, NotFound
from edgefleet.kube.resources import EDGE_SITES, NAMESPACES, ROLE_BINDINGS, SECRETS, SERVICE_ACCOUNTS

FIELD_MANAGER = "edgefleet-cli"
SHORTEST, LONGEST = timedelta(minutes=10), timedelta(days=7)

SiteArgument = Annotated[str, typer.Argument(metavar="NAME", help="The EdgeSite.")]


def join(
    name: SiteArgument,
    trusted_root: Annotated[Path, typer.Option(help="root.json of `edgefleet trust init`: the site pins it when it joins.")],
    expires: Annotated[str, typer.Option(help="How long the join token is good: 10m to 168h. It is good for one key only.")] = "1h",
    create: Annotated[bool, typer.Option("--create", help="Make the EdgeSite, if it is not there.")] = False,
    region: Annotated[str | None, typer.Option(help="With --create: its spec.region.")] = None,
    again: Annotated[bool, typer.Option("--again", help="The site has joined before: let a machine in that replaces it.")] = False,
    hub_url: Annotated[
        str | None, typer.Option(help="The hub's address as the site reaches it. [default: that of your kubeconfig]")
    ] = None,
    hub_ca: Annotated[Path | None, typer.Option(help="PEM of who vouches for that address. [default: that of your kubeconfig]")] = None,
    site_kubeconfig: Annotated[Path | None, typer.Option(help="The site's own cluster: put the join file there as a Secret.")] = None,
    site_secrets: Annotated[str, typer.Option("--site-namespace", help="The namespace of that Secret: the agent's.")] = "edgefleet-system",
    write: Annotated[Path | None, typer.Option(help="Write the join file here, for `edgefleet agent --join`.")] = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Let a site in. It prints one command to run at the site, or does it with --site-kubeconfig, or writes the join file with --write.

    The join file holds the hub's address and CA, a token that is good once, and the root document that the site pins. Whoever has it before
    the site can join in its place; the site's own try is then refused (TokenUsed, an Event of the EdgeSite). A token that was made for the
    site before is no good any more.

    Example: edgefleet site join plant-7 --trusted-root root.json --site-kubeconfig plant-7.yaml

    You need the right to make ServiceAccounts and their tokens in namespace edgefleet-join at the hub.
    """
    require_name(name, "NAME")
    period = read_period(expires, "--expires")
    if not SHORTEST <= period <= LONGEST:
        raise typer.BadParameter(f"{expires}: 10m to 168h are allowed", param_hint="--expires")
    if region is not None and not create:
        raise typer.BadParameter("it is set with --create only; else the EdgeSite in Git says it", param_hint="--region")
    asyncio.run(
        _join(
            name,
            _read_root(trusted_root),
            period,
            EdgeSite.parse({"metadata": {"name": name}, "spec": {"region": region}}) if create else None,
            again,
            (hub_url, hub_ca.read_bytes() if hub_ca else None),
            (site_kubeconfig, site_secrets, write),
            kubeconfig,
            context,
            output,
        )
    )


def leave(
    name: SiteArgument,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Shut a site out. From now on it may read and write nothing at the hub, and cannot renew its certificate; it may be done twice.

    The site goes on serving what it serves, and can be let in again by `edgefleet site join`. Its EdgeSite stays: delete it too (in Git) if
    the site is gone for good.

    You need the right to delete ServiceAccounts in namespace edgefleet-join, and to patch namespaces and delete RoleBindings at the hub.
    """
    require_name(name, "NAME")
    since = asyncio.run(_leave(name, kubeconfig, context))
    if output is Format.JSON:
        print_json({"name": name, "left": since})
        return
    print_prose(
        {
            "left": f"{name}, at {since}: it has no rights at the hub, and its certificate cannot be renewed",
            "stays": "what the site serves now, on its own disk and behind its own gateway; an open watch of it ends within minutes",
            "next": f"`edgefleet site join {name} --trusted-root root.json` lets it in again; else delete EdgeSite {name}",
        }
    )


def identity(
    state: Annotated[Path, typer.Option(help="The agent's state folder.", file_okay=False)],
    output: FormatOption = Format.TABLE,
) -> None:
    """Show, at the site, as whom it joined. Until when its certificate is good, and what it waits for; exit code 1 if it has none."""
    from edgefleet.site.identity_files import IdentityInvalid, describe, identity_folder

    try:
        found = describe(identity_folder(state))
    except IdentityInvalid as error:
        raise CommandFailed("NotJoined", str(error)) from error
    if output is Format.JSON:
        print_json(found)
    else:
        ends = found["endsAt"] or "none was granted yet"
        print_facts({"site": found["site"] or "not joined yet", "hub": found["hub"] or "-", "until": ends})
        print_prose({"last": f"{found['note']} (since {found['since']})" if found["note"] else ""})
    if not found["valid"]:
        raise typer.Exit(1)


async def _join(
    name: str,
    root: str,
    period: timedelta,
    create: EdgeSite | None,
    again: bool,
    address: tuple[str | None, bytes | None],
    place: tuple[Path | None, str, Path | None],
    kubeconfig: Path | None,
    context: str | None,
    output: Format,
) -> None:
    async with connecting(kubeconfig, context) as api:
        await _require_site(api, name, create, again)
        token, ends = await _make_token(api, name, period)
        hub, ca = address[0] or api.server, address[1] if address[1] is not None else api.authority()
    try:
        file = JoinFile(site=name, hub=hub, ca=ca.decode("ascii"), token=token, expires_at=ends, root=root)
    except ValueError as error:
        raise CommandFailed("AddressInvalid", f"{hub!r} is no address that a site can use: write https://HOST:PORT in --hub-url") from error
    site_kubeconfig, namespace, path = place
    if path is not None:
        _write_private(path, file)
    if site_kubeconfig is not None:
        await _put_at_site(file, site_kubeconfig, namespace)
    put = [str(path)] if path else []
    put += [f"Secret {namespace}/{JOIN_SECRET} at the site"] if site_kubeconfig else []
    if any(local in hub for local in ("//127.", "//localhost", "//[::1]")):
        print_note(f"the hub's address is {hub}: a site on another machine needs another one, with --hub-url")
    if output is Format.JSON:
        shown = {"name": name, "hub": hub, "expiresAt": ends, "put": put}
        print_json(shown if put else {**shown, "join": file.to_json_dict()})
    elif put:
        print_facts({"site": name, "hub": hub, "until": ends, "put": put})
    else:
        print_note(f"run this at the site before {ends}; keep it to yourself, it holds a token")
        manifests = yaml.safe_dump_all(_manifests(file, namespace), sort_keys=False)
        typer.echo(f"kubectl apply --server-side --force-conflicts -f - <<'EOF'\n{manifests}EOF")


async def _require_site(api: Api, name: str, create: EdgeSite | None, again: bool) -> None:
    try:
        site = EdgeSite.parse(await api.get(EDGE_SITES, name))
    except NotFound:
        if create is None:
            raise CommandFailed(
                "NoSuchSite", f"there is no EdgeSite {name}: add it in Git, or here with --create --region REGION"
            ) from None
        body = {"metadata": {"name": name}, "spec": {"region": create.spec.region} if create.spec.region else {}}
        site = EdgeSite.parse(await api.create(EDGE_SITES, body))
        print_note(f"made EdgeSite {name}; no namespace may use it before spec.allowedNamespaces says which")
    held = site.status.identity
    if held is not None and not again and await _left_since(api, name) is None:
        raise CommandFailed(
            "AlreadyJoined",
            f"{name} joined at {held.joined_at} and keeps its certificate by itself. If that machine is gone, or its certificate ended, "
            "add --again: the machine that joins next takes its place, and the other cannot renew",
        )


async def _make_token(api: Api, name: str, period: timedelta) -> tuple[str, str]:
    account = JOIN_ACCOUNT_PREFIX + name
    # A new account, so that a token that was made before is dead.
    await api.delete(SERVICE_ACCOUNTS, account, JOIN_NAMESPACE)
    meta: dict[str, Any] = {
        "name": account,
        "namespace": JOIN_NAMESPACE,
        "labels": {SITE_LABEL: name},
        "annotations": {EXPIRES_ANNOTATION: format_time(server_now(api) + period)},
    }
    try:
        await api.create(SERVICE_ACCOUNTS, {"metadata": meta, "automountServiceAccountToken": False})
    except NotFound:
        raise CommandFailed("HubIncomplete", f"namespace {JOIN_NAMESPACE} is not there: install the chart charts/edgefleet first") from None
    except Conflict:
        raise CommandFailed(
            "JoinUnderWay", f"somebody else makes a join token for {name} in this moment: ask who, then try again"
        ) from None
    return await api.create_token(account, JOIN_NAMESPACE, seconds=int(period.total_seconds()))


async def _put_at_site(file: JoinFile, kubeconfig: Path, namespace: str) -> None:
    async with connecting(kubeconfig, None) as site:
        for kind, body in zip((NAMESPACES, SECRETS), _manifests(file, namespace), strict=True):
            await site.apply(kind, body, manager=FIELD_MANAGER)


def _manifests(file: JoinFile, namespace: str) -> list[dict[str, Any]]:
    data = {JOIN_ENTRY: base64.b64encode(_encode(file)).decode()}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": JOIN_SECRET, "namespace": namespace}, "data": data},
    ]


def _encode(file: JoinFile) -> bytes:
    return file.model_dump_json(by_alias=True, indent=1).encode()


def _write_private(path: Path, file: JoinFile) -> None:
    # Beside and renamed: an agent that waits for this file reads all of it or nothing.
    beside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(_encode(file))
    beside.replace(path)


def _read_root(path: Path) -> str:
    from edgefleet.trust.bundle import require_root

    data = path.read_bytes()
    with naming(path):
        require_root(data)
    return data.decode()


async def _leave(name: str, kubeconfig: Path | None, context: str | None) -> str:
    from edgefleet.hub.settings import SITE_ROLE

    async with connecting(kubeconfig, context) as api:
        since = await _left_since(api, name)
        if not await _is_known(api, name):
            raise CommandFailed("NoSuchSite", f"there is neither an EdgeSite {name} nor a namespace {site_namespace(name)}: check the name")
        # First the account: whoever joins after the mark must have a token that was made after it.
        await api.delete(SERVICE_ACCOUNTS, JOIN_ACCOUNT_PREFIX + name, JOIN_NAMESPACE)
        since = since or format_time(server_now(api))
        mark = {"metadata": {"name": site_namespace(name), "annotations": {LEFT_ANNOTATION: since}}}
        await api.apply(NAMESPACES, mark, manager=FIELD_MANAGER)
        await api.delete(ROLE_BINDINGS, SITE_ROLE, site_namespace(name))
    return since


async def _is_known(api: Api, name: str) -> bool:
    for kind, known in ((EDGE_SITES, name), (NAMESPACES, site_namespace(name))):
        try:
            await api.get(kind, known)
        except NotFound:
            continue
        return True
    return False


async def _left_since(api: Api, name: str) -> str | None:
    try:
        namespace = await api.get(NAMESPACES, site_namespace(name))
    except NotFound:
        return None
    found = namespace["metadata"].get("annotations", {}).get(LEFT_ANNOTATION)
    return str(found) if found else None
