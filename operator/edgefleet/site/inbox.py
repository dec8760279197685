"""Releases that a person carried to this site: one OCI layout for each, beside the store, under the digest of the release's index.

`edgefleet site import` fills it, also while the agent runs: a layout counts when its index.json is there, which is written last. The agent
reads it before it asks a registry, believes nothing more of it for that, and removes a release once it is in the store.
"""

import logging
import shutil
from pathlib import Path

from edgefleet.oci.layout import Layout

log = logging.getLogger(__name__)


def inbox_folder(state: Path) -> Path:
    """Where the inbox of a state folder is."""
    return state / "inbox"


class Inbox:
    """The releases in `folder`, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, digest: str) -> Layout:
        """The layout for a release, complete or not."""
        return Layout(self._folder / digest.removeprefix("sha256:"))

    def find(self, digest: str) -> Layout | None:
        """The complete layout of a release, if there is one."""
        layout = self.place(digest)
        return layout if layout.is_complete else None

    def remove(self, digest: str) -> None:
        """Forget a release that is in the store; one that cannot be removed is left for a person."""
        folder = self.place(digest).folder
        try:
            (folder / "index.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s is not needed any more and cannot be removed: %s", folder, error.strerror)
