"""How the hub reaches the registry of each model: its pull secret, its authorities, and the hub's own proxy.

Secrets are read at each look, so that one that was replaced is used at the next. Their content is in no log, message or status. Whether
what comes is to be believed is decided in models.py.
"""

import base64
import hashlib
import json
from types import TracebackType
from typing import Any, Self

from edgefleet.api.model import EdgeModel
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import SECRETS
from edgefleet.oci.client import RegistryClient
from edgefleet.oci.credentials import parse_docker_config
from edgefleet.oci.errors import Unauthorised
from edgefleet.oci.transport import Credentials, Proxy

PULL_SECRET_ENTRY = ".dockerconfigjson"  # noqa: S105 - the name of an entry, not a secret
CA_ENTRY = "ca.crt"


class AccessFailed(Exception):
    """What a model names to reach its registry cannot be used. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class Registries:
    """A client for each model that names Secrets, one for all others; a context manager that closes them. `proxy` is for all."""

    def __init__(self, api: Api, proxy: Proxy | None = None) -> None:
        self._api = api
        self._proxy = proxy
        self._plain = RegistryClient(proxy=proxy)
        self._own: dict[tuple[str, str], tuple[str, RegistryClient]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for key in list(self._own):
            self.forget(key)
        self._plain.close()

    async def open(self, model: EdgeModel) -> RegistryClient:
        """The client for a model, safe for threads until the next call for this model. Raises AccessFailed, ApiError."""
        source, namespace = model.spec.source, model.metadata.namespace or ""
        key = (namespace, model.metadata.name)
        if source.secret_ref is None and source.ca_ref is None:
            self.forget(key)
            return self._plain
        credentials: dict[str, Credentials] = {}
        authorities = None
        if source.secret_ref is not None:
            where = _where(namespace, source.secret_ref, "secretRef")
            data = await self._read(namespace, source.secret_ref, PULL_SECRET_ENTRY, where)
            try:
                credentials = parse_docker_config(data, where)
            except Unauthorised as error:
                raise AccessFailed("SecretInvalid", error.message) from error
            host = source.repository.partition("/")[0]
            if host not in credentials:
                known = ", ".join(sorted(credentials)[:8]) or "none"
                raise AccessFailed("SecretInvalid", f"{where} has no login for {host}; it has: {known}")
        if source.ca_ref is not None:
            where = _where(namespace, source.ca_ref, "caRef")
            authorities = (await self._read(namespace, source.ca_ref, CA_ENTRY, where)).decode("latin-1")
        logins = {host: [login.username, login.password] for host, login in credentials.items()}
        mark = hashlib.sha256(json.dumps([logins, authorities], sort_keys=True).encode()).hexdigest()
        held = self._own.get(key)
        if held is not None and held[0] == mark:
            return held[1]
        self.forget(key)
        try:
            client = RegistryClient(credentials=credentials, ca=authorities, proxy=self._proxy)
        except (ValueError, OSError) as error:
            raise AccessFailed("SecretInvalid", f"{where}: {CA_ENTRY} holds no certificate in PEM") from error
        self._own[key] = (mark, client)
        return client

    def forget(self, key: tuple[str, str]) -> None:
        """Close what was opened for a model (namespace, name)."""
        held = self._own.pop(key, None)
        if held is not None:
            held[1].close()

    async def _read(self, namespace: str, name: str, entry: str, where: str) -> bytes:
        try:
            data: dict[str, Any] = (await self._api.get(SECRETS, name, namespace)).get("data") or {}
        except NotFound:
            raise AccessFailed("SecretNotFound", f"{where} does not exist: create it with entry {entry}") from None
        if entry not in data:
            raise AccessFailed("SecretInvalid", f"{where} has no entry {entry}; it has: {', '.join(sorted(data)) or 'none'}")
        return base64.b64decode(data[entry])


def explain_refused_login(model: EdgeModel) -> str:
    """What a person does about a login that the registry refuses."""
    name = model.spec.source.secret_ref
    if name is None:
        return "No pull secret is named: set spec.source.secretRef"
    where = _where(model.metadata.namespace or "", name, "secretRef")
    return f"Put a good login into {where}: it is read again at the next look"


def _where(namespace: str, name: str, field: str) -> str:
    return f"Secret {namespace}/{name} (spec.source.{field})"
