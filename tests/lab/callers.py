"""Where the hub and the agent write to API servers, read from their source: each line that calls create, apply, patch or delete with a
kind, whether or not it is ever run. What ran stands in a history as `caller` (see nursery.py)."""

import ast
from dataclasses import dataclass
from pathlib import Path

import edgefleet
from tests.lab.nursery import WRITING

SOURCE = Path(edgefleet.__file__).parent
ROOMS = ("hub", "site")


@dataclass(frozen=True, slots=True)
class Caller:
    """One line. `caller` is as in a history: `hub/runs.py:34 create`; `function` is `hub/runs.py Runs.start`."""

    caller: str
    function: str
    verb: str
    kind: str

    def __str__(self) -> str:
        return f"{self.function} {self.verb} {self.kind}"


def list_callers(source: Path = SOURCE) -> list[Caller]:
    """All of them, in the order of files and lines."""
    found = []
    for room in ROOMS:
        for file in sorted((source / room).rglob("*.py")):
            found += _read(ast.parse(file.read_text()), str(file.relative_to(source)), ())
    return found


def find_caller(function: str, verb: str, source: Path = SOURCE) -> str:
    """The `caller` of the only such write in a function. Raises LookupError naming what there is."""
    known = list_callers(source)
    matching = [one.caller for one in known if (one.function, one.verb) == (function, verb)]
    if len(matching) != 1:
        raise LookupError(f"{function} {verb}: {len(matching)} of these; there are {', '.join(map(str, known))}")
    return matching[0]


def _read(node: ast.AST, file: str, scope: tuple[str, ...]) -> list[Caller]:
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found += _read(child, file, (*scope, child.name))
            continue
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr in WRITING and child.args:
            kind = child.args[0]
            if isinstance(kind, ast.Name) and kind.id.isupper():
                verb = child.func.attr
                found.append(Caller(f"{file}:{child.lineno} {verb}", f"{file} {'.'.join(scope)}", verb, kind.id))
        found += _read(child, file, scope)
    return found
