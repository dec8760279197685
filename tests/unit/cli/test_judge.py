"""`edgefleet judge simulate`: a policy tried on made-up sites."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edgefleet.api.policy import STANDARD_POLICY
from edgefleet.cli.app import make_app
from edgefleet.cli.output import CommandFailed

FAST = ("--sites", "12", "--runs", "3")


def simulate(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(make_app(), ["judge", "simulate", *words, "-o", "json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def write(folder: Path, **changes: Any) -> str:
    spec = {**STANDARD_POLICY.to_json_dict(), **changes}
    file = folder / "policy.yaml"
    file.write_text(
        yaml.safe_dump({"apiVersion": "edgefleet.io/v1alpha1", "kind": "RolloutPolicy", "metadata": {"name": "p"}, "spec": spec})
    )
    return str(file)


def test_a_bad_release_is_stopped_and_a_healthy_one_is_not() -> None:
    found = simulate(*FAST, "--new", "10%")
    assert found["release"]["stopped"] == 1
    assert found["release"]["stoppedInWave"]["canary"] == 1
    assert found["release"]["minutesToStop"] <= 15
    assert found["release"]["bad"] > 0
    assert found["healthy"]["promoted"] == 1
    assert found["healthy"]["sitesExposed"] == 12


def test_the_same_seed_gives_the_same_numbers() -> None:
    first = simulate(*FAST, "--new", "10%")
    assert first == simulate(*FAST, "--new", "10%")
    assert first["release"] != simulate(*FAST, "--new", "10%", "--seed", "2")["release"]


def test_what_the_policy_says_is_what_happens(tmp_path: Path) -> None:
    dry = write(tmp_path, analysis={"gates": [{"name": "errors", "maxIncrease": "25%", "dryRun": True}]})
    assert simulate(dry, *FAST, "--new", "10%")["release"]["stopped"] == 0
    slow = write(tmp_path, soak={"min": "1h"}, waves=[{"name": "all", "percent": 100}])
    assert simulate(slow, *FAST)["healthy"]["minutesToPromotion"] == 60
    idle = write(tmp_path, soak={"min": "30m", "max": "1h", "minRequests": 1_000_000}, onInconclusive="Hold")
    assert simulate(idle, *FAST)["healthy"]["inconclusive"] == 1


@pytest.mark.parametrize("metric", ["latency", "confidence"])
def test_other_metrics_by_the_slo_alone(metric: str) -> None:
    found = simulate(*FAST, "--metric", metric, "--slo", "1%", "--new", "10%")
    assert found["release"]["stoppedBy"].keys() <= {f"{metric}-absolute", "maxFailed"}
    assert found["release"]["stopped"] == 1


def test_a_few_sites_without_controls_hold_a_release_that_only_a_relative_gate_could_stop(tmp_path: Path) -> None:
    policy = write(tmp_path, soak={"min": "30m", "max": "1h"}, waves=[{"name": "all", "percent": 100}])
    found = simulate(policy, *FAST, "--new", "10%")
    assert (found["release"]["stopped"], found["release"]["inconclusive"]) == (0, 1)


def test_it_says_what_people_need() -> None:
    result = CliRunner().invoke(make_app(), ["judge", "simulate", *FAST, "--new", "10%"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "healthy 0.5% bad: stopped 0.0%, promoted 100.0%" in result.stdout
    assert "stopped in wave: canary 100%" in result.stdout


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="NoGate.*add analysis.gates.latency., or give --slo"):
        CliRunner().invoke(make_app(), ["judge", "simulate", "--metric", "latency"], catch_exceptions=False)
    with pytest.raises(CommandFailed, match="FileNotFound.*edgefleet policy show"):
        CliRunner().invoke(make_app(), ["judge", "simulate", str(tmp_path / "none.yaml")], catch_exceptions=False)
    with pytest.raises(CommandFailed, match="PolicyInvalid"):
        CliRunner().invoke(make_app(), ["judge", "simulate", write(tmp_path, waves=[])], catch_exceptions=False)
    for words in (("--base", "0%"), ("--new", "much"), ("--metric", "speed")):
        assert CliRunner().invoke(make_app(), ["judge", "simulate", *words]).exit_code == 2
