"""Debian packages, unpacked into the cache and never installed: cosign 3, docker-registry, Prometheus, what a node and an image consist of.

The mirror is the one this machine is configured for, so no host name stands here. Each suite has lists of its own in the
cache: the machine's own package lists are neither needed nor changed.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import LabError
from tests.lab.binaries import fetch_go, go_environment
from tests.lab.cache import cache_folder, key_of, locked, provide
from tests.lab.progress import run_shown, say

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
COSIGN_MODULE = Path(__file__).parent / "cosign-module"


@dataclass(frozen=True)
class Wanted:
    """A package in a suite; `version` is exact, or where it ends in a dot, the beginning of it."""

    suite: str
    version: str


# The exact version that the tests were written against, then whatever 3.x the suites have now; never 2.x, whose
# signatures have another format.
COSIGN = (Wanted("sid", "3.1.1-2"), Wanted("sid", "3."), Wanted("forky", "3."), Wanted("trixie", "3."))
DOCKER_REGISTRY = (Wanted("bookworm", "2.8."), Wanted("trixie", "2.8."), Wanted("sid", "2.8."))
ORAS = (Wanted("sid", "1."), Wanted("forky", "1."))
PROMETHEUS = (Wanted("bookworm", "2."), Wanted("trixie", "2."), Wanted("sid", "3."))
# containerd 1.6 runs pods too, but mounts no image as a volume; a newer runc asks for a newer libc than bookworm has.
CONTAINERD = (Wanted("sid", "2."), Wanted("trixie", "1.7."), Wanted("bookworm", "1.6."))
RUNC = (Wanted("bookworm", "1."), Wanted("trixie", "1."))
NETWORK_PLUGINS = (Wanted("bookworm", "1."), Wanted("trixie", "1."), Wanted("sid", "1."))
BUSYBOX = (Wanted("bookworm", "1:1."), Wanted("trixie", "1:1."), Wanted("sid", "1:1."))


def fetch_cosign() -> Path:
    """cosign 3: from Debian, else built from its Go module (3 minutes). Raises LabError naming every way that failed."""
    key = key_of(repr(COSIGN), *((COSIGN_MODULE / name).read_bytes() for name in ("go.mod", "go.sum")), _architecture())
    return provide("cosign", key, _make_cosign) / "usr/bin/cosign"


def fetch_docker_registry() -> Path:
    """docker-registry 2.8: the real one, without the referrers API. Raises LabError naming every way that failed."""
    key = key_of(repr(DOCKER_REGISTRY), _architecture())
    return provide("docker-registry", key, lambda draft: _unpack("docker-registry", DOCKER_REGISTRY, draft)) / "usr/bin/docker-registry"


def fetch_oras() -> Path:
    """The oras CLI. Raises LabError naming every way that failed."""
    key = key_of(repr(ORAS), _architecture())
    return provide("oras", key, lambda draft: _unpack("oras", ORAS, draft)) / "usr/bin/oras"


def fetch_prometheus() -> Path:
    """The folder with prometheus and promtool. Raises LabError naming every way that failed."""
    key = key_of(repr(PROMETHEUS), _architecture())
    return provide("prometheus", key, lambda draft: _unpack("prometheus", PROMETHEUS, draft)) / "usr/bin"


@dataclass(frozen=True)
class NodeTools:
    """Folders of programs: containerd with ctr and its shim, runc, the network plugins; and the one static busybox."""

    containerd: Path
    runc: Path
    plugins: Path
    busybox: Path


def fetch_node_tools() -> NodeTools:
    """What a node needs beside the kubelet, 60 MB. Raises LabError naming every way that failed."""
    wanted = {
        "containerd": (CONTAINERD, "usr/bin/containerd"),
        "runc": (RUNC, "usr/sbin/runc"),
        "containernetworking-plugins": (NETWORK_PLUGINS, "usr/lib/cni/bridge"),
        "busybox-static": (BUSYBOX, "bin/busybox"),
    }

    def make(draft: Path) -> None:
        for package, (candidates, program) in wanted.items():
            (draft / package).mkdir()
            _unpack(package, candidates, draft / package, program)

    folder = provide("node-tools", key_of(repr(wanted), _architecture()), make)
    programs = {package: folder / package / program for package, (_, program) in wanted.items()}
    return NodeTools(
        programs["containerd"].parent, programs["runc"].parent, programs["containernetworking-plugins"].parent, programs["busybox-static"]
    )


def unpack_packages(suite: str, packages: Sequence[str], root: Path) -> None:
    """The named packages of `suite` (any version; what they depend on must be named too), unpacked into `root`. Raises LabError."""
    config = _fetch_lists(suite)
    with tempfile.TemporaryDirectory() as folder:
        command = ["apt-get", "-qq", "download", *packages]
        run_shown(
            command, f"fetching {len(packages)} packages", 10, Path(folder, "log"), env=_environment(config), cwd=Path(folder), limit=300
        )
        for archive in sorted(Path(folder).glob("*.deb")):
            _run(["dpkg", "-x", str(archive), str(root)], config)


def _make_cosign(draft: Path) -> None:
    try:
        _unpack("cosign", COSIGN, draft)
    except LabError as error:
        say(f"cosign 3 is not to be had from Debian, building it from its Go module: {error}")
        binary = draft / "usr/bin/cosign"
        binary.parent.mkdir(parents=True, exist_ok=True)
        run_shown(
            [
                fetch_go(),
                "build",
                "-mod=readonly",
                "-trimpath",
                "-ldflags=-s -w",
                "-o",
                str(binary),
                "github.com/sigstore/cosign/v3/cmd/cosign",
            ],
            "building cosign",
            180,
            draft / "build.log",
            env=go_environment(),
            cwd=COSIGN_MODULE,
        )


def _unpack(package: str, candidates: Sequence[Wanted], draft: Path, program: str = "") -> None:
    """The first candidate that can be downloaded, unpacked into `draft`; its program must start."""
    failures = []
    for wanted in candidates:
        try:
            config = _fetch_lists(wanted.suite)
            version = _choose(config, package, wanted)
            if version is None:
                failures.append(f"{wanted.suite}: no {package} {wanted.version}")
                continue
            _download(config, package, version, draft)
            # A package of a newer suite may ask for a newer libc than this machine has.
            started = subprocess.run([draft / (program or f"usr/bin/{package}"), "--help"], capture_output=True, text=True, timeout=60)
            if started.returncode:
                raise LabError(f"{package} {version} does not start here: {started.stderr.strip()[-300:]}")
        except LabError as error:
            failures.append(f"{wanted.suite}: {error}")
            shutil.rmtree(draft / "usr", ignore_errors=True)
        else:
            (draft / "VERSION").write_text(f"{package} {version} ({wanted.suite})\n")
            return
    raise LabError(f"{package} is not to be had: {'; '.join(failures)}")


def _fetch_lists(suite: str) -> Path:
    """An APT configuration with lists of `suite` alone; they are fetched once a day. Raises LabError."""
    home = cache_folder() / "apt" / suite
    config, stamp = home / "apt.conf", home / "fetched"
    with locked(home / "lock"):
        if stamp.exists() and stamp.stat().st_mtime > time.time() - 86400:
            return config
        if not KEYRING.exists():
            raise LabError(f"{KEYRING} is missing: this needs Debian with debian-archive-keyring")
        for folder in ("lists/partial", "cache/archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {suite} main\n")
        config.write_text(
            f'Dir::State::lists "{home}/lists";\nDir::Cache "{home}/cache";\n'
            f'Dir::Etc::sourcelist "{home}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
            'Acquire::Languages "none";\nAPT::Sandbox::User "root";\nAPT::Get::List-Cleanup "false";\n'
        )
        command = ["apt-get", "-qq", "--error-on=any", "update"]
        run_shown(command, f"package lists of Debian {suite}", 10, home / "update.log", env=_environment(config), limit=300)
        stamp.touch()
        return config


def _mirror() -> str:
    """The archive this machine installs from. Raises LabError where it is no Debian archive."""
    # Without release info, targets are shown also where this machine never ran `apt-get update`.
    done = _run(["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"], None)
    found = [uri for uri in dict.fromkeys(done.split()) if re.search(r"/debian/?$", uri)]
    if not found:
        raise LabError("apt-get indextargets names no Debian archive: add one to the sources of this machine")
    return found[0]


def _choose(config: Path, package: str, wanted: Wanted) -> str | None:
    rows = (line.split("|") for line in _run(["apt-cache", "madison", package], config).splitlines())
    versions = [row[1].strip() for row in rows if len(row) > 1]
    return next(_matching(versions, wanted.version), None)


def _matching(versions: Sequence[str], wanted: str) -> Iterator[str]:
    for version in versions:
        if version == wanted or (wanted.endswith(".") and version.startswith(wanted)):
            yield version


def _download(config: Path, package: str, version: str, draft: Path) -> None:
    command = ["apt-get", "-qq", "download", f"{package}={version}"]
    run_shown(command, f"fetching {package} {version}", 5, draft / "download.log", env=_environment(config), cwd=draft, limit=300)
    for archive in draft.glob("*.deb"):
        _run(["dpkg", "-x", str(archive), str(draft)], config)
        archive.unlink()


def _architecture() -> str:
    return _run(["dpkg", "--print-architecture"], None).strip()


def _run(command: Sequence[str], config: Path | None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=_environment(config))
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is missing: this part of the lab needs Debian") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _environment(config: Path | None) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", **({"APT_CONFIG": str(config)} if config else {})}
