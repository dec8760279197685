"""Bearer tokens of the registry: a login gets a token for the scopes it asks for, and it expires."""

import base64
import binascii
import secrets
import threading
import time
from dataclasses import dataclass, field

PULL, PUSH = "pull", "push"


@dataclass
class TokenAuth:
    """Who may log in, and for how long a token is good.

    `lifetime` is in seconds. `anonymous_pull` gives pull tokens without a login. `issued` counts the tokens handed out.
    """

    username: str = "user"
    password: str = "secret"
    lifetime: float = 300
    anonymous_pull: bool = False
    issued: int = 0
    _tokens: dict[str, tuple[frozenset[tuple[str, str]], float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def issue(self, authorization: str, scopes: list[str]) -> str | None:
        """A token for scopes like `repository:team/model:pull,push`; None where the login is wrong."""
        actions = (PULL, PUSH) if self._is_user(authorization) else (PULL,) if self.anonymous_pull and not authorization else ()
        if not actions:
            return None
        granted = set()
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            repository, _, wanted = rest.rpartition(":")
            if kind == "repository":
                granted |= {(repository, action) for action in wanted.split(",") if action in actions}
        token = secrets.token_hex(16)
        with self._lock:
            self.issued += 1
            self._tokens[token] = (frozenset(granted), time.monotonic() + self.lifetime)
        return token

    def allows(self, authorization: str, repository: str | None, action: str) -> bool:
        """Whether the header carries a live token for the action; without a repository any live token will do."""
        scheme, _, token = authorization.partition(" ")
        with self._lock:
            granted, expires = self._tokens.get(token, (frozenset(), 0.0))
        alive = scheme.lower() == "bearer" and time.monotonic() < expires
        return alive and (repository is None or (repository, action) in granted)

    def expire_all(self) -> None:
        """Makes every token handed out so far worthless, as if its time had passed."""
        with self._lock:
            self._tokens.clear()

    def _is_user(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            return scheme.lower() == "basic" and base64.b64decode(encoded).decode() == f"{self.username}:{self.password}"
        except (binascii.Error, ValueError):
            return False
