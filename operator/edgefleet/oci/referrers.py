"""Finding what was attached to an artifact: Sigstore bundles, by the referrers API and by the fallback tag.

What a registry lists is a hint and no more. Entries of the fallback tag's index carry a wrong artifactType when cosign wrote
them, and anyone who can push can list anything: so nothing is filtered by an entry, each manifest is opened, its digest checked, and its
`subject` compared. Whether a bundle is worth anything is decided by trust.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from edgefleet.oci import media
from edgefleet.oci.answers import join_address
from edgefleet.oci.body import read_whole
from edgefleet.oci.client import MAX_MANIFEST_BYTES, RegistryClient
from edgefleet.oci.errors import ContentError, MalformedManifest, NotFound, RegistryRefused
from edgefleet.oci.manifest import Descriptor, parse_descriptor, parse_descriptors, parse_document
from edgefleet.oci.reference import Repository

MAX_REFERRERS = 64
MAX_PAGES = 8
MAX_LISTED = 1024
MAX_BUNDLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Candidate:
    """A bundle that names the artifact as its subject. `source` says where it was found, for messages."""

    data: bytes
    source: str


@dataclass(frozen=True)
class Discovery:
    """What was found, and why other entries were not used."""

    candidates: tuple[Candidate, ...]
    problems: tuple[str, ...]

    @property
    def bundles(self) -> tuple[bytes, ...]:
        """The candidates' bytes, as trust takes them."""
        return tuple(candidate.data for candidate in self.candidates)


def fetch_bundles(client: RegistryClient, repository: Repository, digest: str) -> Discovery:
    """All Sigstore bundles attached to an artifact.

    Raises TransportError if the registry could not be asked: that is not the same as an unsigned artifact. Entries with wrong content
    become `problems`.
    """
    candidates: list[Candidate] = []
    problems: list[str] = []
    seen: set[str] = set()
    for entry in list_referrers(client, repository, digest, problems):
        if entry.digest in seen:
            continue
        seen.add(entry.digest)
        if len(seen) > MAX_REFERRERS:
            problems.append(f"{repository}@{digest} has more than {MAX_REFERRERS} referrers: only the first {MAX_REFERRERS} were opened")
            break
        where = f"referrer {entry.digest}"
        try:
            candidates.extend(_open_entry(client, repository, digest, entry.digest, where))
        except ContentError as error:
            # Many of these share one condition, which is cut at its end: first what tells them apart.
            problems.append(f"referrer {entry.digest[:19]}: {error.reason}: {error.message.removeprefix(where + ': ')}")
    return Discovery(tuple(candidates), tuple(problems))


def list_referrers(client: RegistryClient, repository: Repository, digest: str, problems: list[str]) -> Iterator[Descriptor]:
    """What the registry lists for a digest: the referrers API first; the fallback tag too if that is missing or empty.

    Raises TransportError. Unreadable lists are told in `problems`.
    """
    found = False
    for entry in _listed_by_api(client, repository, digest, problems):
        found = True
        yield entry
    if not found:
        tag = fallback_tag(digest)
        try:
            data = client.fetch_tagged(repository, tag)
        except ContentError as error:
            problems.append(error.message)
            return
        if data is not None:
            yield from _read_list(data, f"{repository}:{tag}", problems)


def fallback_tag(digest: str) -> str:
    """The tag under which clients list referrers in registries that cannot. Source: OCI distribution spec 1.1."""
    return digest.replace(":", "-")


def _listed_by_api(client: RegistryClient, repository: Repository, digest: str, problems: list[str]) -> Iterator[Descriptor]:
    url = f"{repository.url}/referrers/{digest}"
    what = f"referrers of {repository}@{digest}"
    for _ in range(MAX_PAGES):
        try:
            with closing(client.request("GET", repository, url, headers={"Accept": media.INDEX})) as response:
                data = read_whole(response, what, MAX_MANIFEST_BYTES, client.patience.watchdog)
        except (NotFound, RegistryRefused):
            # Registries without the API answer 404, some 400 or 405.
            return
        except ContentError as error:
            problems.append(error.message)
            return
        yield from _read_list(data, what, problems)
        link = response.links.get("next", {}).get("url")
        if not link:
            return
        try:
            url = join_address(url, link)
        except RegistryRefused as error:
            problems.append(error.message)
            return
    problems.append(f"{what}: more than {MAX_PAGES} pages, the others were not read")


def _read_list(data: bytes, what: str, problems: list[str]) -> tuple[Descriptor, ...]:
    try:
        return parse_descriptors(parse_document(data, media.INDEX, what), "manifests", MAX_LISTED, what)
    except ContentError as error:
        problems.append(error.message)
        return ()


def _open_entry(client: RegistryClient, repository: Repository, digest: str, entry: str, where: str) -> list[Candidate]:
    document = parse_document(client.fetch_manifest(repository, entry), media.MANIFEST, where)
    subject = parse_descriptor(document.get("subject"), f"{where}: subject")
    if subject.digest != digest:
        raise MalformedManifest(f"{where}: its subject is {subject.digest}, not {digest}")
    layers = parse_descriptors(document, "layers", MAX_REFERRERS, where)
    if document.get("artifactType") == media.SIGSTORE_BUNDLE:
        wanted = layers[:1]
    else:
        wanted = tuple(layer for layer in layers if layer.media_type == media.SIGSTORE_BUNDLE)[:1]
    return [Candidate(client.fetch_small_blob(repository, layer.digest, layer.size, MAX_BUNDLE_BYTES), where) for layer in wanted]
