"""Whom a person trusts, by one set of options in all commands that verify, and how such commands tell what they found.

Either publishers are named (keys, identities), or a trust bundle is: then who is believed is whom it names for the model, as at a site.
What makes a release good is decided in trust/release.py.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from edgefleet.api.meta import format_time
from edgefleet.cli.artifacts import naming, read_public_keys
from edgefleet.cli.output import CommandFailed, Format, print_facts, print_json
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.publishers import Publisher
from edgefleet.trust.signatures import SignedBy


@dataclass(frozen=True)
class Trust:
    """What the options say; each is as it was given."""

    key: list[Path] | None = None
    identity: list[str] | None = None
    identity_regex: list[str] | None = None
    issuer: str = ""
    sigstore_root: Path | None = None
    threshold: int | None = None
    min_seq: int = 0
    require_predicate: list[str] | None = None
    bundle: Path | None = None
    root: Path | None = None

    def find_publisher(self, model: str, *, floor: int = 0, counting: int | None = None) -> Publisher:
        """Who may release the model. A bundle below version `floor` is refused.

        With `counting`, that many publishers are enough whatever the bundle says, and nothing else is demanded: for reading what those said
        that have signed so far. Raises typer.BadParameter, CommandFailed, Rejected, OSError.
        """
        named = bool(self.key or self.identity or self.identity_regex)
        if named is bool(self.bundle or self.root):
            raise typer.BadParameter("say whom to trust: keys or identities, or --bundle with --root", param_hint="--bundle")
        publisher = self._named() if named else self._of_bundle(model, floor)
        if counting is not None:
            return replace(publisher, threshold=counting, predicates=())
        return replace(
            publisher,
            # What a bundle demands is a floor: a person may ask for more, never for less.
            threshold=max(publisher.threshold, self.threshold or 1),
            min_release_seq=max(publisher.min_release_seq, self.min_seq),
            predicates=tuple(dict.fromkeys((*publisher.predicates, *(self.require_predicate or ())))),
        )

    def _named(self) -> Publisher:
        subjects, patterns = self.identity or [], self.identity_regex or []
        if bool(subjects or patterns) is not bool(self.issuer):
            raise typer.BadParameter("--issuer and --identity (or --identity-regex) go together", param_hint="--issuer")
        if bool(self.issuer) is not bool(self.sigstore_root):
            raise typer.BadParameter("identities need the trusted_root.json of their Sigstore", param_hint="--sigstore-root")
        keyless = None
        if self.sigstore_root is not None:
            with rejecting("IdentityInvalid", "--identity-regex"):
                identities = [Identity(self.issuer, one) for one in subjects]
                identities += [Identity(self.issuer, subject_regex=one) for one in patterns]
            keyless = Keyless(tuple(identities), self.sigstore_root.read_bytes())
        return Publisher(read_public_keys(self.key or ()), keyless=keyless)

    def _of_bundle(self, model: str, floor: int) -> Publisher:
        if self.bundle is None or self.root is None:
            raise typer.BadParameter("--bundle and --root go together: the trust bundle, and the root that it follows from")
        # Loads the TUF library: only where a bundle is meant.
        from edgefleet.trust.bundle import open_bundle, require_root

        if not self.bundle.is_file():
            raise CommandFailed("TrustMissing", f"{self.bundle} is not there: no trust bundle has come yet")
        with naming(self.root):
            require_root(self.root.read_bytes())
        with naming(self.bundle):
            found = open_bundle(self.bundle.read_bytes(), pinned_root=self.root.read_bytes(), floor_version=floor, now=datetime.now(UTC))
        if model not in found.publishers:
            known = ", ".join(sorted(found.publishers)[:8]) or "none"
            raise CommandFailed(
                "TrustNotAtSite", f"trust bundle {found.version} names no publisher of model {model[:60]!r}; it names those of: {known}"
            )
        return found.publishers[model]


_HELP = {
    "key": "Public key that is trusted (PEM); may be given several times.",
    "identity": "Subject of a Sigstore certificate that is trusted, such as a workflow's URI; may be given several times.",
    "identity_regex": "The same as a regular expression for the whole subject; all who match are one publisher.",
    "issuer": "URL of the OpenID Connect issuer that gave out the identities.",
    "sigstore_root": "trusted_root.json of the Sigstore that vouches for the identities.",
    "threshold": "How many different keys and identities must have signed; default: 1, or what the bundle says.",
    "min_seq": "Refuse releases with a lower sequence.",
    "require_predicate": "Predicate type that one of them must have attested beside edgefleet's own; may be given several times.",
    "bundle": "Trust bundle (bundle.json): believe whom it names for the model, as a site does.",
    "root": "The root that the trust bundle follows from (root.json).",
}
_LIMITS: dict[str, dict[str, Any]] = {"threshold": {"min": 1, "max": 8}, "min_seq": {"min": 0}}


def trusting(*, key: str = "--key", leave: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes `trust: Trust` gets an option for each of its fields, but for those in `leave`; `key` names that for keys."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        taken = [one for one in fields(Trust) if one.name not in leave]
        options = [
            inspect.Parameter(
                f"trust_{one.name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=Annotated[
                    one.type,
                    typer.Option(
                        key if one.name == "key" else f"--{one.name.replace('_', '-')}", help=_HELP[one.name], **_LIMITS.get(one.name, {})
                    ),
                ],
            )
            for one in taken
        ]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            trust = Trust(**{one.name: given.pop(f"trust_{one.name}") for one in taken})
            command(**given, trust=trust)

        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in inspect.signature(command).parameters.values()]
        place = next(at for at, one in enumerate(own) if one.name == "trust")
        shown = [*own[:place], *options, *own[place + 1 :]]
        called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in shown}
        return called

    return give


@contextmanager
def telling(output: Format, **facts: Any) -> Iterator[None]:
    """With `-o json` a refusal is told on stdout too, with these facts. The Rejected goes on."""
    try:
        yield
    except Rejected as error:
        if output is Format.JSON:
            print_json({"verified": False, **facts, "reason": error.reason, "message": error.message})
        raise


def show_signers(signers: Sequence[SignedBy]) -> list[dict[str, str]]:
    """For `-o json`: who signed; of those without a key also issuer, and when which log had it."""
    return [{label: value for label, value in _describe(one, "loggedAt").items() if value} for one in signers]


def print_signers(signers: Sequence[SignedBy]) -> None:
    """On stdout, the same for people."""
    for one in signers:
        said = _describe(one, "logged")
        print_facts({"signer ": said.pop("signer"), **{label: value for label, value in said.items() if value}})


def _describe(one: SignedBy, at: str) -> dict[str, str]:
    return {"signer": one.name, "issuer": one.issuer, at: format_time(one.logged_at) if one.logged_at else "", "log": one.log}
