"""`edgefleet trust set-limits`: from a file that people review to what a site reads."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgefleet.cli.app import run
from edgefleet.core.limits import GoldenLimit, Limits
from edgefleet.trust.bundle import TrustBundle, open_bundle
from edgefleet.trust.keys import PublicKey

FILE = Path(__file__).parents[3] / "docs" / "limits.yaml"
HOSTS = ("registry.example", ".factory.example:5000")


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["trust", "init", str(tmp_path / "trust"), "--model", "weld-qc"]) == 0
    capsys.readouterr()
    return tmp_path / "trust"


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder.parent / "limits.yaml"
    path.write_text(FILE.read_text())
    return path


def held(folder: Path) -> TrustBundle:
    data, root = (folder / "bundle.json").read_bytes(), (folder / "root.json").read_bytes()
    return open_bundle(data, pinned_root=root, floor_version=0, now=datetime.now(UTC))


def test_a_file_becomes_the_limits_of_a_bundle(folder: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trust", "set-limits", str(folder), str(file)]) == 0
    assert "+ limits.models.weld-qc.regions: kz" in capsys.readouterr().out
    found = held(folder)
    assert found.version == 2
    default, own = Limits(endpoints=HOSTS, golden=GoldenLimit(90)), GoldenLimit(95, ("sha256:" + "0" * 64,))
    assert found.limits.of("other") == default
    assert found.limits.of("weld-qc") == Limits(("registry.example/serving/*",), HOSTS, ("kz", "de"), own)
    (signer,) = found.image_signers
    assert (signer.repository, len(signer.publisher.keys), signer.publisher.threshold) == ("registry.example/serving/*", 1, 1)

    assert run(["trust", "set-limits", str(folder), str(file)]) == 0
    assert "nothing changes" in capsys.readouterr().err
    assert run(["trust", "show", str(folder / "bundle.json"), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["default"] == {"endpoints": list(HOSTS), "golden": {"min": "90%"}}

    # Another change leaves them as they are; an empty file takes them away, and with them the format that needed them.
    assert run(["trust", "add-publisher", str(folder), "--model", "weld-qc", "--min-seq", "3"]) == 0
    assert held(folder).limits == found.limits
    file.write_text("")
    assert run(["trust", "set-limits", str(folder), str(file)]) == 0
    assert json.loads((folder / "bundle.json").read_bytes())["formatVersion"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limit: {}", "limits and imageSigners"),
        ("- limits", "limits and imageSigners"),
        ("limits: {models: {other: {images: []}}}", "other"),
        ("limits: {default: {images: [mlserver]}}", "registry.example/serving"),
        ("limits: {default: {podSecurity: privileged}}", "limits.yaml: limits.default.podSecurity: "),
        ("limits: {default: {golden: {min: 101%}}}", "limits.yaml: limits.default.golden.min: "),
        ("limits: {default: {golden: {min: 101%}}}", "found '101%'"),
        ("imageSigners: [{repository: registry.example/serving/*, keys: [mine]}]", "limits.yaml: "),
        ("imageSigners: [{repository: registry.example/serving/*}]", "threshold 1 cannot be met by 0"),
        ("limits: [", "limits.yaml"),
    ],
)
def test_what_cannot_be_meant_is_told_and_changes_nothing(
    folder: Path, file: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    file.write_text(text)
    assert run(["trust", "set-limits", str(folder), str(file)]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert "pydantic" not in err
    assert held(folder).version == 1


def test_who_signs_is_shown_that_image_signers_change_places(folder: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first entry that fits counts: the same entries in another order are other limits."""
    key = (folder / "publisher.pub").read_text()
    entries = [{"repository": f"registry.example/{path}", "keys": [key]} for path in ("serving/*", "*")]
    shown = []
    for order in (entries, entries[::-1]):
        file.write_text(json.dumps({"imageSigners": order}))
        capsys.readouterr()
        assert run(["trust", "set-limits", str(folder), str(file)]) == 0
        shown.append(capsys.readouterr().out)
    assert "+ imageSigners.1.repository: registry.example/serving/*" in shown[0]
    assert "- imageSigners.1.repository: registry.example/serving/*" in shown[1]
    assert "+ imageSigners.1.repository: registry.example/*" in shown[1]
    assert f"+ imageSigners.1.keys: {PublicKey.from_pem(key).id}" in shown[0]
