"""The parts put together: one private Sigstore, what people must trust to believe it, and signing without a network."""

import base64
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgefleet.trust.keys import encode_pae
from edgefleet.trust.signatures import BUNDLE_MEDIA_TYPE, STATEMENT_PAYLOAD_TYPE, STATEMENT_TYPE
from tests.lab.sigstore.authority import Authority, new_key, spki
from tests.lab.sigstore.logs import LogV1, LogV2, b64
from tests.lab.sigstore.timestamps import TimestampAuthority

Rekor = Literal[1, 2]


class PrivateSigstore:
    """A Sigstore of one's own. `born` is when everything in it begins; default: a year ago."""

    def __init__(self, name: str = "sigstore.test", born: datetime | None = None) -> None:
        self.name = name
        self.born = (born or datetime.now(UTC) - timedelta(days=365)).replace(microsecond=0)
        self.authority = Authority(name, self.born)
        self.tsa = TimestampAuthority(name, self.born)
        self.log_v1 = LogV1(f"rekor.{name}")
        self.log_v2 = LogV2(f"log2026.rekor.{name}")

    def trusted_root(self) -> dict[str, Any]:
        """`trusted_root.json`, as an object to be spoiled."""
        window = {"start": _text(self.born)}
        ct_id = b64(sha256(spki(self.authority.ct_key.public_key())).digest())
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [
                {
                    "baseUrl": f"https://{log.name}",
                    "hashAlgorithm": "SHA2_256",
                    "publicKey": {"rawBytes": b64(log.public), "keyDetails": log.key_details, "validFor": dict(window)},
                    "logId": {"keyId": b64(log.id)},
                }
                for log in (self.log_v1, self.log_v2)
            ],
            "certificateAuthorities": [_chain(self.name, [self.authority.intermediate.der, self.authority.root.der], window)],
            "ctlogs": [
                {
                    "baseUrl": f"https://ct.{self.name}",
                    "hashAlgorithm": "SHA2_256",
                    "publicKey": {
                        "rawBytes": b64(spki(self.authority.ct_key.public_key())),
                        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                        "validFor": dict(window),
                    },
                    "logId": {"keyId": ct_id},
                }
            ],
            "timestampAuthorities": [_chain(self.name, [self.tsa.leaf.der, self.tsa.root.der], window)],
        }

    def signing_config(self, url: str, rekor: Rekor = 1, *, stamped: bool | None = None) -> dict[str, Any]:
        """The signing config for clients when this Sigstore is served at `url`; `stamped`: with timestamps, needed for Rekor v2."""
        stamped = rekor == 2 if stamped is None else stamped

        def service(path: str, version: int = 1) -> list[dict[str, Any]]:
            return [{"url": url + path, "majorApiVersion": version, "validFor": {"start": _text(self.born)}, "operator": self.name}]

        return {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service(""),
            "oidcUrls": service(""),
            "rekorTlogUrls": service("", rekor),
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": service("/api/v1/timestamp") if stamped else [],
            "tsaConfig": {"selector": "ANY"},
        }

    def sign(
        self,
        predicate_type: str,
        digest: str,
        predicate: dict[str, Any],
        *,
        subject: str,
        issuer: str,
        at: datetime | None = None,
        logged: datetime | None = None,
        rekor: Rekor = 1,
        stamped: bool | None = None,
    ) -> bytes:
        """A bundle as cosign makes it: certificate from `at` on, log and timestamp at `logged` (default: a minute later)."""
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
        at = (at or datetime.now(UTC) - timedelta(minutes=2)).replace(microsecond=0)
        logged = logged or at + timedelta(minutes=1)
        key = new_key()
        certificate = self.authority.issue(key.public_key(), subject, issuer, at)
        payload = json.dumps(statement, separators=(",", ":")).encode()
        signature = key.sign(encode_pae(STATEMENT_PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256()))
        envelope = {"payload": b64(payload), "payloadType": STATEMENT_PAYLOAD_TYPE, "signatures": [{"sig": b64(signature)}]}
        log: LogV1 | LogV2 = self.log_v1 if rekor == 1 else self.log_v2
        material: dict[str, Any] = {
            "certificate": {"rawBytes": b64(certificate.public_bytes(serialization.Encoding.DER))},
            "tlogEntries": [log.add(envelope, certificate, logged)],
        }
        if rekor == 2 if stamped is None else stamped:
            material["timestampVerificationData"] = {"rfc3161Timestamps": [{"signedTimestamp": b64(self.tsa.stamp(signature, logged))}]}
        return json.dumps({"mediaType": BUNDLE_MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode()


def make_token(subject: str, issuer: str) -> str:
    """An identity token that only a PrivateSigstore believes: it is signed by nobody. `subject` with an @ is an address."""
    now = int(datetime.now(UTC).timestamp())
    claims: dict[str, Any] = {"iss": issuer, "sub": subject, "aud": "sigstore", "iat": now, "nbf": now, "exp": now + 600}
    if "@" in subject:
        claims |= {"email": subject, "email_verified": True}
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (*parts, b"unsigned"))


def read_token(token: str) -> tuple[str, str]:
    """Subject and issuer of a token, believed as they stand."""
    body = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims.get("email") or claims["sub"], claims["iss"]


def _chain(name: str, certificates: list[bytes], window: dict[str, str]) -> dict[str, Any]:
    return {
        "subject": {"organization": name, "commonName": name},
        "uri": f"https://{name}",
        "certChain": {"certificates": [{"rawBytes": b64(one)} for one in certificates]},
        "validFor": dict(window),
    }


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
