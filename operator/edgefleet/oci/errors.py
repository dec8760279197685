"""What can go wrong with a registry, as one tree. The callers decide whom a failure counts against and when to try again.

    RegistryError
      ReferenceInvalid        a reference or repository that is not one
      TransportError          the registry could not be asked, or would not answer: the same request may succeed later
        Unreachable           no connection, a broken one, or a 5xx
        Stalled               connected, but nothing (or next to nothing) came for too long
        RateLimited           429, also after waiting as told; `retry_after` in seconds if the registry said one
        Unauthorised          401 or 403, also with a fresh token
        RegistryRefused       another status that the protocol does not allow here
      ContentError            the registry answered, and the answer is wrong: asking again gives the same
        NotFound              404
        DigestMismatch        the bytes are not those that the digest names
        SizeMismatch          more or fewer bytes than the descriptor says
        TooLarge              more bytes, or more entries, than we read
        MalformedManifest     a manifest, index or golden set that cannot be read
        LayerUnsupported      a layer of a kind that we do not unpack
        NoVariant             an index without the variant that was asked for

Each class has a CamelCase `reason`, used as the reason of a condition. Messages name the object; they never hold credentials.
"""


class RegistryError(Exception):
    """Base of all that this room raises."""

    reason = "RegistryError"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ReferenceInvalid(RegistryError, ValueError):
    """A reference or repository that is not one."""

    reason = "ReferenceInvalid"


class TransportError(RegistryError):
    """The registry could not be asked, or would not answer."""

    reason = "RegistryUnreachable"


class Unreachable(TransportError):
    """No connection, a broken one, or a 5xx. `retry_after`: seconds, if the registry said when to come back."""

    reason = "RegistryUnreachable"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stalled(TransportError):
    """Connected, but nothing, or next to nothing, came for too long."""

    reason = "RegistryStalled"


class RateLimited(TransportError):
    """429. `retry_after`: seconds, if the registry said when to come back."""

    reason = "RateLimited"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unauthorised(TransportError):
    """401 or 403, also with a fresh token."""

    reason = "Unauthorised"


class RegistryRefused(TransportError):
    """A status that the protocol does not allow here."""

    reason = "RegistryRefused"


class ContentError(RegistryError):
    """The registry answered, and the answer is wrong."""

    reason = "ContentInvalid"


class NotFound(ContentError):
    """404."""

    reason = "NotFound"


class DigestMismatch(ContentError):
    """The bytes are not those that the digest names."""

    reason = "DigestMismatch"


class SizeMismatch(ContentError):
    """More or fewer bytes than the descriptor says."""

    reason = "SizeMismatch"


class TooLarge(ContentError):
    """More bytes, or more entries, than we read."""

    reason = "TooLarge"


class MalformedManifest(ContentError):
    """A manifest, index or golden set that cannot be read."""

    reason = "MalformedManifest"


class LayerUnsupported(ContentError):
    """A layer of a kind that we do not unpack."""

    reason = "LayerUnsupported"


class NoVariant(ContentError):
    """An index without the variant that was asked for."""

    reason = "NoVariant"
