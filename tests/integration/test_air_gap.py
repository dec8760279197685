"""A release on a stick: exported where the registry is, imported where none is, believed there as if it had been pulled."""

import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgefleet.api.assignment import FrozenRevision
from edgefleet.cli.app import run
from edgefleet.trust.keys import PrivateKey
from tests.integration.site_rig import Rig, open_rig
from tests.lab.cluster import Lab
from tests.lab.registry import Registry
from tests.lab.server import ModelServer

Command = Callable[..., str]
_names = itertools.count()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line that must end with `code`; its stdout, or its stderr if it failed."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def call(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert run([str(word) for word in words]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return err if code else out

    return call


@pytest.fixture
async def rig(kinds: Lab, registry: Registry, model_server: ModelServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, kinds, registry, model_server, f"mine-{next(_names)}") as running:
        (tmp_path / "publisher.pub").write_text(running.publisher.public.to_pem())
        yield running


def export(rig: Rig, told: Command, revision: FrozenRevision, *more: object, code: int = 0) -> str:
    return told(
        "model",
        "export",
        f"{rig.repository}@{revision.digest}",
        "--to",
        rig.folder / "stick",
        "--key",
        rig.folder / "publisher.pub",
        *more,
        code=code,
    )


async def test_a_site_without_a_registry_serves_what_was_carried_to_it(rig: Rig, told: Command) -> None:
    rig.push_golden()
    first = rig.push("1.0", 1)
    assert rig.golden is not None
    assert (
        json.loads(export(rig, told, first, "--golden", f"{rig.golden.repository}@{rig.golden.digest}", "-o", "json"))["version"] == "1.0"
    )
    asked = len(rig.registry.requests)
    rig.registry.stop()

    rig.start_agent()
    await rig.assign(first)
    await rig.wait_for("Blocked", "RegistryUnreachable")
    # The agent runs, and has the site's trust bundle by now.
    words = ("site", "import", rig.folder / "stick", "--state", rig.state, "--root", rig.folder / "root.json")
    told(*words)
    told(*words)
    status = await rig.wait_for("Active")
    assert status.golden_score == "100.0%"
    assert len(rig.registry.requests) == asked
    assert not list((rig.state / "inbox").iterdir())


async def test_what_is_not_to_be_believed_is_not_imported(rig: Rig, told: Command) -> None:
    release = rig.push("1.0", 1)
    export(rig, told, release)
    rig.state.mkdir()
    words = ["site", "import", rig.folder / "stick", "--state", rig.state, "--key"]
    stranger = rig.folder / "stranger.pub"
    stranger.write_text(PrivateKey.generate().public.to_pem())
    assert "SignatureInvalid" in told(*words, stranger, code=1)
    assert "TrustMissing" in told(*words[:-1], "--root", rig.folder / "root.json", code=1)
    weights = rig.folder / "stick" / "blobs" / "sha256" / rig.weights_digest(release).removeprefix("sha256:")
    whole = weights.read_bytes()
    for spoil, reason in ((whole[:-1], "SizeMismatch"), (whole[:-1] + b"!", "DigestMismatch")):
        weights.write_bytes(spoil)
        said = told(*words, rig.folder / "publisher.pub", code=1)
        assert reason in said
        assert str(weights) in said
    weights.unlink()
    assert "NotFound" in told(*words, rig.folder / "publisher.pub", code=1)
    assert not list((rig.state / "inbox").glob("*/index.json"))
    # A repeated export brings what is missing, a repeated import goes on.
    export(rig, told, release)
    told(*words, rig.folder / "publisher.pub")
    assert len(list((rig.state / "inbox").glob("*/index.json"))) == 1


async def test_an_unsigned_release_is_not_exported(rig: Rig, told: Command) -> None:
    release = rig.push("1.0", 1, signed=False)
    assert "SignatureMissing" in export(rig, told, release, code=1)
    assert not (rig.folder / "stick").exists()
    signed = rig.push("1.1", 2)
    assert "NoVariant" in export(rig, told, signed, "--variant", "gpu", code=1)
