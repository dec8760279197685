"""A PrivateSigstore over loopback HTTP, with the paths that cosign and sigstore-python use."""

import base64
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.lab.sigstore.private import PrivateSigstore, read_token


class SigstoreService:
    """Serves one private Sigstore while entered. `url` has no slash at its end; `requests` counts what was asked, by path."""

    def __init__(self, sigstore: PrivateSigstore) -> None:
        self.sigstore = sigstore
        self.requests: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="sigstore", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "SigstoreService":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != "/.well-known/openid-configuration":
                    self.send_error(404)
                    return
                keys = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
                self._send(200, json.dumps(dict.fromkeys(keys, service.url)).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with service._lock:
                    service.requests[self.path] = service.requests.get(self.path, 0) + 1
                    self._answer(body)

            def _answer(self, body: bytes) -> None:
                now = datetime.now(UTC).replace(microsecond=0)
                match self.path:
                    case "/api/v2/signingCert":
                        token = self.headers["Authorization"].removeprefix("Bearer ")
                        self._send(200, json.dumps(_certify(service.sigstore, json.loads(body), token, now)).encode())
                    case "/api/v1/log/entries":
                        entry = service.sigstore.log_v1.add_proposed(json.loads(body), now)
                        uuid = base64.b64decode(entry["inclusionProof"]["rootHash"]).hex()
                        headers = {"ETag": uuid, "Location": f"/api/v1/log/entries/{uuid}"}
                        self._send(201, json.dumps({uuid: _as_rekor_v1(entry)}).encode(), **headers)
                    case "/api/v2/log/entries":
                        entry = service.sigstore.log_v2.add_request(json.loads(body)["hashedRekordRequestV002"])
                        self._send(201, json.dumps(entry).encode())
                    case "/api/v1/timestamp":
                        self._send(201, service.sigstore.tsa.answer(body, now), **{"Content-Type": "application/timestamp-reply"})
                    case _:
                        self.send_error(404)

            def _send(self, code: int, body: bytes, **headers: str) -> None:
                self.send_response(code)
                for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nobody reads it: `requests` says what was asked."""

        return Handler


def _certify(sigstore: PrivateSigstore, request: dict[str, Any], token: str, now: datetime) -> dict[str, Any]:
    # cosign sends the key, sigstore-python a signing request.
    public_key: object
    if "publicKeyRequest" in request:
        public_key = serialization.load_pem_public_key(request["publicKeyRequest"]["publicKey"]["content"].encode())
    else:
        public_key = x509.load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"])).public_key()
    subject, issuer = read_token(token)
    leaf = sigstore.authority.issue(public_key, subject, issuer, now)
    chain = (leaf, sigstore.authority.intermediate.certificate, sigstore.authority.root.certificate)
    pems = [one.public_bytes(serialization.Encoding.PEM).decode() for one in chain]
    return {"signedCertificateEmbeddedSct": {"chain": {"certificates": pems}}}


def _as_rekor_v1(entry: dict[str, Any]) -> dict[str, Any]:
    """Rekor's own spelling of an entry: numbers as numbers, hashes in hex."""
    proof = entry["inclusionProof"]
    return {
        "body": entry["canonicalizedBody"],
        "integratedTime": int(entry["integratedTime"]),
        "logID": base64.b64decode(entry["logId"]["keyId"]).hex(),
        "logIndex": int(entry["logIndex"]),
        "verification": {
            "inclusionProof": {
                "checkpoint": proof["checkpoint"]["envelope"],
                "hashes": [base64.b64decode(one).hex() for one in proof["hashes"]],
                "logIndex": int(proof["logIndex"]),
                "rootHash": base64.b64decode(proof["rootHash"]).hex(),
                "treeSize": int(proof["treeSize"]),
            },
            "signedEntryTimestamp": entry["inclusionPromise"]["signedEntryTimestamp"],
        },
    }
