"""Real servers for tests and the demo, started from nothing: API servers, a registry, model servers, cosign.

Everything is had from package registries through their ordinary clients and kept in a user cache; what is missing is
named, never skipped. The control plane is upstream Kubernetes, not K3s.
"""


class LabError(RuntimeError):
    """The lab cannot be had or does not come up: says what was tried, what was found and what to do."""
