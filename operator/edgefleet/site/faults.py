"""One exception for a step that failed, with its cause: core/site.py decides from it whose fault that is and what follows."""

import errno

from edgefleet.core.site import Cause
from edgefleet.oci.errors import RegistryError
from edgefleet.site.gateway import GatewayDown
from edgefleet.site.gateway_process import GatewayMissing
from edgefleet.site.runtimes import LoadFailed, ServerUnreachable, ServingConfigMissing
from edgefleet.site.store import StoreFull
from edgefleet.trust.errors import Rejected


class StepFailed(Exception):
    """`reason` is CamelCase; `golden_score` is set when the golden set was run, such as `41.2%`."""

    def __init__(self, cause: Cause, reason: str, message: str, golden_score: str = "") -> None:
        super().__init__(f"{reason}: {message}")
        self.cause = cause
        self.reason = reason
        self.message = message
        self.golden_score = golden_score


def explain_failure(error: Exception) -> StepFailed | None:
    """The failed step behind an error that a step may end with; None for one that nobody foresaw."""
    match error:
        case StepFailed():
            return error
        case Rejected():
            return StepFailed(Cause.TRUST, error.reason, error.message)
        case RegistryError():
            return StepFailed(Cause.FETCH, error.reason, error.message)
        case StoreFull():
            return StepFailed(Cause.DISK, error.reason, str(error))
        case LoadFailed() | ServingConfigMissing():
            return StepFailed(Cause.CONTENT, error.reason, str(error))
        case ServerUnreachable() | GatewayDown() | GatewayMissing():
            return StepFailed(Cause.SERVER, error.reason, str(error))
        case OSError():
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return StepFailed(Cause.DISK, "DiskFull" if full else "DiskFailed", f"{error.strerror or error}: {error.filename or 'disk'}")
    return None
