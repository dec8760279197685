"""How this site reaches registries: what the order says of them, and the Secrets of the site's own cluster that it names.

Secrets are read anew for each fetch, so that one that was replaced is used at the next try. Their content is in no log, message or file.
A mirror is asked in a registry's place, and alone. Whether what comes is to be believed is decided in prefetch.py.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgefleet.api import site as api
from edgefleet.api.assignment import Order
from edgefleet.core.site import Cause
from edgefleet.kube.client import Api
from edgefleet.kube.errors import ApiError, NotFound
from edgefleet.kube.resources import SECRETS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.credentials import parse_docker_config
from edgefleet.oci.errors import ReferenceInvalid, Unauthorised
from edgefleet.oci.reference import Repository
from edgefleet.oci.transport import Credentials, Patience, Proxy
from edgefleet.site.faults import StepFailed

PULL_SECRET_ENTRY = ".dockerconfigjson"  # noqa: S105 - the name of an entry, not a secret
CA_ENTRY = "ca.crt"
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Way:
    """How one registry is reached. `secret` and `ca` say where credentials and authorities come from, for messages; empty without."""

    mirror: str | None = None
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    authorities: str | None = None
    secret: str = ""
    ca: str = ""


@dataclass(frozen=True)
class Source:
    """A repository as it is asked: at its registry or at a mirror, and by whom."""

    client: RegistryClient
    repository: Repository
    secret: str


@dataclass(frozen=True)
class Access:
    """The ways of one order, by registry. Registries without an entry are asked themselves, without credentials."""

    ways: Mapping[str, Way] = field(default_factory=dict)
    proxy: Proxy | None = None

    def open(self, repository: Repository, patience: Patience) -> Source:
        """A client for this repository; the caller closes it. Raises StepFailed (MirrorInvalid, SecretInvalid)."""
        way = self.ways.get(repository.registry, Way())
        asked = repository
        if way.mirror is not None:
            try:
                asked = Repository.parse(f"{way.mirror}/{repository.path}")
            except ReferenceInvalid as error:
                raise StepFailed(Cause.FETCH, "MirrorInvalid", f"EdgeSite spec.registries, match {repository.registry}: {error}") from error
        try:
            client = RegistryClient(credentials=way.credentials, ca=way.authorities, proxy=self.proxy, patience=patience)
        except (ValueError, OSError) as error:
            raise StepFailed(Cause.FETCH, "SecretInvalid", f"{way.ca}: {CA_ENTRY} holds no certificate in PEM") from error
        return Source(client, asked, way.secret)


def own_namespace(fallback: str) -> str:
    """The namespace of the pod that this runs in; `fallback` outside of one."""
    return POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.is_file() else fallback


async def gather_access(local: Api, namespace: str, order: Order) -> Access:
    """What the order says of registries, with the Secrets of `namespace` in the site's own cluster. Raises StepFailed naming the Secret."""
    ways = {entry.match: await _gather_way(local, namespace, entry) for entry in order.registries or ()}
    return Access(ways, Proxy(order.proxy.https, order.proxy.no_proxy) if order.proxy else None)


async def _gather_way(local: Api, namespace: str, entry: api.RegistryAccess) -> Way:
    asked = (entry.mirror or entry.match).partition("/")[0]
    credentials: dict[str, Credentials] = {}
    authorities, secret, ca = None, "", ""
    if entry.secret_ref is not None:
        secret = f"Secret {namespace}/{entry.secret_ref} of the site's cluster"
        data = await _read_entry(local, namespace, entry.secret_ref, PULL_SECRET_ENTRY, secret)
        try:
            found = parse_docker_config(data, secret)
        except Unauthorised as error:
            raise StepFailed(Cause.FETCH, "SecretInvalid", error.message) from error
        if asked not in found:
            known = ", ".join(sorted(found)[:8]) or "none"
            raise StepFailed(Cause.FETCH, "SecretInvalid", f"{secret} has no login for {asked}; it has: {known}")
        # Only the login of the host that is asked leaves the Secret.
        credentials = {asked: found[asked]}
    if entry.ca_ref is not None:
        ca = f"Secret {namespace}/{entry.ca_ref} of the site's cluster"
        authorities = (await _read_entry(local, namespace, entry.ca_ref, CA_ENTRY, ca)).decode("latin-1")
    return Way(entry.mirror, credentials, authorities, secret, ca)


async def _read_entry(local: Api, namespace: str, name: str, entry: str, where: str) -> bytes:
    try:
        body: dict[str, Any] = await local.get(SECRETS, name, namespace)
    except NotFound:
        raise StepFailed(Cause.FETCH, "SecretNotFound", f"{where} does not exist: create it with entry {entry}") from None
    except ApiError as error:
        raise StepFailed(Cause.FETCH, "SecretUnreadable", f"{where} cannot be read: {error}") from error
    value = (body.get("data") or {}).get(entry)
    if value is None:
        raise StepFailed(Cause.FETCH, "SecretInvalid", f"{where} has no entry {entry}; it has: {', '.join(sorted(body.get('data') or {}))}")
    return base64.b64decode(value)
