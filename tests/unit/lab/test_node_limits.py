"""What the lab refuses before it starts a node."""

import ctypes
import os
from pathlib import Path

import pytest

from tests.lab import LabError
from tests.lab.nodes import INOTIFY_PER_NODE, count_inotify, require_inotify, require_short


def test_inotify_instances_are_counted_and_asked_for_before_anything_starts() -> None:
    held = [ctypes.CDLL(None).inotify_init() for _ in range(2)]  # no more: they are scarce
    try:
        used = count_inotify()
        assert used >= len(held)
        with pytest.raises(LabError, match=r"2 nodes need \d+ inotify instances.*fs.inotify.max_user_instances"):
            require_inotify(2, len(held) + 2 * INOTIFY_PER_NODE - 1)
    finally:
        for handle in held:
            os.close(handle)
    require_inotify(2, 10_000)


def test_a_folder_too_long_for_a_kubelet_is_refused_before_anything_starts() -> None:
    base = Path("/tmp/").resolve()
    fits = base / ("x" * (107 - len(f"{base}/clusters/hub/kubelet/pod-resources/4294967295") - 1))
    require_short(fits, ["hub"])
    with pytest.raises(LabError, match="too long by 1 for the sockets of the kubelet of 'west'"):
        require_short(fits, ["hub", "west"])
