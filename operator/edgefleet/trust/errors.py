"""The one exception that leaves verification, and the reasons it carries.

Whatever comes in (truncated, hostile, of a future version), a verdict is either a value or `Rejected`; nothing else leaves this
room but `OSError` of a file that the caller named. Reasons are CamelCase, because they become the `reason` of a condition:

    KeyInvalid            a key is not an ECDSA P-256 key in PEM, or is missing
    SignatureMissing      nobody signed this digest
    SignatureInvalid      signatures are there, but none by a trusted publisher
    IdentityMismatch      signed without a key, by nobody who is trusted; keyless.py has the other reasons of such signatures
    ThresholdNotMet       trusted publishers signed, but fewer than the policy demands
    AttestationMissing    signed, but no release attestation by enough of them
    ModelMismatch         attested for another model name
    VariantMismatch       attested with other variants than the index has
    SeqTooLow             attested, but older than the floor allows
    PredicateMissing      signed and attested, but not what the policy demands beside it
    Revoked               this artifact is not believed any more, whoever signed it
    PublisherRevoked      signed by a key or an identity that is not believed any more
    RootMalformed         the root that a site shall pin cannot be read
    BundleMalformed       the trust bundle cannot be read
    BundleFormatUnknown   a trust bundle of a newer format: upgrade edgefleet
    BundleRootMismatch    the trust bundle does not follow from the pinned root
    BundleUnderSigned     fewer root keys signed the trust bundle than its root demands
    BundleExpired         the trust bundle, or its root, is past its end
    BundleRollback        the trust bundle is older than one already seen
    DraftForeign          a draft of a bundle whose roots are not those in force and at most the next
    DraftVersion          a draft of a bundle that is not the next version
    RootKeyUnknown        a key that may sign neither a draft nor its root
    OrderMalformed        an assignment's envelope cannot be read
    OrderSignatureInvalid an assignment that no trusted hub key signed
    EvidenceMalformed     what a TPM is said to have said cannot be read
    UntrustedEK           a TPM of a maker that nobody named
    AttributesRejected    a key that could leave its TPM, or sign what it should not
    NonceMismatch         an answer to another challenge, or for another request
    PCRMismatch           a quote of other PCRs, or of other values
    FormatUnknown         an assignment of a newer format: upgrade the agent
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Rejected(Exception):
    """Not to be believed. `reason` is CamelCase; `message` says what was found and what would have been accepted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


@contextmanager
def rejecting(reason: str, subject: str) -> Iterator[None]:
    """Turn every failure inside into `Rejected(reason, ...)`; a Rejected passes as it is.

    Parsers meet input that nobody foresaw: an exception that we did not think of must still be a no, never a crash. What a library in Rust
    raises where it panics is not even an Exception.
    """
    try:
        yield
    except Rejected:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Rejected(reason, f"{subject}: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
