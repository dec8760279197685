"""API access for the hot path: a thin client, typed list-watch, leases. Errors are mapped once, here."""
