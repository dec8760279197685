"""A private Sigstore in this process: certificate authority, CT log, two transparency logs and a timestamp authority.

Everything that it signs is real: real cosign and sigstore-python sign and verify against it (tests/integration/test_sigstore.py). What is
not as in public: it believes every identity token, its logs live in memory, and its clock is whatever the caller says, so that tests can
make what an honest Sigstore never would. Start with `PrivateSigstore` in private.py.
"""
