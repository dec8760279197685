"""`edgefleet policy show`: the policy that holds where a fleet names none, or one of the cluster's, with every default filled in."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from edgefleet.api.meta import API_VERSION
from edgefleet.api.policy import STANDARD_POLICY, RolloutPolicy
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, NamespaceOption, connecting
from edgefleet.cli.output import EXIT_CODES, Format, FormatOption, print_json
from edgefleet.kube.resources import ROLLOUT_POLICIES

app = typer.Typer(help="Rollout policies.", no_args_is_help=True, epilog=EXIT_CODES)


@app.command("show")
def show(
    name: Annotated[str | None, typer.Argument(help="A RolloutPolicy; without it, the built-in `standard`.")] = None,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print a policy as YAML that can be edited and applied: `edgefleet policy show > policy.yaml`."""
    spec = STANDARD_POLICY if name is None else asyncio.run(_fetch(name, namespace, kubeconfig, context)).spec
    body: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "RolloutPolicy",
        "metadata": {"name": name or "standard"},
        "spec": spec.to_json_dict(),
    }
    if output is Format.JSON:
        print_json(body)
    else:
        typer.echo(yaml.safe_dump(body, sort_keys=False), nl=False)


async def _fetch(name: str, namespace: str, kubeconfig: Path | None, context: str | None) -> RolloutPolicy:
    async with connecting(kubeconfig, context) as api:
        return RolloutPolicy.parse(await api.get(ROLLOUT_POLICIES, name, namespace))
