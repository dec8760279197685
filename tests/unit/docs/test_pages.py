"""What the pages for people say exists: commands with their flags, charts with their values, kinds with their fields, files and links.

That the commands also do what the pages say is tests/integration/test_docs.py's matter.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from edgefleet.cli.app import make_app
from tests.docs.pages import PAGES, PROGRAMS, ROOT, Block, Command, read_blocks, read_code, read_commands
from tests.lab.helm import helm
from tests.lab.manifests import HUB_CHART, HUB_NAMESPACE, KINDS, read_documents, render

PLAIN_KINDS = {"namespace", "secret", "configmap", "serviceaccount", "clusterrolebinding", "rolebinding", "pods", "leases"}
"""Kubernetes' own kinds, as the pages name them."""
FIGURES = {
    "README.md": "Git ──> EdgeModel, EdgeFleet, RolloutPolicy, EdgeSite",
    "docs/gitops.md": "sites/          EdgeSites:",
    "docs/judge/README.md": "exp( x ln r",
}
"""Blocks that are neither typed nor applied, by their beginning."""
FRAGMENTS = {"docs/teams.md": ("rolloutpolicies", "spec"), "docs/security.md": ("edgemodels", "spec")}
"""Pages whose YAML without a kind is a part of one, and of which part."""
COMMANDS = [command for page in PAGES for command in read_commands(page)]
BLOCKS = [block for page in PAGES for block in read_blocks(page)]
page_names = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind by its plural, as crds/ has it."""
    bodies = [yaml.safe_load(path.read_text()) for path in KINDS.glob("*.yaml")]
    return {body["spec"]["names"]["plural"]: body["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for body in bodies}


@cache
def kind_names() -> dict[str, str]:
    """The plural of each of our kinds, by all names that kubectl takes for it, and by its kind."""
    known = {}
    for path in KINDS.glob("*.yaml"):
        names = yaml.safe_load(path.read_text())["spec"]["names"]
        for name in (names["plural"], names["singular"], names["kind"], *names.get("shortNames", [])):
            known[name] = names["plural"]
    return known


@cache
def command_tree() -> Any:
    """Our command line."""
    return typer.main.get_command(make_app())


def find_verb(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words name, and the words after it."""
    command = command_tree()
    while hasattr(command, "commands"):
        assert words, "a noun without its verb"
        assert words[0] in command.commands, f"there is no {words[0]!r}; there are {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def programs(name: str) -> Any:
    """Parametrizes over all commands of a program; there must be some."""
    found = [command for command in COMMANDS if command.program == name]
    assert found
    return pytest.mark.parametrize("command", found, ids=str)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_is_typed_or_applied_or_is_a_figure_that_is_known(block: Block) -> None:
    if block.is_shell:
        unknown = [str(command) for one in block.statements() for command in one.commands if command.program not in PROGRAMS]
        assert not unknown
    elif block.language or block.page in FRAGMENTS:
        assert block.language in ("", "yaml")
        assert list(yaml.safe_load_all(block.text))
    else:
        assert block.text.startswith(FIGURES[block.page])


@programs("edgefleet")
def test_our_command_line_takes_it(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    verb, words = find_verb([_provide(word, tmp_path) for word in command.words[1:]])
    verb.make_context(verb.name, words)  # raises UsageError for what it does not know, and for what is missing


@programs("kubectl")
def test_kubectl_is_asked_for_what_there_is(command: Command) -> None:
    words = list(command.words[1:])
    while words[0].startswith("-"):
        del words[:2]
    verb, what, *_ = words
    if verb not in ("apply", "logs"):
        for kind in what.split(","):
            assert kind in PLAIN_KINDS or kind in kind_names(), kind
    for word in words:
        if role := re.fullmatch("--clusterrole=(.+)", word):
            assert role[1] in {body["metadata"]["name"] for body in _hub_objects() if body["kind"] == "ClusterRole"}
    for body in filter(None, yaml.safe_load_all(command.stdin)):
        check_fields(body, schemas()[kind_names()[body["kind"]]], body["kind"])


@programs("helm")
def test_helm_renders_it(command: Command) -> None:
    words = list(command.words[1:])
    if "--kubeconfig" in words:
        at = words.index("--kubeconfig")
        del words[at : at + 2]
    verb, release, chart, *more = words
    assert verb in ("install", "upgrade")
    if "--reset-then-reuse-values" in more:  # what the installation had been given
        more.remove("--reset-then-reuse-values")
        if chart.endswith("-agent"):
            more += ["--set", "site=plant-7", "--set", "server.url=http://model-server:8080"]
    assert "kind: Deployment" in helm("template", release, str(ROOT / chart), *more)


@programs("make")
def test_make_has_the_target(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        name, given, _ = word.partition("=")
        assert (f"$({name})" if given else f"\n{name}:") in makefile, word


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == "yaml" or (block.page in FRAGMENTS and not block.is_shell)],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_yaml_has_no_field_that_its_kind_has_not(block: Block) -> None:
    for body in yaml.safe_load_all(block.text):
        if "kind" in body and not str(body.get("apiVersion", "edgefleet.io")).startswith("edgefleet.io"):
            continue  # others' kinds
        if "kind" in body:
            check_fields(body, schemas()[kind_names()[body["kind"]]], body["kind"])
        else:
            plural, part = FRAGMENTS[block.page]
            check_fields(body, schemas()[plural]["properties"][part], part)


@page_names
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        target, _, heading = link.partition("#")
        found = page.parent / target if target else page
        assert found.exists(), link
        assert not heading or heading in {_anchor(line) for line in found.read_text().splitlines() if line.startswith("#")}, link


@page_names
def test_a_file_of_this_tree_that_a_page_names_is_there(page: Path) -> None:
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    words = [word for code in read_code(page) for word in code.split()]
    words += [word for command in read_commands(page) for word in command.words]
    for word in words:
        if word.split("/")[0] in tops and "/" in word:
            assert (ROOT / word.partition("=")[0]).exists(), word


@page_names
def test_what_a_sentence_calls_a_command_is_one(page: Path) -> None:
    """Sentences leave out what does not matter there, so only names and flags are looked at."""
    for code in read_code(page):
        words = code.partition("#")[0].split()
        if words[:1] != ["edgefleet"]:
            continue
        verbs = words[1:]
        if "|" in verbs:  # one noun, several verbs
            noun, alternatives = verbs[0], [word for word in verbs[1:] if word != "|"]
            for verb in alternatives:
                find_verb([noun, verb])
            continue
        verb, left = find_verb(verbs)
        flags = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in left if word.startswith("-")}
        assert used <= flags, code


def check_fields(value: Any, schema: dict[str, Any], where: str) -> None:
    """Asserts that `value` has no field, type or choice that the schema does not know. Pages show parts: nothing is required."""
    wanted = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
    if "type" in schema:
        assert isinstance(value, wanted[schema["type"]]), f"{where} is no {schema['type']}"
    if isinstance(value, dict):
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return
        known = schema.get("properties", {})
        for name, one in value.items():
            if name in ("apiVersion", "kind", "metadata"):
                continue
            found = known.get(name, schema.get("additionalProperties"))
            assert isinstance(found, dict), f"{where} has no field {name!r}; it has {', '.join(known)}"
            check_fields(one, found, f"{where}.{name}")
    elif isinstance(value, list):
        for one in value:
            check_fields(one, schema["items"], f"{where}[]")
    else:
        assert value in schema.get("enum", [value]), f"{where}: {value!r}"
        if isinstance(value, str) and "pattern" in schema:
            assert re.search(schema["pattern"], value), f"{where}: {value!r} is not {schema['pattern']}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")


def _provide(word: str, folder: Path) -> str:
    """Puts a file or folder that a page takes for granted below `folder`; the word that names it there."""
    if word.startswith("/"):
        (folder / word[1:]).mkdir(parents=True, exist_ok=True)
        return str(folder / word[1:])
    if re.fullmatch(r"\w+\.json", word):
        (folder / word).touch()
    return word


@cache
def _hub_objects() -> list[dict[str, Any]]:
    return read_documents(render(HUB_CHART, namespace=HUB_NAMESPACE))
