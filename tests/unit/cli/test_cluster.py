"""A kubeconfig that cannot be used: one line that names the file and what is wrong with it, and nothing of its content."""

from pathlib import Path

import pytest

from edgefleet.cli.app import run

SECRET = "s3cr3t"
GOOD = (
    'clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]\n'
    f"users: [{{name: u, user: {{token: {SECRET}}}}}]\n"
    "contexts: [{name: here, context: {cluster: c, user: u}}]\ncurrent-context: here\n"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(None, "it does not exist", id="absent"),
        pytest.param("garbage", "is not a kubeconfig: a YAML map", id="no map"),
        pytest.param(GOOD.replace(f"{{token: {SECRET}}}", f"[{{token: {SECRET}}}"), "line 2", id="no YAML"),
        pytest.param(GOOD.replace("127.0.0.1:1", '127.0.0.1:1", certificate-authority: "CA'), "no certificate", id="CA"),
        pytest.param(GOOD.replace("current-context: here", "current-context: there"), "there", id="context"),
    ],
)
@pytest.mark.parametrize("command", [["rollout", "list"], ["hub"]], ids=" ".join)
def test_a_kubeconfig_that_cannot_be_used_is_named(
    command: list[str], text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kubeconfig"
    (tmp_path / "CA").write_text("not PEM")
    if text is not None:
        path.write_text(text.replace("CA", str(tmp_path / "CA")))
    assert run([*command, "--kubeconfig", str(path)]) == (2 if command == ["hub"] else 1)
    err = capsys.readouterr().err
    assert str(path) in err
    assert said in err
    assert len(err.splitlines()) == 1
    assert SECRET not in err


def test_several_kubeconfigs_are_merged_as_kubectl_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text(GOOD)
    other.write_text(GOOD.replace("name: here", "name: there").replace("name: c,", "name: d,").replace("cluster: c,", "cluster: d,"))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'absent'}:{one}:{other}")
    assert run(["rollout", "list", "--context", "there"]) == 1
    assert "https://127.0.0.1:1 does not answer" in capsys.readouterr().err
