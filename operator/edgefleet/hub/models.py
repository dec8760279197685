"""The loop over EdgeModels: a tag becomes a digest, the digest a verified release, the release a revision.

A tag is resolved once per interval. What was verified is remembered by (digest, policy, keys, trusted root): a pass that finds nothing
new asks the registry for one digest and nothing else. A failure keeps the last verified release in status and starts nothing.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from edgefleet.api.assignment import StopServing
from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import AUTHOR_ANNOTATION, format_time, parse_time
from edgefleet.api.model import EdgeModel, KeylessPolicy, Release, RevokedPublishers, SigningIdentity, TrustedIdentity, TrustedRootVersion
from edgefleet.api.quantities import parse_duration
from edgefleet.core.events import plan_model_events
from edgefleet.core.facts import ModelFacts
from edgefleet.core.returning import DISOWNED
from edgefleet.core.revision import compute_revision
from edgefleet.core.status import summarise_model
from edgefleet.hub.disowned import MAX_SIGNERS_SHOWN, find_disowned, find_refused
from edgefleet.hub.events import Events
from edgefleet.hub.registries import AccessFailed, Registries, explain_refused_login
from edgefleet.hub.settings import FIELD_MANAGER
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_MODELS, SECRETS
from edgefleet.oci.client import RegistryClient, digest_of
from edgefleet.oci.errors import RegistryError, TransportError, Unauthorised
from edgefleet.oci.index import fetch_index
from edgefleet.oci.reference import Reference, Repository
from edgefleet.oci.referrers import fetch_bundles
from edgefleet.trust.errors import Rejected, rejecting
from edgefleet.trust.identities import Identity, Keyless
from edgefleet.trust.keys import PublicKey
from edgefleet.trust.publishers import Publisher, Revoked
from edgefleet.trust.release import verify_golden, verify_release

log = logging.getLogger(__name__)

RETRY_AFTER_FAILURE = timedelta(seconds=30)
CONCURRENCY = 16
"""Models looked at together: a registry that does not answer holds its place while the client is patient, and the others go on."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the release that the source names now was not accepted. `passing`: the registry could not be asked; nothing was refused.

    `disowned`: why the one that was verified last would not be accepted now either, if that is so.
    """

    reason: str
    message: str
    passing: bool = False
    disowned: str = ""


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom `spec.verify` trusts now; `root` is the version of the trusted root that identities are believed by."""

    publisher: Publisher
    root: TrustedRootVersion | None = None

    @property
    def mark(self) -> list[object]:
        """Changes when a key or the trusted root does; the policy itself is not in it."""
        keyless = self.publisher.keyless
        root = keyless and hashlib.sha256(keyless.trusted_root).hexdigest()
        return [[key.id for key in self.publisher.keys], root, self.root and self.root.version]


class Models:
    """Reconciles EdgeModels. `failures` counts looks that found nothing to believe, by namespace,
    name and reason."""

    def __init__(self, api: Api, registries: Registries, events: Events) -> None:
        self._api = api
        self._events = events
        self._registries = registries
        self._threads = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="registry")
        self.failures: Counter[tuple[str, str, str]] = Counter()
        self._verified: dict[tuple[str, str], tuple[str, Release]] = {}

    async def reconcile(self, key: tuple[str, str]) -> timedelta | None:
        """One pass over one model. Returns when its source is to be asked again."""
        namespace, name = key
        try:
            model = EdgeModel.parse(await self._api.get(EDGE_MODELS, name, namespace))
        except NotFound:
            self._verified.pop(key, None)
            self._registries.forget(key)
            self.failures = Counter({one: count for one, count in self.failures.items() if one[:2] != key})
            return None
        interval = parse_duration(model.spec.source.interval)
        release, failure = await self._verify(model)
        if failure is not None:
            self.failures[namespace, name, failure.reason] += 1
        revision = None
        if release is not None:
            revision = compute_revision(model=name, release=release, source_repository=model.spec.source.repository, spec=model.spec)
        status = summarise_model(
            old=model.status,
            generation=model.metadata.generation,
            release=release,
            revision=revision.hash if revision else None,
            reason=failure.reason if failure else "",
            message=failure.message if failure else "",
            passing=failure.passing if failure else False,
            now=datetime.now(UTC),
            revoked=model.spec.revoked,
            disowned=failure.disowned if failure else "",
        )
        if status != model.status:
            if failure:
                log.warning("EdgeModel %s/%s: %s: %s", namespace, name, failure.reason, failure.message)
            await self._events.tell(EDGE_MODELS, model.metadata, plan_model_events(model.status, status))
            body = {"metadata": {"name": name, "namespace": namespace}, "status": status.to_json_dict()}
            await self._api.apply(EDGE_MODELS, body, manager=FIELD_MANAGER, subresource="status")
        return min(interval, RETRY_AFTER_FAILURE) if failure else interval

    async def _verify(self, model: EdgeModel) -> tuple[Release | None, Failure | None]:
        try:
            trusted = await self._trusted(model)
        except Rejected as error:
            return None, Failure(error.reason, error.message)
        release: Release | None = None
        failure: Failure | None = None
        keys = model.spec.verify.keys
        if keys and not trusted.publisher.keys:
            # The Secret is there, so nobody lost it: its last key was taken out.
            where = _keys_secret(keys.secret_ref, model.metadata.namespace)
            message = f"{where} has no entry whose name ends in .pub: put one public key into each `<name>.pub`"
            failure = Failure("KeysNotFound", message)
        else:
            release, failure = await self._ask(model, trusted)
        held = model.status.release
        if failure is not None and held is not None:
            # Not on the loop: regexes may have to be compiled, and bundles verified.
            disowned = await asyncio.to_thread(find_disowned, held, trusted.publisher)
            if not disowned and not failure.passing and held.trusted_root != trusted.root:
                disowned = await self._verify_again(model, trusted, held)
            failure = replace(failure, passing=failure.passing and not disowned, disowned=disowned)
        return release, failure

    async def _ask(self, model: EdgeModel, trusted: Trusted) -> tuple[Release | None, Failure | None]:
        try:
            registry = await self._registries.open(model)
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._find, registry, model, trusted), None
        except Rejected as error:
            return None, Failure(error.reason, error.message)
        except AccessFailed as error:
            return None, Failure(error.reason, error.message, passing=True)
        except Unauthorised as error:
            return None, Failure("AuthenticationFailed", f"{error.message}. {explain_refused_login(model)}", passing=True)
        except RegistryError as error:
            return None, Failure(error.reason, str(error), passing=isinstance(error, TransportError))

    async def _trusted(self, model: EdgeModel) -> Trusted:
        verify = model.spec.verify
        keys = await self._keys(verify.keys.secret_ref, model.metadata.namespace) if verify.keys else ()
        with rejecting("IdentityInvalid", "spec.verify.revoked.identities"):
            revoked = await asyncio.to_thread(_read_revoked, verify.revoked)
        publisher = Publisher(keys, verify.demanded, verify.min_release_seq, predicates=verify.required_predicates, revoked=revoked)
        if verify.keyless is None:
            return Trusted(publisher)
        with rejecting("IdentityInvalid", "spec.verify.keyless.identities"):
            identities = await asyncio.to_thread(_read_identities, verify.keyless.identities)
        data, version = await self._trusted_root(model, verify.keyless)
        root = TrustedRootVersion(name=verify.keyless.trusted_root_ref, version=version)
        return Trusted(replace(publisher, keyless=Keyless(identities, data)), root)

    async def _trusted_root(self, model: EdgeModel, policy: KeylessPolicy) -> tuple[bytes, int]:
        name, namespace = policy.trusted_root_ref, model.metadata.namespace
        where = f"ConfigMap {namespace}/{name} (spec.verify.keyless.trustedRootRef)"
        try:
            data = (await self._api.get(CONFIG_MAPS, name, namespace)).get("data") or {}
        except NotFound:
            raise Rejected(
                "TrustedRootNotFound", f"{where} does not exist: create it with the entries trusted_root.json and version"
            ) from None
        text, version = data.get("trusted_root.json", ""), data.get("version", "")
        if not text or not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            found = ", ".join(sorted(data)) or "none"
            raise Rejected(
                "TrustedRootNotFound", f"{where} needs the entries trusted_root.json and version, a number from 1; found: {found[:200]}"
            )
        held = model.status.release.trusted_root if model.status.release else None
        if held is not None and held.name == name and int(version) < held.version:
            raise Rejected(
                "TrustedRootRollback",
                f"{where} has version {version}, version {held.version} was already believed here: who was removed would come back",
            )
        return text.encode(), int(version)

    async def _keys(self, name: str, namespace: str | None) -> tuple[PublicKey, ...]:
        where = _keys_secret(name, namespace)
        try:
            data = (await self._api.get(SECRETS, name, namespace)).get("data") or {}
        except NotFound:
            raise Rejected("KeysNotFound", f"{where} does not exist: create it with one public key per entry `<name>.pub`") from None
        return tuple(PublicKey.from_pem(base64.b64decode(value)) for entry, value in sorted(data.items()) if entry.endswith(".pub"))

    def _find(self, registry: RegistryClient, model: EdgeModel, trusted: Trusted) -> Release:
        source, verify = model.spec.source, model.spec.verify
        repository = Repository.parse(source.repository)
        digest = source.digest or registry.resolve(Reference(repository, tag=source.tag))
        revoked = next((one for one in model.spec.revoked if one.digest == digest), None)
        if revoked is not None:
            why = f" ({revoked.reason})" if revoked.reason else ""
            raise Rejected("Revoked", f"{repository}@{digest} stands in spec.revoked{why}: name another release in spec.source")
        rules = {"verify": verify.to_json_dict(), "golden": model.spec.golden and model.spec.golden.to_json_dict()}
        mark = hashlib.sha256(json.dumps([digest, rules, trusted.mark]).encode()).hexdigest()
        key = (model.metadata.namespace or "", model.metadata.name)
        held = self._verified.get(key)
        if held is not None and held[0] == mark:
            return held[1]
        release = self._fetch_verified(registry, model, trusted, repository, digest)
        self._verified[key] = (mark, release)
        return release

    async def _verify_again(self, model: EdgeModel, trusted: Trusted, held: Release) -> str:
        """Why a release that was verified under another root is refused under this one; empty if it is not, or nothing can be told."""
        repository = Repository.parse(model.spec.source.repository)
        try:
            registry = await self._registries.open(model)
            found = await asyncio.get_running_loop().run_in_executor(self._threads, fetch_bundles, registry, repository, held.digest)
        except (AccessFailed, Rejected, RegistryError):
            return ""
        return await asyncio.to_thread(find_refused, held, model.metadata.name, found.bundles, trusted.publisher)

    def _fetch_verified(self, registry: RegistryClient, model: EdgeModel, trusted: Trusted, repository: Repository, digest: str) -> Release:
        golden, name = model.spec.golden, model.metadata.name
        found = fetch_bundles(registry, repository, digest)
        verified = verify_release(
            digest=digest,
            model=name,
            bundles=found.bundles,
            publisher=trusted.publisher,
            problems=found.problems,
        )
        index = fetch_index(registry, repository, digest)
        verified.require_variants({variant.name: variant.digest for variant in index.variants})
        if golden is not None:
            where = Repository.parse(golden.repository)
            exam = fetch_bundles(registry, where, golden.digest)
            try:
                verify_golden(digest=golden.digest, model=name, bundles=exam.bundles, publisher=trusted.publisher, problems=exam.problems)
            except Rejected as error:
                raise Rejected(error.reason, f"golden set {where}@{golden.digest}: {error.message}") from error
        return Release(
            digest=digest,
            version=verified.version,
            seq=verified.seq,
            variants=index.variants,
            signed_by=tuple(signer.name for signer in verified.signers[:MAX_SIGNERS_SHOWN]),
            identities=tuple(
                SigningIdentity(subject=signer.name, issuer=signer.issuer, logged_at=format_time(signer.logged_at))
                for signer in verified.signers[:MAX_SIGNERS_SHOWN]
                if signer.logged_at is not None
            ),
            trusted_root=trusted.root,
            evidence=tuple(sorted(set(map(digest_of, verified.bundles)))),
            verified_at=format_time(datetime.now(UTC)),
        )


def _keys_secret(name: str, namespace: str | None) -> str:
    return f"Secret {namespace}/{name} (spec.verify.keys.secretRef)"


def _read_revoked(revoked: RevokedPublishers) -> Revoked:
    return Revoked(keys=frozenset(revoked.keys), identities=_read_identities(revoked.identities))


def _read_identities(entries: Sequence[TrustedIdentity]) -> tuple[Identity, ...]:
    return tuple(Identity(entry.issuer, entry.subject or "", entry.subject_regex or "") for entry in entries)


def model_facts(model: EdgeModel) -> ModelFacts:
    """What a fleet needs to know of its model: the revision of the last verified release, and whether the source's is verified."""
    release = model.status.release
    target = None
    if release is not None:
        target = compute_revision(
            model=model.metadata.name, release=release, source_repository=model.spec.source.repository, spec=model.spec
        )
    source = find_condition(model.status.conditions, "SourceVerified")
    disowned = find_condition(model.status.conditions, DISOWNED)
    listed = {revoked.digest for revoked in model.spec.revoked}
    return ModelFacts(
        target=target,
        verified=source is not None and source.status == "True" and model.status.observed_generation == model.metadata.generation,
        reason=source.reason if source else "",
        message=source.message if source else "",
        revoked=frozenset(listed),
        stops=tuple(
            StopServing(digest=one.digest, by=parse_time(one.stop_serving_by))
            for one in model.status.revoked
            if one.stop_serving_by and one.digest in listed
        ),
        disowned=disowned.message if disowned else "",
        author=model.metadata.annotations.get(AUTHOR_ANNOTATION, "")[:256],
    )
