"""What a site's TPM has to say to a request for a certificate, where its EdgeSite asks for that: challenge, and verdict on the proof.

The makers of TPMs that are believed are in ConfigMap tpm-authorities of the hub's namespace: PEM, any number of entries. Without any,
nothing is answered: to refuse every TPM would put every site in quarantine for a mistake at the hub. The hub keeps no state of a challenge
but the answer to its request, so it may die at any moment. What is believed of a TPM is decided in trust/attestation.py, which TPM a site
may have in core/attestation.py.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from edgefleet.api.attestation import CHALLENGE_REASON, OFFER_ANNOTATION, PROOF_ANNOTATION, challenged_name
from edgefleet.api.site import Attestation, AttestationStatus, Vouched
from edgefleet.core.attestation import ANSWER_WITHIN, Proven, decide_proof, list_pcrs, refuse_device
from edgefleet.core.joining import CertificateRequest, Refuse
from edgefleet.hub.requests import RequestRecord
from edgefleet.kube.client import Api
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS
from edgefleet.kube.watch import ListWatch
from edgefleet.trust.attestation import Candidate, make_challenge, read_challenge, read_offer, require_maker, verify_proof
from edgefleet.trust.errors import Rejected

PEM_START = "-----BEGIN CERTIFICATE-----"
AUTHORITIES = "tpm-authorities"


@dataclass(frozen=True, slots=True)
class Unready:
    """No answer yet: the hub cannot judge any TPM. `message` says what a person has to do."""

    message: str


class _NoAuthorities(Exception):
    pass


class Attesting:
    """`requests` are all that sites have asked for."""

    def __init__(self, api: Api, namespace: str, requests: ListWatch[RequestRecord]) -> None:
        self._api = api
        self._namespace = namespace
        self._requests = requests

    async def judge(
        self, record: RequestRecord, request: CertificateRequest, wanted: Attestation, held: AttestationStatus | None, now: datetime
    ) -> Vouched | Refuse | Unready:
        """The answer to a request that is granted otherwise. Refuse(CHALLENGE_REASON) brings a challenge as its message."""
        try:
            first = challenged_name(record.metadata.name)
            if first is None:
                return await self._challenge(record, request, wanted, held, now)
            challenged = self._requests.get("", first)
            if challenged is None or not _is_same(challenged, record):
                return Refuse("ChallengeUnknown", f"it brings a proof for request {first}, to which no challenge was given")
            return await self._verify(challenged, record, request, wanted, held, now)
        except Rejected as rejected:
            return Refuse(rejected.reason, rejected.message)
        except _NoAuthorities:
            return Unready(
                f"ConfigMap {self._namespace}/{AUTHORITIES} is missing or names no authority: no TPM can be judged, the request waits."
                f" `kubectl create configmap {AUTHORITIES} -n {self._namespace} --from-file=maker.pem`, the certificate of who made the TPM"
            )

    async def _challenge(
        self, record: RequestRecord, request: CertificateRequest, wanted: Attestation, held: AttestationStatus | None, now: datetime
    ) -> Refuse:
        offer = record.metadata.annotations.get(OFFER_ANNOTATION)
        if offer is None:
            message = "its EdgeSite has spec.attestation, and the request offers no TPM: start its agent with --tpm /dev/tpmrm0"
            return Refuse("AttestationRequired", message)
        candidate = await self._read_candidate(offer, now)
        refusal = refuse_device(wanted, held, candidate.device, invited=bool(request.requester.invitation))
        return refusal or Refuse(CHALLENGE_REASON, make_challenge(candidate, list_pcrs(wanted)).model_dump_json(by_alias=True))

    async def _verify(
        self,
        challenged: RequestRecord,
        record: RequestRecord,
        request: CertificateRequest,
        wanted: Attestation,
        held: AttestationStatus | None,
        now: datetime,
    ) -> Vouched | Refuse:
        denial = next((one for one in challenged.status.conditions if one.reason == CHALLENGE_REASON), None)
        if denial is None:
            return Refuse("ChallengeUnknown", f"it brings a proof for request {challenged.metadata.name}, to which no challenge was given")
        begun = challenged.metadata.creation_timestamp or datetime.fromtimestamp(0, UTC)
        # One that is on record was in time: the hub that verified it died before it could say so.
        recorded = held is not None and held.verified is not None and held.verified.key == request.key
        if now - begun > ANSWER_WITHIN and not recorded:
            return Refuse("ChallengeExpired", f"its challenge is of {begun.isoformat()}: a proof must come within {ANSWER_WITHIN}")
        candidate = await self._read_candidate(challenged.metadata.annotations.get(OFFER_ANNOTATION, ""), now)
        challenge = read_challenge(denial.message)
        # Asked for something else meanwhile: what the site quoted is not what counts.
        if challenge.pcrs != list_pcrs(wanted):
            return Refuse("ChallengeExpired", "its EdgeSite names other PCRs now than in the challenge")
        proof = record.metadata.annotations.get(PROOF_ANNOTATION, "")
        found = verify_proof(candidate, challenge, proof, record.read_request())
        proven = Proven(found.device, {int(pcr): value for pcr, value in found.pcrs.items()}, found.resets)
        lasts = request.lifetime or timedelta()  # a request for any lifetime was refused before
        invited = bool(request.requester.invitation)
        return decide_proof(wanted, held, proven, key=request.key, invited=invited, lasts=lasts, now=now)

    async def _read_candidate(self, offer: str, now: datetime) -> Candidate:
        candidate = read_offer(offer)
        try:
            body = await self._api.get(CONFIG_MAPS, AUTHORITIES, self._namespace)
        except NotFound:
            body = {}
        authorities = list((body.get("data") or {}).values())
        if not any(PEM_START in one for one in authorities):
            raise _NoAuthorities
        require_maker(candidate, authorities, now)
        return candidate


def _is_same(challenged: RequestRecord, record: RequestRecord) -> bool:
    """Whether the two are by one requester, for one key: whoever saw a challenge of another's could not use it."""
    one, other = challenged.spec, record.spec
    return (one.username, one.uid, one.request) == (other.username, other.uid, other.request)
