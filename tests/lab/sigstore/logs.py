"""Transparency logs in memory: one that answers as Rekor v1 does (signed promise, integrated time), one as Rekor v2 (neither).

Both are RFC 6962 trees whose heads are signed notes. An entry is a dict in the spelling of Sigstore bundles.
"""

import base64
import json
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgefleet.trust.keys import encode_pae
from tests.lab.sigstore.authority import new_key, spki

Entry = dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Tree:
    """An RFC 6962 tree, hashed anew for each question: test logs are short."""

    leaves: list[bytes] = field(default_factory=list)

    def append(self, body: bytes) -> int:
        """Index of the new leaf."""
        self.leaves.append(sha256(b"\0" + body).digest())
        return len(self.leaves) - 1

    def root(self) -> bytes:
        return _root(self.leaves)

    def proof(self, index: int) -> list[bytes]:
        return _proof(self.leaves, index)


def _split(count: int) -> int:
    return 1 << (count - 1).bit_length() - 1


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = _split(len(leaves))
    return sha256(b"\1" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def _proof(leaves: list[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = _split(len(leaves))
    if index < half:
        return [*_proof(leaves[:half], index), _root(leaves[half:])]
    return [*_proof(leaves[half:], index - half), _root(leaves[:half])]


class LogV1:
    """A log as Rekor v1: ECDSA, entries of kind dsse 0.0.1, each with a promise that binds the time at which it came."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = new_key()
        self.id = sha256(spki(self.key.public_key())).digest()
        self.public = spki(self.key.public_key())
        self.key_details = "PKIX_ECDSA_P256_SHA_256"
        self._tree = Tree()
        self._tree.append(b"Go tools leave a logIndex of 0 out, and sigstore-python misses it: no entry is the first.")

    def add(self, envelope: Entry, certificate: x509.Certificate, at: datetime) -> Entry:
        """Logs a DSSE envelope (`payload`, `payloadType`, `signatures`, as in a bundle)."""
        verifier = b64(certificate.public_bytes(serialization.Encoding.PEM))
        signatures = [{"signature": one["sig"], "verifier": verifier} for one in envelope["signatures"]]
        return self.add_body(_dsse_body(json.dumps(envelope).encode(), base64.b64decode(envelope["payload"]), signatures), at)

    def add_proposed(self, proposed: Entry, at: datetime) -> Entry:
        """Logs what a client of Rekor v1 posts."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        signatures = [{"signature": envelope["signatures"][0]["sig"], "verifier": content["verifiers"][0]}]
        return self.add_body(_dsse_body(content["envelope"].encode(), base64.b64decode(envelope["payload"]), signatures), at)

    def add_body(self, body: bytes, at: datetime) -> Entry:
        """Logs any body."""
        index, moment = self._tree.append(body), int(at.timestamp())
        promise = rfc8785.dumps({"body": b64(body), "integratedTime": moment, "logID": self.id.hex(), "logIndex": index})
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(self.id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(moment),
            "inclusionPromise": {"signedEntryTimestamp": b64(self.key.sign(promise, ec.ECDSA(hashes.SHA256())))},
            "inclusionProof": _inclusion(self._tree, index, self._head()),
            "canonicalizedBody": b64(body),
        }

    def _head(self) -> str:
        note = f"{self.name} - 1193050959916656506\n{len(self._tree.leaves)}\n{b64(self._tree.root())}\n"
        return _sign_note(note, self.name, self.id[:4] + self.key.sign(note.encode(), ec.ECDSA(hashes.SHA256())))


class LogV2:
    """A log as Rekor v2: Ed25519, entries of kind hashedrekord 0.0.2, no time of its own (a timestamp authority gives it)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.public = spki(self.key.public_key())
        raw = self.key.public_key().public_bytes_raw()
        # Source: C2SP signed-note, "Ed25519 signatures"; Rekor v2 uses the whole hash as its log id.
        self.id = sha256(name.encode() + b"\n\x01" + raw).digest()
        self.key_details = "PKIX_ED25519"
        self._tree = Tree()
        self._tree.append(b"no entry is the first, see LogV1")

    def add(self, envelope: Entry, certificate: x509.Certificate, at: datetime) -> Entry:
        """Logs a DSSE envelope by the hash of what was signed; `at` leaves no trace."""
        digest = sha256(encode_pae(envelope["payloadType"], base64.b64decode(envelope["payload"]))).digest()
        verifier = {
            "x509Certificate": {"rawBytes": b64(certificate.public_bytes(serialization.Encoding.DER))},
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
        }
        return self.add_request({"digest": b64(digest), "signature": {"content": envelope["signatures"][0]["sig"], "verifier": verifier}})

    def add_request(self, request: Entry) -> Entry:
        """Logs a HashedRekordRequestV002."""
        data = {"algorithm": "SHA2_256", "digest": request["digest"]}
        spec = {"hashedRekordV002": {"data": data, "signature": request["signature"]}}
        return self.add_body(rfc8785.dumps({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": spec}))

    def add_body(self, body: bytes) -> Entry:
        """Logs any body."""
        index = self._tree.append(body)
        note = f"{self.name}\n{len(self._tree.leaves)}\n{b64(self._tree.root())}\n"
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(self.id)},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "inclusionProof": _inclusion(self._tree, index, _sign_note(note, self.name, self.id[:4] + self.key.sign(note.encode()))),
            "canonicalizedBody": b64(body),
        }


def _dsse_body(envelope: bytes, payload: bytes, signatures: list[Entry]) -> bytes:
    hashed = [{"algorithm": "sha256", "value": sha256(data).hexdigest()} for data in (envelope, payload)]
    spec = {"envelopeHash": hashed[0], "payloadHash": hashed[1], "signatures": signatures}
    return rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})


def _inclusion(tree: Tree, index: int, head: str) -> Entry:
    return {
        "logIndex": str(index),
        "rootHash": b64(tree.root()),
        "treeSize": str(len(tree.leaves)),
        "hashes": [b64(one) for one in tree.proof(index)],
        "checkpoint": {"envelope": head},
    }


def _sign_note(note: str, name: str, signature: bytes) -> str:
    return f"{note}\n— {name} {b64(signature)}\n"
