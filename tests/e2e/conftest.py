"""The hub with its team and fake sites, as tests/integration has them."""

from tests.integration.conftest import hub_cluster, sites, world

__all__ = ["hub_cluster", "sites", "world"]
