"""Which runtime a revision is for, by its serving entry; both may be in use at one site, also for one model."""

from edgefleet.api.assignment import FrozenRevision
from edgefleet.site.runtimes import Runtime, ServerUnreachable
from edgefleet.site.runtimes.deployment import Pods


class Runtimes:
    """The model server of the site, and its pods if it may start any."""

    def __init__(self, repository: Runtime, pods: Pods | None = None) -> None:
        self.repository = repository
        self.pods = pods

    def pick(self, revision: FrozenRevision | None) -> Runtime:
        """The runtime for a revision; for one whose record is lost, the model server. Raises ServerUnreachable."""
        if revision is None or revision.serving.deployment is None:
            return self.repository
        if self.pods is None:
            raise ServerUnreachable("this revision is served by pods, and this site starts none: give its agent --pods-namespace")
        return self.pods.of(revision.model, revision.serving.deployment)

    def placed(self) -> set[str]:
        """The names of all revisions that are loaded or have files somewhere."""
        return self.repository.placed() | (self.pods.placed() if self.pods else set())

    async def unload(self, name: str) -> None:
        """Stop serving and take the files back, wherever it is. Raises ServerUnreachable, OSError."""
        if self.pods is not None and name in self.pods.placed():
            await self.pods.unload(name)
        if name in self.repository.placed():
            await self.repository.unload(name)
