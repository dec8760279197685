"""A Sigstore's trusted root: its authorities, its logs, and when each of them was in force.

The library looks at the end of a timestamp authority alone. Here an authority or a log counts only for what it said inside its own
`validFor`, so that an entry can be ended without disowning what it said before. Sigstore's library is loaded by the first root that is
read: it costs a second and 65 MB, which nobody pays who believes keys alone.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding

from edgefleet.api.meta import format_time
from edgefleet.trust.documents import parse_json_object
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.timestamps import require_form

if TYPE_CHECKING:
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier

_AUTHORITIES, _CT, _LOGS = "certificateAuthorities", "ctlogs", "tlogs"


@dataclass(frozen=True)
class Times:
    """What a bundle says of when: the certificate's start, the CT log's promise, and what the log's own time is."""

    issued: datetime
    promised: datetime
    logged: datetime


@functools.lru_cache(maxsize=8)
def open_root(data: bytes) -> "SigstoreRoot":
    """The root in these bytes. Raises Rejected(TrustedRootMalformed)."""
    with rejecting("TrustedRootMalformed", "not a trusted_root.json of a Sigstore"):
        return SigstoreRoot(parse_json_object(data))


class SigstoreRoot:
    """Gives verifiers that believe only what was in force. Made by open_root."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        for field, what in ((_AUTHORITIES, "certificate authority"), (_CT, "CT log"), (_LOGS, "transparency log")):
            if not document.get(field):
                raise ValueError(f"it names no {what}")
        self._windows = {
            _AUTHORITIES: [_read_window(one) for one in document[_AUTHORITIES]],
            _CT: [_read_window(one["publicKey"]) for one in document[_CT]],
            _LOGS: [_read_window(one["publicKey"]) for one in document[_LOGS]],
        }
        names = [[one[field]["keyId"] for field in ("logId", "checkpointKeyId") if field in one] for one in document[_LOGS]]
        self._log_names = [frozenset(one) for one in names]
        self._whole = _read_root(document)
        self._verifier = functools.lru_cache(maxsize=16)(self._make_verifier)
        self._verifier(*(tuple(range(len(document[field]))) for field in (_AUTHORITIES, _CT, _LOGS)))
        self._stamps = [one.certificates(allow_expired=True) for one in self._whole.get_timestamp_authorities()]
        self._stamp_windows = [_read_window(one) for one in document.get("timestampAuthorities", [])]

    def verifier_of_all(self) -> "Verifier":
        """Believes every entry, whenever it was in force: only to say why another verifier refused."""
        return self._verifier(*(tuple(range(len(self._document[field]))) for field in (_AUTHORITIES, _CT, _LOGS)))

    def verifier(self, times: Times, log_id: str) -> "Verifier":
        """Believes the authorities in force when the certificate was issued, and logs in force when they spoke.

        `log_id` (base64) is the one log that the bundle names. Raises Rejected(TrustedRootEnded, LogEntryInvalid).
        """
        named = [number for number, names in enumerate(self._log_names) if log_id in names]
        if not named:
            raise Rejected("LogEntryInvalid", f"logged in {log_id[:64]}, a log that the trusted root does not name")
        kept = []
        for field, what, moment in (
            (_AUTHORITIES, "certificate authority", times.issued),
            (_CT, "CT log", times.promised),
            (_LOGS, "transparency log", times.logged),
        ):
            among = named if field == _LOGS else range(len(self._windows[field]))
            inside = tuple(number for number in among if _contains(self._windows[field][number], moment))
            if not inside:
                raise Rejected("TrustedRootEnded", f"no {what} of the trusted root was in force at {format_time(moment)}")
            kept.append(inside)
        return self._verifier(*kept)

    def address_of(self, log_id: str) -> str:
        """Where the log with this id (base64) is, as the root says; the id itself where it does not."""
        found = (one.get("baseUrl") for one, names in zip(self._document[_LOGS], self._log_names, strict=True) if log_id in names)
        return next(found, None) or log_id

    def stamped_at(self, data: bytes, message: bytes) -> datetime:
        """When a timestamp (TimeStampResp, DER) over `message` was made, in UTC. Raises Rejected(TimestampInvalid, TrustedRootEnded)."""
        with rejecting("TimestampInvalid", "the timestamp"):
            return self._stamped_at(data, message)

    def _stamped_at(self, data: bytes, message: bytes) -> datetime:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

        response = decode_timestamp_response(data)
        problem = "the trusted root names no timestamp authority"
        for chain, window in zip(self._stamps, self._stamp_windows, strict=True):
            builder = VerifierBuilder().tsa_certificate(chain[0]).add_root_certificate(chain[-1])
            for between in chain[1:-1]:
                builder = builder.add_intermediate_certificate(between)
            try:
                builder.build().verify_message(response, message)
            except VerificationError as error:
                problem = str(error).partition(": ErrorStack")[0]  # what follows is OpenSSL's, for nobody
                continue
            require_form(data, chain[0], [one.public_bytes(Encoding.DER) for one in chain])
            moment = response.tst_info.gen_time
            if not _contains(window, moment):
                raise Rejected("TrustedRootEnded", f"the timestamp authority was not in force at {format_time(moment)}")
            return moment
        raise Rejected("TimestampInvalid", f"no timestamp authority of the trusted root made the timestamp: {problem[:200]}")

    def _make_verifier(self, authorities: Sequence[int], ct: Sequence[int], logs: Sequence[int]) -> "Verifier":
        from sigstore.verify import Verifier

        kept = {_AUTHORITIES: authorities, _CT: ct, _LOGS: logs}
        return Verifier(
            trusted_root=_read_root(self._document | {name: [self._document[name][number] for number in kept[name]] for name in kept})
        )


def _read_root(document: dict[str, Any]) -> "TrustedRoot":
    from sigstore.models import ClientTrustConfig

    # The one way into the library that takes bytes and neither a file, the network nor a cache in the home folder.
    whole = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": document,
        "signingConfig": {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"},
    }
    return ClientTrustConfig.from_json(json.dumps(whole)).trusted_root


Window = tuple[datetime | None, datetime | None]


def _read_window(document: dict[str, Any]) -> Window:
    window = document.get("validFor") or {}
    read: Callable[[str], datetime | None] = lambda end: datetime.fromisoformat(window[end]) if window.get(end) else None  # noqa: E731
    return read("start"), read("end")


def _contains(window: Window, moment: datetime) -> bool:
    start, end = window
    return (start is None or start <= moment) and (end is None or moment <= end)
