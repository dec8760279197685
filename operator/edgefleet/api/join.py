"""The join file: all that a site needs to be let in at a hub, once. `edgefleet site join` makes it, `edgefleet agent --join` reads it."""

from typing import Annotated, Literal

from pydantic import Field

from edgefleet.api.meta import Schema
from edgefleet.api.quantities import Name, Timestamp

JOIN_SECRET = "edgefleet-join"  # noqa: S105 - the name of a Secret, not a secret
JOIN_ENTRY = "join.json"
"""Where it lies in the site's own cluster."""


class JoinFile(Schema):
    """`hub` is an https address, `ca` the PEM of who vouches for it (empty: the machine's own authorities), `token` a bearer token that is
    good until `expires_at`, and `root` the text of the root document that the site shall pin."""

    format_version: Literal[1] = 1
    site: Name
    hub: Annotated[str, Field(pattern=r"^https://[^/\s?#@]{1,255}(/[^\s?#]{0,255})?$")]
    ca: Annotated[str, Field(max_length=1 << 18)] = ""
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9._~+/=-]{1,8192}$", repr=False)]
    expires_at: Timestamp
    root: Annotated[str, Field(min_length=1, max_length=1 << 20)]
