"""What the person at the keyboard does: real kubectl, helm and edgefleet commands, each shown as it could be typed, and edits in Git."""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from examples.digits.demo.story import Story

LIMIT = 120.0  # seconds for one command


class CommandFailedError(Exception):
    """A command of the person's ended with an error that the act did not expect."""


@dataclass(frozen=True)
class Done:
    """How a command ended; `output` is stdout, `said` is stderr."""

    code: int
    output: str
    said: str


class Person:
    """Sits in `desk`, a folder with the team's Git and keys; `kubeconfig` is an administrator's at the hub."""

    def __init__(self, story: Story, desk: Path, kubeconfig: Path, kubectl: Path, operator: Path, helm: Path | None = None) -> None:
        self._story = story
        self.desk = desk
        self._programs = {"kubectl": [str(kubectl)], "edgefleet": [sys.executable, "-m", "edgefleet"]}
        if helm is not None:
            self._programs["helm"] = [str(helm)]
        # Wide and plain: the output goes to files and into messages, not to this terminal.
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(operator), os.environ.get("PYTHONPATH")))),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            **{f"HELM_{kind}_HOME": str(desk / ".helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")},
        }

    def types(self, line: str, expect: int = 0, shown: bool = True, stdin: str | None = None) -> Done:
        """Run one command line (no shell). Raises CommandFailedError when it ends with another code than `expect`."""
        if shown:
            self._story.tell("command", line)
        program, *words = shlex.split(line)
        command = [*self._programs[program], *words]
        try:
            done = subprocess.run(command, cwd=self.desk, env=self._environment, input=stdin, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired as error:
            raise CommandFailedError(f"`{line}` (in {self.desk}) was not done after {LIMIT:.0f} s") from error
        if done.returncode != expect:
            raise CommandFailedError(
                f"`{line}` (in {self.desk}) ended with {done.returncode}, expected {expect}:\n{done.stderr}{done.stdout}".rstrip()
            )
        return Done(done.returncode, done.stdout, done.stderr)

    def edits(self, file: str, old: str, new: str) -> None:
        """Change one place in a file of the desk, as one commit would. Raises CommandFailedError if it does not occur once."""
        path = self.desk / file
        text = path.read_text()
        if text.count(old) != 1:
            raise CommandFailedError(f"{path}: expected {old!r} exactly once, found {text.count(old)}")
        path.write_text(text.replace(old, new))
        self.notes(f"edits {file}: {old} -> {new}")

    def notes(self, text: str) -> None:
        """Something that the person does or knows, and no command shows."""
        self._story.tell("command", f"# {text}")

    def saves(self, file: str, content: str, private: bool = False) -> Path:
        """Keep something at the desk; `private` for keys and their backups (mode 0600 from the first byte)."""
        path = self.desk / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "w") as out:
            out.write(content)
        return path
