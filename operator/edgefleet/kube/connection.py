"""How to reach one API server: a kubeconfig, the service account of the pod we run in, or an address with a certificate or a token.

Reading kubeconfigs is left to the `kubernetes` package; requests are aiohttp's, which costs a third of the CPU per call.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import config
from kubernetes.client import Configuration


@dataclass(frozen=True, slots=True)
class Connection:
    """Address, TLS and credentials. `configuration` refreshes a service account's token by itself."""

    server: str
    tls: ssl.SSLContext | None
    configuration: Any

    def headers(self) -> dict[str, str]:
        """The Authorization header of now, if a token is used."""
        token = self.configuration.get_api_key_with_prefix("authorization") or self.configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": token} if token else {}

    def authority(self) -> bytes:
        """The PEM of who vouches for the server; empty if the machine's own authorities do. Raises OSError."""
        return Path(self.configuration.ssl_ca_cert).read_bytes() if self.configuration.ssl_ca_cert else b""


class KubeconfigError(ValueError):
    """A kubeconfig, or the pod's service account, that cannot be used. The message names it."""


def load_connection(kubeconfig: Path | None, context: str | None = None) -> Connection:
    """Read a kubeconfig, or several joined by `:` as in $KUBECONFIG; with None, use the pod's service account.

    Raises KubeconfigError saying which file is missing or wrong.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            _require_files(kubeconfig)
            config.load_kube_config(  # type: ignore[no-untyped-call]
                str(kubeconfig), context=context, client_configuration=configuration, persist_config=False
            )
        tls = _tls(configuration)
    except Exception as error:
        where = kubeconfig or "the pod's service account"
        raise KubeconfigError(f"cannot use {where} to reach an API server: {' '.join(str(error).split())}") from error
    return Connection(configuration.host.rstrip("/"), tls, configuration)


def make_connection(server: str, ca: bytes, *, certificate: Path | None = None, token: str = "") -> Connection:
    """Reach `server`, for which `ca` (PEM; empty: the machine's own authorities) vouches: with a certificate and its key in one PEM file,
    or a bearer token, or as nobody. Raises KubeconfigError naming the server.
    """
    configuration = Configuration()
    configuration.host = server
    if token:
        configuration.api_key["authorization"] = f"Bearer {token}"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        else:
            context.load_default_certs()
        if certificate is not None:
            context.load_cert_chain(certificate)
    except (OSError, ValueError) as error:
        raise KubeconfigError(f"cannot reach {server} with {certificate or 'its CA'}: {error}") from error
    return Connection(server.rstrip("/"), context, configuration)


def _require_files(kubeconfig: Path) -> None:
    # The library says "No configuration found" of a file that is not there, and names a Python type for one that is no kubeconfig.
    there = [Path(part).expanduser() for part in str(kubeconfig).split(os.pathsep) if part and Path(part).expanduser().exists()]
    if not there:
        raise ValueError("it does not exist")
    for path in there:
        with path.open("rb") as file:  # of bytes, YAML's errors quote the line: it may hold a token
            found = yaml.safe_load(file)
        if not isinstance(found, dict):
            raise ValueError(f"{path} is not a kubeconfig: a YAML map with clusters, users and contexts was expected")


def _tls(configuration: Any) -> ssl.SSLContext | None:
    if not configuration.host.startswith("https:"):
        return None
    # A context with only the cluster's CA: loading the system's costs 26 ms and 750 KiB and would trust strangers.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if configuration.ssl_ca_cert:
        context.load_verify_locations(configuration.ssl_ca_cert)
    else:
        context.load_default_certs()
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
