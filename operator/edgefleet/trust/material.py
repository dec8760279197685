"""What a bundle that is signed with a certificate must consist of, to the last character.

Sigstore's library passes over parts that nothing signs: base64 with stray bits, names in a checkpoint, a tree size, a log id, a timestamp
beside another source of time. Here such a part is either bound to a signed one or refused, so that no byte of a bundle is without a
meaning. Whether the signatures hold is keyless.py's matter.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edgefleet.trust.documents import decode_base64, encode_base64
from edgefleet.trust.errors import Rejected, rejecting

MAX_TIMESTAMPS = 4


def _decode(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("base64 was expected")
    return decode_base64(value)


def _count(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0|[1-9][0-9]{0,18}", value):
        raise ValueError("a number in a string was expected")
    return int(value)


Bytes = Annotated[bytes, BeforeValidator(_decode)]
Count = Annotated[int, BeforeValidator(_count)]


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="forbid", strict=True)


class _Certificate(_Part):
    raw_bytes: Bytes


class _LogId(_Part):
    key_id: Bytes


class _Kind(_Part):
    kind: str
    version: str


class _Promise(_Part):
    signed_entry_timestamp: Bytes


class _Checkpoint(_Part):
    envelope: Annotated[str, Field(max_length=8192)]


class _Proof(_Part):
    log_index: Count
    root_hash: Bytes
    tree_size: Count
    hashes: Annotated[list[Bytes], Field(max_length=64)] = Field(default_factory=list)
    checkpoint: _Checkpoint


class LogEntry(_Part):
    """That a log holds the signature. `integrated_time` (seconds) and its promise are those of a log of version 1."""

    log_index: Count
    log_id: _LogId
    kind_version: _Kind
    integrated_time: Count | None = None
    inclusion_promise: _Promise | None = None
    inclusion_proof: _Proof
    canonicalized_body: Bytes


class _Timestamp(_Part):
    signed_timestamp: Bytes


class _Timestamps(_Part):
    rfc3161_timestamps: Annotated[list[_Timestamp], Field(max_length=MAX_TIMESTAMPS, alias="rfc3161Timestamps")] = Field(
        default_factory=list
    )


class _CertificateMaterial(_Part):
    certificate: _Certificate
    tlog_entries: Annotated[list[LogEntry], Field(max_length=8)] = Field(default_factory=list)
    timestamp_verification_data: _Timestamps = Field(default_factory=_Timestamps)


class Material(_Part):
    """A certificate (DER), the one log entry, and timestamps (DER, at least one with a log of version 2)."""

    certificate: bytes
    entry: LogEntry
    version: Literal[1, 2]
    timestamps: tuple[bytes, ...]

    @property
    def log(self) -> str:
        """The id of the log (base64), as a trusted root names it."""
        return encode_base64(self.entry.log_id.key_id)


def read_material(document: dict[str, Any]) -> Material:
    """The verification material of a bundle. Raises Rejected: LogEntryInvalid, TimestampInvalid, SignatureInvalid for all else."""
    with rejecting("SignatureInvalid", "the verification material"):
        found = _CertificateMaterial.model_validate(document)
        if len(found.tlog_entries) != 1:
            raise Rejected(
                "LogEntryInvalid", f"{len(found.tlog_entries)} log entries where there must be one: it is in no transparency log"
            )
        entry = found.tlog_entries[0]
        timestamps = tuple(one.signed_timestamp for one in found.timestamp_verification_data.rfc3161_timestamps)
        with rejecting("LogEntryInvalid", "the log entry"):
            version = _require_kind(entry)
            _require_head(entry)
        if version == 2 and not timestamps:
            raise Rejected("TimestampInvalid", "a log of version 2 says no time, and there is no signed timestamp")
        if len(set(timestamps)) != len(timestamps):
            raise Rejected("TimestampInvalid", "one timestamp stands there twice")
        return Material(certificate=found.certificate.raw_bytes, entry=entry, version=version, timestamps=timestamps)


def _require_kind(entry: LogEntry) -> Literal[1, 2]:
    kind = (entry.kind_version.kind, entry.kind_version.version)
    timed = (entry.integrated_time is not None, entry.inclusion_promise is not None)
    if kind == ("dsse", "0.0.1") and timed == (True, True):
        return 1
    if kind == ("hashedrekord", "0.0.2") and timed == (False, False):
        if entry.log_index != entry.inclusion_proof.log_index:
            raise ValueError(f"it is entry {entry.log_index}, its proof is for {entry.inclusion_proof.log_index}")
        return 2
    raise ValueError(f"of kind {kind[0][:40]} {kind[1][:40]} {'with' if any(timed) else 'without'} a promise, which is no kind known here")


def _require_head(entry: LogEntry) -> None:
    """The signed head of the log must say the proof's size and root, and bear the signature of the log that the entry names."""
    proof = entry.inclusion_proof
    note, separator, signatures = proof.checkpoint.envelope.partition("\n\n")
    lines = note.split("\n")
    if not separator or len(lines) < 3:
        raise ValueError("its checkpoint is not a signed note")
    origin, size, root, *_ = lines
    if (size, root) != (str(proof.tree_size), encode_base64(proof.root_hash)):
        raise ValueError("its checkpoint is of another tree than its proof")
    name = origin.partition(" - ")[0]
    signed = False
    for line in signatures.removesuffix("\n").split("\n"):
        found = re.fullmatch(r"— (\S+) (\S+)", line)
        if found is None:
            raise ValueError("its checkpoint has a line that is no signature")
        # Witnesses may sign as well; the log's own signature is the one that is looked at.
        signed |= decode_base64(found[2])[:4] == entry.log_id.key_id[:4] and found[1] == name
    if not signed or not signatures.endswith("\n"):
        raise ValueError("its checkpoint is not signed by the log that it names")
