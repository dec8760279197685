"""A hub that knows no maker of TPMs judges no TPM: it says so, and its sites are not put in quarantine for that."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edgefleet.api.attestation import CHALLENGE_REASON, OFFER_ANNOTATION
from edgefleet.core.joining import SIGNER
from edgefleet.hub.inventory import Inventory
from edgefleet.hub.joining import UNREADY_AGAIN, Joining
from edgefleet.kube.errors import NotFound
from edgefleet.kube.resources import CONFIG_MAPS, EDGE_SITES, SERVICE_ACCOUNTS
from edgefleet.trust.attestation import read_offer
from edgefleet.trust.identity import make_request
from edgefleet.trust.keys import PrivateKey
from tests.lab.tpm import Maker

OFFER = json.loads((Path(__file__).parents[1] / "trust/vectors/tpm.json").read_text())["offer"]
MAKER = Maker()
NOW = datetime.now(UTC)
VOUCHED = {
    "deviceHash": read_offer(json.dumps(OFFER)).device,
    "key": "sha256:" + "1" * 64,
    "verifiedAt": "2026-01-01T00:00:00Z",
    "validUntil": (NOW + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "resets": 1,
    "pcrs": [],
}


def ignore(_: object) -> None:
    return


class FakeApi:
    """A hub's cluster with one EdgeSite that a TPM vouched for, one join account, and these entries of tpm-authorities (None: absent)."""

    def __init__(self, authorities: dict[str, str] | None) -> None:
        self.authorities = authorities
        self.site: dict[str, Any] = {
            "metadata": {"name": "plant", "resourceVersion": "1"},
            "spec": {"attestation": {"mode": "Required"}},
            "status": {"attestation": {"verified": VOUCHED}},
        }
        self.answers: list[str] = []

    async def get(self, kind: object, name: str, namespace: str | None = None) -> dict[str, Any]:
        if kind == CONFIG_MAPS and self.authorities is not None:
            return {"metadata": {"name": name}, "data": self.authorities}
        if kind == EDGE_SITES:
            return self.site
        if kind == SERVICE_ACCOUNTS:
            return {"metadata": {"name": name, "uid": "1-2-3"}}
        raise NotFound(404, name)

    async def apply(self, kind: object, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.site = {**self.site, "status": body["status"]}
        return self.site

    async def patch(self, kind: object, name: str, namespace: str | None, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.answers += [one["reason"] for one in body["status"]["conditions"]]
        return {"metadata": {"name": name, "resourceVersion": "9"}, **body}


class FakeEvents:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def tell(self, kind: object, meta: object, notes: Any) -> None:
        self.told += [(one.reason, one.message) for one in notes]


def asking(api: Any, events: Any) -> Joining:
    """A hub at which the site asks for a certificate, by a join token, and offers a TPM of MAKER's."""
    inventory = Inventory(api, on_fleet=ignore, on_site=ignore, on_renewal=ignore, on_health=lambda site, fleet: None, on_heartbeat=ignore)
    joining = Joining(api, inventory, events, namespace="hub", on_request=ignore)
    certificate = MAKER.certify(read_offer(json.dumps(OFFER)).endorsement)
    offer = json.dumps({**OFFER, "certificate": base64.b64encode(certificate).decode()})
    spec = {
        "request": base64.b64encode(make_request(PrivateKey.generate(), "plant")).decode(),
        "signerName": SIGNER,
        "username": "system:serviceaccount:edgefleet-join:join-plant",
        "uid": "1-2-3",
        "usages": ["client auth", "digital signature"],
        "expirationSeconds": 86_400,
    }
    meta = {"name": "plant-1", "resourceVersion": "5", "annotations": {OFFER_ANNOTATION: offer}}
    joining.requests.observe({"metadata": meta | {"creationTimestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ")}, "spec": spec})
    return joining


@pytest.mark.parametrize("authorities", [None, {}, {"maker.pem": ""}, {"README": "none yet"}], ids=["absent", "empty", "blank", "no PEM"])
async def test_without_a_maker_the_request_waits_and_nobody_is_in_quarantine(authorities: dict[str, str] | None) -> None:
    api, events = FakeApi(authorities), FakeEvents()
    joining = asking(api, events)
    assert await joining.reconcile("plant") == UNREADY_AGAIN
    assert api.answers == []
    assert api.site["status"]["attestation"] == {"verified": VOUCHED}
    ((reason, message),) = events.told
    assert reason == "AttestationUnready"
    assert "kubectl create configmap tpm-authorities -n hub" in message
    api.authorities = {"maker.pem": MAKER.pem}
    assert await joining.reconcile("plant") is None
    assert api.answers == [CHALLENGE_REASON]


async def test_another_maker_is_refused_as_ever() -> None:
    api, events = FakeApi({"maker.pem": Maker("another").pem}), FakeEvents()
    assert await asking(api, events).reconcile("plant") is None
    assert api.answers == ["UntrustedEK"]
    assert api.site["status"]["attestation"]["refused"]["reason"] == "UntrustedEK"
