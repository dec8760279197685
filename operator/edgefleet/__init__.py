"""edgefleet: signed ML models, rolled out to fleets of edge sites, and taken back when they are worse."""

__version__ = "0.1.0"
