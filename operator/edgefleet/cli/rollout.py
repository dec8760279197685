"""`edgefleet rollout ...`: look at the runs of fleets and say what a person may say to one.

Every verb writes `spec.control` of a ModelRollout, nothing else, so that `kubectl`, Git and Argo actions can do the same; `forget`
deletes the run. Verbs are idempotent.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from edgefleet.api.conditions import find_condition
from edgefleet.api.meta import FLEET_LABEL
from edgefleet.api.rollout import ModelRollout
from edgefleet.cli.cluster import ContextOption, KubeconfigOption, NamespaceOption, connecting
from edgefleet.cli.output import EXIT_CODES, CommandFailed, Format, FormatOption, print_facts, print_json, print_note, print_table
from edgefleet.kube.client import Api
from edgefleet.kube.resources import MODEL_ROLLOUTS, Resource

app = typer.Typer(help="Runs: each is one change of one fleet.", no_args_is_help=True, epilog=EXIT_CODES)

T = TypeVar("T")
NameArgument = Annotated[str, typer.Argument(help="The run, `<fleet>-<n>`.")]
_WHO_AM_I = Resource("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews", False)


@app.command("list")
def list_runs(
    fleet: Annotated[str | None, typer.Argument(help="Only this fleet's runs.")] = None,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """All runs of a namespace, newest first: what each rolled out, and how it ended or what it waits for."""

    async def fetch(api: Api) -> list[ModelRollout]:
        labels = f"{FLEET_LABEL}={fleet}" if fleet else None
        return [ModelRollout.parse(body) for body in await api.list(MODEL_ROLLOUTS, namespace, labels=labels)]

    runs = sorted(_ask(fetch, kubeconfig, context), key=lambda run: (run.spec.fleet, -run.spec.number))
    if output is Format.JSON:
        print_json([{"name": run.metadata.name, "spec": run.spec.to_json_dict(), "status": run.status.to_json_dict()} for run in runs])
        return
    if not runs:
        print_note(f"no run{f' of fleet {fleet}' if fleet else ''} in namespace {namespace}; -n names another")
        return
    rows = [
        (
            run.metadata.name,
            run.spec.revision.version,
            run.status.wave,
            f"{run.status.sites.updated}/{run.spec.plan.sites}",
            run.status.outcome or run.status.phase,
            run.status.waiting_for or run.status.reason,
        )
        for run in runs
    ]
    print_table(("RUN", "VERSION", "WAVE", "UPDATED", "STATE", "REASON"), rows)


@app.command("show")
def show(
    name: NameArgument,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """One run: where it stands, since when, what it waits for, and its waves."""
    run = ModelRollout.parse(_ask(lambda api: api.get(MODEL_ROLLOUTS, name, namespace), kubeconfig, context))
    status = run.status
    if output is Format.JSON:
        print_json({"name": name, "spec": run.spec.to_json_dict(), "status": status.to_json_dict()})
        return
    counts = status.sites
    progress = find_condition(status.conditions, "Progressing")
    told = progress.message if status.waiting_for and progress else status.message
    facts: dict[str, object] = {
        "Run": f"{namespace}/{name}",
        "Release": f"{run.spec.revision.model} {run.spec.revision.version} ({run.spec.revision.digest})",
        "State": f"{status.outcome or status.phase} {status.reason}".strip(),
        "Author": run.spec.author or "- (the EdgeModel has no annotation edgefleet.io/author)",
        "Began": status.started_at or "-",
        "Ended": status.ended_at or "-",
        "Waits": f"{status.waiting_for} since {status.since}" if status.waiting_for else "-",
        "Message": told or "-",
        "Sites": f"{counts.updated} updated of {counts.desired}; {counts.failed} failed, {counts.unreachable} unreachable, "
        f"{counts.skipped} skipped, {counts.rolled_back} back",
    }
    print_facts(facts)
    rows = [(wave.name, wave.sites, wave.opened_at or "-", wave.passed_at or "-") for wave in status.waves]
    print_table(("WAVE", "SITES", "OPENED", "PASSED"), rows, title="Waves")
    if status.said:
        said = [(one.at, one.what, one.wave or "-", one.by or "(left no name)", one.reason or "-") for one in status.said]
        print_table(("AT", "WHAT", "WAVE", "BY", "REASON"), said, title="Said by people")


@app.command("pause")
def pause(
    name: NameArgument, namespace: NamespaceOption = "default", kubeconfig: KubeconfigOption = None, context: ContextOption = None
) -> None:
    """Assign nothing new. What runs is still judged, and still taken back if it is bad."""
    _control(name, namespace, kubeconfig, context, {"paused": True})
    print_note(f"{name} is paused; go on with `edgefleet rollout resume {name} -n {namespace}`")


@app.command("resume")
def resume(
    name: NameArgument, namespace: NamespaceOption = "default", kubeconfig: KubeconfigOption = None, context: ContextOption = None
) -> None:
    """Go on after a pause."""
    _control(name, namespace, kubeconfig, context, {"paused": False})
    print_note(f"{name} goes on")


@app.command("abort")
def abort(
    name: NameArgument, namespace: NamespaceOption = "default", kubeconfig: KubeconfigOption = None, context: ContextOption = None
) -> None:
    """Take every site of this run back to stable. The revision is then barred until `edgefleet rollout retry`."""
    _control(name, namespace, kubeconfig, context, {"aborted": True})
    print_note(f"{name} is aborted: its sites go back to stable")


@app.command("promote")
def promote(
    name: NameArgument,
    wave: Annotated[str | None, typer.Argument(help="The wave that may pass; by default the one that is open.")] = None,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Let a wave pass on what is known now, without the rest of its soak, its traffic and its reports.

    At least one site of the wave must have reported the revision: a silent wave never passes. What proves the revision worse still
    takes it back. The next wave's approval is still needed, and a paused run stays paused.
    """

    async def write(api: Api) -> str:
        run = await _fetch_open(api, name, namespace)
        waves = [one.name for one in run.status.waves]
        chosen = wave or run.status.wave
        if not chosen:
            raise CommandFailed("NoOpenWave", f"{name} has no open wave: it waits for {run.status.waiting_for or 'its first look'}")
        if chosen not in waves:
            raise CommandFailed("NoSuchWave", f"{name} has no wave {chosen!r}; it has {', '.join(waves)}")
        await _write_control(api, run, {"promote": chosen})
        return chosen

    print_note(f"wave {_ask(write, kubeconfig, context)} of {name} passes as soon as one of its sites has reported the revision")


@app.command("retry")
def retry(
    name: NameArgument, namespace: NamespaceOption = "default", kubeconfig: KubeconfigOption = None, context: ContextOption = None
) -> None:
    """Have the revision of a run that was rolled back or aborted tried again, by a new run.

    The old run stays as a record. If the new one takes the revision back too, it is barred again. It starts when the model names that
    revision; nothing in Git is changed. `edgefleet rollout forget` lifts the bar too, and deletes the record.
    """

    async def write(api: Api) -> None:
        run = ModelRollout.parse(await api.get(MODEL_ROLLOUTS, name, namespace))
        if run.status.outcome not in ("RolledBack", "AbortedByUser"):
            state = run.status.outcome or run.status.phase
            raise CommandFailed("NotBarring", f"{name} is {state}: only what was rolled back or aborted can be tried again")
        await _write_control(api, run, {"retry": True})

    _ask(write, kubeconfig, context)
    print_note(f"the revision of {name} is not barred any more: a new run tries it, if the model names it")


@app.command("approve")
def approve(
    name: NameArgument,
    wave: Annotated[str, typer.Argument(help="The wave that may open.")],
    reason: Annotated[str, typer.Option(help="Kept in the run's record.")] = "",
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
) -> None:
    """Consent, in your own name, to the opening of a wave."""

    async def consent(api: Api) -> str:
        run = await _fetch_open(api, name, namespace)
        waves = {one.name: one.approval for one in run.spec.policy.waves}
        if wave not in waves:
            raise CommandFailed("NoSuchWave", f"{name} has no wave {wave!r}; it has {', '.join(waves)}")
        who = await _fetch_own_name(api)
        asked = waves[wave]
        if asked is not None and asked.not_author and who == run.spec.author:
            raise CommandFailed("AuthorMayNotApprove", f"you ({who}) named this release, and wave {wave} asks for others (notAuthor)")
        given = [one.to_json_dict() for one in run.spec.control.approvals]
        if not any(one["wave"] == wave and one["by"] == who for one in given):
            given.append({"wave": wave, "by": who, "reason": reason})
            meta = {"resourceVersion": run.metadata.resource_version}
            body = {"metadata": meta, "spec": {"control": {"approvals": given}}}
            await api.patch(MODEL_ROLLOUTS, name, namespace, body)
        return who

    print_note(f"{_ask(consent, kubeconfig, context)} approves wave {wave} of {name}")


@app.command("forget")
def forget(
    name: NameArgument,
    namespace: NamespaceOption = "default",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also a run that is under way or Promoted.")] = False,
) -> None:
    """Delete a run that was rolled back or aborted, so that its revision may be tried again."""

    async def delete(api: Api) -> None:
        run = ModelRollout.parse(await api.get(MODEL_ROLLOUTS, name, namespace))
        if run.status.outcome not in ("RolledBack", "AbortedByUser") and not force:
            state = run.status.outcome or run.status.phase
            raise CommandFailed("NotBarring", f"{name} is {state} and bars nothing: forgetting it would only lose memory (--force does it)")
        await api.delete(MODEL_ROLLOUTS, name, namespace, uid=run.metadata.uid)

    _ask(delete, kubeconfig, context)
    print_note(f"{name} is forgotten: its revision is not barred any more")


def _control(name: str, namespace: str, kubeconfig: Path | None, context: str | None, control: dict[str, Any]) -> None:
    async def write(api: Api) -> None:
        await _write_control(api, await _fetch_open(api, name, namespace), control)

    _ask(write, kubeconfig, context)


async def _write_control(api: Api, run: ModelRollout, control: dict[str, Any]) -> None:
    if any(getattr(run.spec.control, field) != value for field, value in control.items()):
        body = {"spec": {"control": {**control, "by": await _fetch_own_name(api)}}}
        await api.patch(MODEL_ROLLOUTS, run.metadata.name, run.metadata.namespace, body)


async def _fetch_own_name(api: Api) -> str:
    return str((await api.create(_WHO_AM_I, {"metadata": {}}))["status"]["userInfo"]["username"])


async def _fetch_open(api: Api, name: str, namespace: str) -> ModelRollout:
    run = ModelRollout.parse(await api.get(MODEL_ROLLOUTS, name, namespace))
    if run.status.outcome is not None:
        raise CommandFailed("RunEnded", f"{name} ended {run.status.outcome}: there is nothing to control any more")
    return run


def _ask(question: Callable[[Api], Coroutine[Any, Any, T]], kubeconfig: Path | None, context: str | None) -> T:
    async def asking() -> T:
        async with connecting(kubeconfig, context) as api:
            return await question(api)

    return asyncio.run(asking())
