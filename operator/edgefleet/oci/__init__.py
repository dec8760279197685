"""Model artifacts in OCI registries: references, a verified resumable client, indexes, push. Believes nothing: see trust."""
