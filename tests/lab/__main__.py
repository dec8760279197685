"""`python -m tests.lab`: the lab for people. Progress goes to stderr, what a shell can use to stdout."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tests.lab import LabError
from tests.lab.binaries import fetch_control_plane, fetch_kubectl
from tests.lab.cluster import Lab, down, name_sites
from tests.lab.debian import fetch_cosign, fetch_docker_registry
from tests.lab.helm import fetch_helm
from tests.lab.progress import say
from tests.lab.registry import Registry
from tests.lab.server import fetch_server_environment

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
DIRECTORY = Annotated[Path, typer.Option("--dir", help="Folder of the lab; another folder is another lab.")]


@app.command()
def build() -> None:
    """Builds and fetches everything into the user cache (10 minutes on two cores, then never again)."""
    plane = fetch_control_plane()
    for path in (
        plane.etcd,
        plane.apiserver,
        plane.controller_manager,
        fetch_kubectl(),
        fetch_helm(),
        fetch_cosign(),
        fetch_docker_registry(),
    ):
        print(path if path else "kube-controller-manager is missing")
    print(fetch_server_environment().python)


@app.command("up")
def start(
    directory: DIRECTORY = Path(".lab"),
    sites: Annotated[int, typer.Option(min=1, max=8, help="Site clusters, 270 MB each.")] = 2,
    use_existing: Annotated[Path | None, typer.Option(help="KUBECONFIG of a cluster to use as hub; never found by itself.")] = None,
) -> None:
    """Starts a hub and sites, which run until `down`, and prints their KUBECONFIGs."""
    if use_existing:
        say(f"the hub is the EXISTING cluster of {use_existing}: what is applied there stays there after `down`")
    _show(Lab.start(directory, name_sites(sites), existing=use_existing, detached=True))


@app.command("down")
def stop(directory: DIRECTORY = Path(".lab")) -> None:
    """Ends everything that runs in the lab's folder, by pid, also after a crash of its starter. Logs stay in run/."""
    ended = down(directory)
    say(f"ended {', '.join(ended)}" if ended else f"nothing ran in {directory}")


@app.command()
def status(directory: DIRECTORY = Path(".lab")) -> None:
    """What runs in the lab's folder, and the KUBECONFIGs."""
    lab = Lab.attach(directory)
    for process in lab.processes():
        say(f"{process.name}: pid {process.pid}, log {process.log}")
    _show(lab)


@app.command()
def registry(port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0) -> None:
    """Serves an empty OCI registry on 127.0.0.1, in memory, until Ctrl-C."""
    with Registry(port=port) as running:
        print(running.host, flush=True)
        try:
            running.wait_stopped()
        except KeyboardInterrupt:
            say("registry stopped; what it held is gone")


def _show(lab: Lab) -> None:
    for name, cluster in {"hub": lab.hub, **lab.sites}.items():
        variable = "KUBECONFIG" if name == "hub" else f"KUBECONFIG_{name.upper()}"
        print(f"export {variable}={shlex.quote(str(cluster.kubeconfig))}")
    print(f"# kubectl is {fetch_kubectl()}; look around:  kubectl get namespaces; kubectl --kubeconfig $KUBECONFIG_EAST get all -A")
    print(f"# end it:  {shlex.quote(sys.executable)} -m tests.lab down --dir {shlex.quote(str(lab.folder))}")


def main() -> None:
    """Runs the command line; a LabError becomes one line and exit code 1."""
    try:
        app()
    except LabError as error:
        say(str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
