"""Tokens: the requests that a token allows, and the sender of a request."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from datetime import datetime

Role = Literal["read", "push", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)
"""What a token allows, each role including those before it."""

FIRST_TOKEN = "admin"  # noqa: S105 - a name
"""The name of the token that a registry creates at its first start."""

_PREFIX = "abt_"
"""Scanners for leaked secrets, and people, recognize a token by its first characters."""


class Actor(NamedTuple):
    """Who changes a record: the name of the token, and the address of the client."""

    token: str
    address: str = ""


@dataclass(frozen=True)
class Token:
    """The record of a token, which allows a role in the repositories whose names begin with `prefix`."""

    id: int
    name: str
    role: Role
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    def allows(self, role: Role) -> bool:
        """Whether a request that needs a role is allowed."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def covers(self, repository: str) -> bool:
        """Whether requests about a repository are allowed."""
        return repository.startswith(self.prefix)

    def is_expired(self, now: datetime) -> bool:
        """Whether the token has expired."""
        return self.expires_at is not None and self.expires_at <= now


def generate_token() -> str:
    """Generate a token."""
    return f"{_PREFIX}{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> str:
    """Return what the database has of a token; a token of 256 random bits needs no slower hash."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
