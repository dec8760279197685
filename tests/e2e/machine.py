"""What a test that starts much must leave as it was: the kernel's settings, the list of processes, the mounts."""

import subprocess
from pathlib import Path


def kernel_settings() -> dict[str, str]:
    """Those of the machine that a kubelet, a container runtime or a network plugin may set."""
    done = subprocess.run(["sysctl", "--all"], capture_output=True, text=True, timeout=60, check=False)
    found = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    return {name: value for name, value in found.items() if name.startswith(("vm.", "net.", "kernel.panic", "kernel.keys."))}


def left_behind(folder: Path) -> list[str]:
    """Mounts and command lines of processes that still name the folder, and of those that stand in it."""
    lines = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in line or where.startswith(str(folder)):
            lines.append(line)
    return lines
