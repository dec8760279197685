"""`python -m tests.bench.verify [N]`: what it costs to verify a bundle, warm, in CPU milliseconds of this process (default: N=200).

Bundles are all different, made before the clock starts: a key's, and an identity's by a log of version 1, with a timestamp beside it, and
by a log of version 2. What is paid once per process or root, and what reading alone costs, is printed apart.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from edgefleet.trust.documents import decode_base64, parse_json_object
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keyless import KeylessVerifier
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.material import read_material
from edgefleet.trust.release import SIGN_PREDICATE, sign_digest
from edgefleet.trust.signatures import BundleVerifier, KeyRing, SigstoreBundle, verify_bundle
from edgefleet.trust.sigstore_root import open_root
from tests.lab.sigstore.private import PrivateSigstore

DIGEST = "sha256:" + "a" * 64
WE = Identity("https://token.test", "https://github.com/acme/weld/.github/workflows/release.yml@refs/heads/main")
WARM = 20


def main(count: int) -> None:
    """Print one line per kind."""
    sigstore, key = PrivateSigstore(), PrivateKey.generate()
    root = json.dumps(sigstore.trusted_root()).encode()
    ring = KeyRing([key.public])
    before = time.process_time()
    identities = KeylessVerifier(Keyless((WE,), root))
    print(f"once per process: Sigstore's library and the first root: {1000 * (time.process_time() - before):.0f} CPU-ms")
    _tell("once per trusted root", [root + b" " * number for number in range(1, count + WARM + 1)], open_root)
    print("per bundle:")
    kinds: dict[str, tuple[BundleVerifier, Callable[[], bytes]]] = {
        "key": (ring, lambda: sign_digest(key, DIGEST)),
        "identity, log v1": (identities, lambda: _sign(sigstore)),
        "identity, log v1, stamped": (identities, lambda: _sign(sigstore, stamped=True)),
        "identity, log v2": (identities, lambda: _sign(sigstore, rekor=2)),
    }
    for name, (verifier, make) in kinds.items():
        bundles = [make() for _ in range(count + WARM)]
        _tell(f"  {name}: verify", bundles, lambda data, verifier=verifier: verify_bundle(data, verifier))
        _tell(f"  {name}: read alone", bundles, _read)


def _sign(sigstore: PrivateSigstore, **kind: Any) -> bytes:
    return sigstore.sign(SIGN_PREDICATE, DIGEST, {}, subject=WE.subject, issuer=WE.issuer, **kind)


def _read(data: bytes) -> None:
    bundle = SigstoreBundle.model_validate(parse_json_object(data))
    decode_base64(bundle.dsse_envelope.payload)
    if bundle.names_certificate:
        read_material(bundle.verification_material.model_dump(by_alias=True, exclude_none=True))


def _tell(name: str, inputs: Sequence[bytes], work: Callable[[bytes], object]) -> None:
    taken = []
    for data in inputs:
        before = time.process_time()
        work(data)
        taken.append(1000 * (time.process_time() - before))
    taken = sorted(taken[WARM:])
    print(f"{name:<40} p50 {taken[len(taken) // 2]:6.2f}  p99 {taken[len(taken) * 99 // 100]:6.2f} CPU-ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
