"""What may be believed: signatures, the root-signed trust bundle, assignments. Bytes in, verdict out; no network."""
