"""Real TPMs in software: Debian's swtpm, each on a unix socket, and a maker that gives them certificates as a factory does.

`python -m tests.lab.tpm` records the vectors of tests/unit/trust anew: what one such TPM said, once.
"""

import json
import os
import struct
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from edgefleet.site.tpm import ENDORSEMENT, Tpm, TpmError
from edgefleet.site.tpm_device import CERTIFICATE_INDEX, ENDORSEMENT_TEMPLATE, Device
from edgefleet.trust.attestation import make_challenge, read_offer
from edgefleet.trust.identity import make_request
from edgefleet.trust.keys import PrivateKey
from tests.lab.cache import key_of, provide
from tests.lab.debian import unpack_packages
from tests.lab.processes import Process, start_process, stop_processes

PACKAGES = ("swtpm", "swtpm-libs", "libtpms0", "libseccomp2", "libssl3")
PLATFORM = 0x4000000C
VECTORS = Path(__file__).parents[1] / "unit/trust/vectors/tpm.json"


def fetch_swtpm() -> Path:
    """The root of the unpacked packages. Raises LabError."""
    return provide("swtpm", key_of(*PACKAGES), lambda draft: unpack_packages("bookworm", PACKAGES, draft))


@dataclass
class Maker:
    """Who makes TPMs: an authority for their certificates."""

    name: str = "maker"
    begins: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(days=1))
    lasts: timedelta = timedelta(days=3650)
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name} (fake)")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self._own = (
            self._builder(self._subject, self.key.public_key()).add_extension(constraints, critical=True).sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """What the hub has to know."""
        return self._own.public_bytes(serialization.Encoding.PEM).decode()

    def certify(self, endorsement: rsa.RSAPublicKey, use: str = "2.23.133.8.1") -> bytes:
        """The certificate (DER) of an endorsement key as the TCG profile has it: no subject, the model as a critical alternative name."""
        model = [("2.23.133.2.1", "id:00001014"), ("2.23.133.2.2", "swtpm"), ("2.23.133.2.3", "id:20191023")]
        names = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in model])
        builder = self._builder(x509.Name([]), endorsement)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DirectoryName(names)]), critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(use)]), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begins)
            .not_valid_after(self.begins + self.lasts)
        )


class SoftTpm:
    """One TPM; its seeds are in `folder` and new if that is empty. `path` is its socket (short: unix sockets have names of 107 bytes)."""

    def __init__(self, folder: Path, maker: Maker | None) -> None:
        """Starts it. With a maker, as new from the factory: with a certificate."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._sockets = tempfile.TemporaryDirectory(prefix="tpm-")
        self.path = Path(self._sockets.name) / "s"
        self.device = Device(self.path)
        self._process = self._start()
        if maker is not None:
            self.store_certificate(maker.certify(self.endorsement))

    @property
    def endorsement(self) -> rsa.RSAPublicKey:
        """The public endorsement key."""
        with Tpm(self.path) as tpm, tpm.primary(ENDORSEMENT, ENDORSEMENT_TEMPLATE) as (_, public):
            return rsa.RSAPublicNumbers(65537, int.from_bytes(public[-256:], "big")).public_key()

    def store_certificate(self, der: bytes) -> None:
        """As a factory does it, by the platform's right."""
        info = struct.pack(">IHIHH", CERTIFICATE_INDEX, 0x000B, 0x42070001, 0, len(der))
        with Tpm(self.path) as tpm:
            tpm.run(0x12A, (PLATFORM,), struct.pack(">HH", 0, len(info)) + info, ("password",))
            for at in range(0, len(der), 512):
                part = der[at : at + 512]
                body = struct.pack(">H", len(part)) + part + struct.pack(">H", at)
                tpm.run(0x137, (PLATFORM, CERTIFICATE_INDEX), body, ("password",))

    def extend(self, pcr: int, digest: bytes) -> None:
        """As something that is started does it."""
        with Tpm(self.path) as tpm:
            tpm.run(0x182, (pcr,), struct.pack(">IH", 1, 0x000B) + digest, ("password",))

    def restart(self) -> None:
        """A reset: the power was away."""
        self._end()
        self._process = self._start()

    def close(self) -> None:
        """End it; its folder stays."""
        self._end()
        self._sockets.cleanup()

    def _start(self) -> Process:
        root = fetch_swtpm()
        libraries = sorted((root / "usr/lib").glob("*-linux-gnu"))
        path = ":".join(str(folder) for one in libraries for folder in (one, one / "swtpm"))
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder}", "--flags", "not-need-init,startup-clear"]
        command += ["--server", f"type=unixio,path={self.path}", "--ctrl", f"type=unixio,path={self.path}.ctrl"]
        command[0] = str(root / "usr/bin/swtpm")
        for left in (self.path, Path(f"{self.path}.ctrl")):
            left.unlink(missing_ok=True)
        process = start_process(self.folder / "run", "swtpm", command, env={**os.environ, "LD_LIBRARY_PATH": path})
        process.wait_until(self._is_listening, "listening", limit=30)
        return process

    def _is_listening(self) -> bool:
        try:
            Tpm(self.path).close()
        except TpmError:
            return False
        return True

    def _end(self) -> None:
        stop_processes([self._process])


def record() -> dict[str, object]:
    """What one TPM of one maker says once, for a fixed request: everything that a verifier needs, and what another TPM says to the same."""
    request = make_request(PrivateKey.generate(), "plant-7").decode()
    maker = Maker(begins=datetime(2026, 1, 1, tzinfo=UTC), lasts=timedelta(days=36500))
    with tempfile.TemporaryDirectory() as folder:
        one, other = SoftTpm(Path(folder, "one"), maker), SoftTpm(Path(folder, "other"), maker)
        try:
            offer = one.device.make_offer()
            challenge = make_challenge(read_offer(offer.model_dump_json()), (0, 2, 4, 7))
            proof = one.device.answer(challenge, request.encode())
            return {
                "maker": maker.pem,
                "request": request,
                "offer": offer.to_json_dict(),
                "challenge": challenge.to_json_dict(),
                "proof": proof.to_json_dict(),
                "otherOffer": other.device.make_offer().to_json_dict(),
            }
        finally:
            one.close()
            other.close()


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(record(), indent=1) + "\n")
