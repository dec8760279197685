"""What leaves in a support bundle: planted secrets never, wherever they were planted; what explains a fault always."""

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefleet.core.redaction import GONE, LAST_APPLIED, redact_object, redact_text
from edgefleet.trust.keys import PrivateKey

SECRET = "hunter2Zq9xW"
KEY = PrivateKey.generate()
PEM = KEY.to_pem()
BODY = PEM.splitlines()[1]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2lnbmF0dXJl"
DIGEST = "sha256:" + "ab" * 32

TEXTS = [
    f"cannot pull https://robot:{SECRET}@registry.example/vision/weld: 401",
    f"cannot pull https://{SECRET}@registry.example/vision",
    f"proxy http://user:pa/{SECRET}@proxy.example:3128 refused",
    f"GET https://blobs.example/x?X-Amz-Signature={SECRET}&X-Amz-Date=1 failed",
    f"GET /v2/token?service=r&access_token={SECRET}",
    f"redirect to https://s.example/blob?sv=1&sig={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"authorization: Basic {base64.b64encode(SECRET.encode()).decode()}",
    f"{{'Authorization': 'Token {SECRET}'}}",
    f'headers {{"authorization":"Bearer {SECRET}"}}',
    f"sent Bearer {SECRET} to the hub",
    f"sent {JWT} to the hub",
    f"password={SECRET}",
    f"PASSWORD: {SECRET}",
    f'"db_password": "{SECRET} with blanks"',
    f'{{\\"token\\": \\"{SECRET}\\"}}',
    f"edgefleet --registry-password {SECRET} --verbose",
    f"edgefleet --token={SECRET}",
    f"api_key={SECRET};next",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"glpat-{SECRET}{SECRET}",
    f"ghp_{SECRET}{SECRET}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_credential_in_a_line_goes(text: str) -> None:
    said = redact_text(text)
    assert GONE in said
    for part in (SECRET, JWT, base64.b64encode(SECRET.encode()).decode(), "with blanks"):
        assert part not in said
    assert redact_text(said) == said, "once is enough"


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        f"2026-11-28 INFO read key {PEM} and went on",
        json.dumps({"data": PEM}),
        PEM.replace("\n", "\n2026-11-28 INFO "),
        PEM[: len(PEM) - 40],
        base64.b64encode(PEM.encode()).decode(),
        f"hub.key: {base64.b64encode(PEM.encode()).decode()}",
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{BODY}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_private_key_goes_and_what_stands_around_it_stays(text: str) -> None:
    said = redact_text(text)
    assert BODY not in said
    assert BODY[:24] not in said
    assert base64.b64encode(PEM.encode()).decode()[60:100] not in said
    assert ("and went on" in said) == ("and went on" in text)


@pytest.mark.parametrize(
    "text",
    [
        f"release 2.4 ({DIGEST}) is signed by {KEY.public.id}",
        f"pulled 127.0.0.1:5000/vision/weld@{DIGEST}",
        f"pulled registry.example/vision/weld:2.4@{DIGEST}",
        f"https://registry.example/v2/vision/weld/manifests/{DIGEST}",
        f"http://127.0.0.1:5000/vision/weld@{DIGEST}",
        "waiting: Secret edgefleet-system/hub-key with entry hub.key (`edgefleet trust init` makes it)",
        "Secret team/publishers (spec.verify.keys.secretRef) has no entry whose name ends in .pub",
        KEY.public.to_pem(),
        base64.b64encode(KEY.public.to_pem().encode()).decode(),
        "system:serviceaccount:edgefleet-system:edgefleet-hub",
        "2026-11-28T06:00:00Z sites go back alone: berlin, oslo",
        'edgefleet_fleet_sites{fleet="plants",namespace="team",state="desired"} 3.0',
        "edgefleet.io/v1alpha1 siteassignments.edgefleet.io",
    ],
)
def test_what_explains_a_fault_stays(text: str) -> None:
    assert redact_text(text) == text


def pod() -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {
            "name": "hub",
            "annotations": {
                LAST_APPLIED: json.dumps({"spec": SECRET}),
                "team.example/note": f"the password is password={SECRET}",
                "team.example/registry-token": SECRET,
                "team.example/docker": json.dumps({"auths": {"registry.example": {"auth": SECRET}}}),
                "edgefleet.io/site": json.dumps({"agentVersion": "0.1.0"}),
            },
            "managedFields": [{"manager": SECRET}],
        },
        "spec": {
            "containers": [
                {
                    "image": f"registry.example/edgefleet@{DIGEST}",
                    "args": ["hub", "--registry-password", SECRET, f"--proxy=http://u:{SECRET}@p.example"],
                    "env": [
                        {"name": "HARMLESS_LOOKING", "value": SECRET},
                        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "hub-key", "key": "hub.key"}}},
                    ],
                }
            ],
            "imagePullSecrets": [{"name": "pull"}],
            "credentials": {"user": SECRET, "more": [SECRET]},
        },
    }


def test_an_object_keeps_its_shape_and_loses_its_secrets() -> None:
    found = redact_object(pod())
    assert SECRET not in json.dumps(found)
    notes = found["metadata"]["annotations"]
    assert notes[LAST_APPLIED] == GONE
    assert json.loads(notes["edgefleet.io/site"]) == {"agentVersion": "0.1.0"}
    assert "managedFields" not in found["metadata"]
    container = found["spec"]["containers"][0]
    assert container["image"].endswith(DIGEST)
    assert container["env"][0] == {"name": "HARMLESS_LOOKING", "value": GONE}
    assert container["env"][1]["valueFrom"] == {"secretKeyRef": {"name": "hub-key", "key": "hub.key"}}
    assert found["spec"]["imagePullSecrets"] == [{"name": "pull"}]


def test_names_of_secrets_stay_and_secrets_do_not() -> None:
    spec = {"source": {"secretRef": "pull"}, "verify": {"keys": {"secretRef": "publishers", "threshold": 1}}, "token": SECRET}
    assert redact_object(spec) == {**spec, "token": GONE}
    secret = {
        "kind": "Secret",
        "metadata": {"name": "hub-key", "namespace": "a", "annotations": {"x": SECRET}},
        "data": {"hub.key": SECRET},
    }
    assert redact_object({"items": [secret]}) == {
        "items": [{"kind": "Secret", "metadata": {"name": "hub-key", "namespace": "a"}, "redacted": True}]
    }
    assert redact_object({"envelope": "abc"}) == {"envelope": "[left out: 3 characters]"}


@settings(deadline=None)
@given(
    secret=st.text("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", min_size=12, max_size=40),
    before=st.text(max_size=30),
    after=st.text(max_size=30),
    where=st.sampled_from(["https://u:{}@h.example/x", "Authorization: Bearer {}", "password={} ", "?token={}&a=b", '{{"secret": "{}"}}']),
)
def test_whatever_stands_around_it(secret: str, before: str, after: str, where: str) -> None:
    if secret in before or secret in after:
        return
    assert secret not in redact_text(f"{before} {where.format(secret)} {after}")
    assert secret not in json.dumps(redact_object({"message": f"{before} {where.format(secret)} {after}"}))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["?key", "-----BEGIN PRIVATE KEY-----", "a.", "://a:", "password=", "--a-", "eyJaaaaaaaa.", "Bearer "])
def test_no_line_takes_for_ever(part: str) -> None:
    redact_text(part * 20_000)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_any_value_can_be_redacted(value: Any) -> None:
    json.dumps(redact_object(value))
