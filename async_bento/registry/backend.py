"""Where a registry keeps what it knows, and what is told to it when it opens that."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from aiohttp import web

    from async_bento.registry.blobs.base import Blobs
    from async_bento.registry.records.base import Records


@dataclass(frozen=True)
class Opened:
    """A backend that is open.

    Attributes:
        records: What is known of repositories and items.
        blobs: Their bytes.
        api_token: What clients must send.
        routes: What the backend answers itself, under the registry's address.
    """

    records: Records
    blobs: Blobs
    api_token: str = field(repr=False)
    routes: Sequence[web.AbstractRouteDef] = field(default_factory=tuple)


class Backend(Protocol):
    """Where a registry keeps what it knows."""

    def open(self, *, api_token: str | None, url_expiry: float) -> AbstractAsyncContextManager[Opened]:
        """Open it, for as long as the context lasts.

        Args:
            api_token: What clients must send; None for one that is made once, and then kept here.
            url_expiry: How long presigned URLs live, in seconds.

        Raises:
            ConfigError: It cannot be used; the message says why.
        """
        ...

    def __str__(self) -> str:
        """Where that is, for a person."""
        ...


def new_secret() -> str:
    """A secret that nobody guesses."""
    return secrets.token_urlsafe(32)
