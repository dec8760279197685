"""What stands on the pages for people: blocks of shell and YAML, commands inside of sentences, links.

A block is shell if its first word is a program in `PROGRAMS`. What is done with a command is left to the tests.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]))
PROGRAMS = ("edgefleet", "kubectl", "helm", "make", "podman", ".venv/bin/python")
_SEPARATORS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Command:
    """One call of a program: its `words` without redirections, and what a here-document gives it."""

    page: str
    line: int
    words: tuple[str, ...]
    stdin: str = ""

    @property
    def program(self) -> str:
        """Its first word."""
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


@dataclass(frozen=True)
class Block:
    """A fenced block (`language` is what its fence says) or one that is indented by four spaces (`language` is empty)."""

    page: str
    line: int
    language: str
    text: str

    @property
    def is_shell(self) -> bool:
        """Whether somebody is meant to type it."""
        return not self.language and self.text.split(maxsplit=1)[0] in PROGRAMS

    def statements(self) -> list["Statement"]:
        """What a shell takes at once, in order: here-documents and continued lines belong to the line that they begin on."""
        return list(_split(self.page, self.line, self.text))


@dataclass(frozen=True)
class Statement:
    """One or more commands that a shell takes as one line. `text` is as it stands on the page."""

    line: int
    text: str
    commands: tuple[Command, ...] = field(default=())


@cache
def read_blocks(page: Path) -> tuple[Block, ...]:
    """All blocks of a page, in order."""
    return tuple(_blocks(page.relative_to(ROOT).as_posix(), page.read_text().splitlines()))


def read_commands(page: Path) -> list[Command]:
    """All commands of a page's shell blocks, in order."""
    return [command for block in read_blocks(page) if block.is_shell for one in block.statements() for command in one.commands]


def read_sentences(page: Path) -> str:
    """A page without its blocks, each paragraph in one line."""
    lines = page.read_text().splitlines()
    for block in read_blocks(page):
        for number in range(block.line - 1, block.line - 1 + block.text.count("\n") + 1):
            lines[number] = ""
    return re.sub(r"(?<=\S)\n(?=[^\s|#*-])", " ", "\n".join(lines))


def read_code(page: Path) -> list[str]:
    """What stands in backticks inside of the sentences of a page."""
    return re.findall(r"`([^`]+)`", read_sentences(page))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    number = 0
    while number < len(lines):
        start = number
        if fence := re.fullmatch(r"```(\w+)", lines[number]):
            while lines[number + 1] != "```":
                number += 1
            yield Block(page, start + 2, fence[1], "\n".join(lines[start + 1 : number + 1]))
            number += 1
        elif lines[number].startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while number + 1 < len(lines) and (not lines[number + 1].strip() or lines[number + 1].startswith("    ")):
                number += 1
            yield Block(page, start + 1, "", "\n".join(line[4:] for line in lines[start : number + 1]).rstrip())
        number += 1


def _split(page: str, first: int, text: str) -> Iterator[Statement]:
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        start, line, stdin = number, lines[number], ""
        while line.endswith("\\"):
            number += 1
            line = line[:-1] + lines[number]
        if document := re.search(r"<<(\w+)$", line):
            end = lines.index(document[1], number)
            stdin = "\n".join(lines[number + 1 : end]) + "\n"
            line, number = line[: document.start()], end
        number += 1
        if commands := tuple(_commands(page, first + start, line, stdin)):
            yield Statement(first + start, "\n".join(lines[start:number]), commands)


def _commands(page: str, line: int, text: str, stdin: str) -> Iterator[Command]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = [*lexer, ";"]
    for position, token in enumerate(tokens):
        if token in _SEPARATORS:
            if words:
                yield Command(page, line, tuple(words), stdin)
            words = []
        elif token not in ("<", ">") and (position == 0 or tokens[position - 1] not in ("<", ">")):
            words.append(token)
