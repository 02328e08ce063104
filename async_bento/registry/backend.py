"""The interface of a backend: a place that holds a registry's records, blobs and token."""

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
class OpenBackend:
    """An open backend; `routes` serve its presigned URLs where the registry itself does."""

    records: Records
    blobs: Blobs
    api_token: str = field(repr=False)
    routes: Sequence[web.AbstractRouteDef] = field(default_factory=tuple)


class Backend(Protocol):
    """A place that holds a registry's data; `str(backend)` describes it to users."""

    def open(self, *, api_token: str | None, url_expiry: float) -> AbstractAsyncContextManager[OpenBackend]:
        """Open the backend with a token, or with None its own; URLs expire after `url_expiry` seconds.

        Raise `ConfigError` if the backend is unusable.
        """
        ...

    def __str__(self) -> str: ...


def new_secret() -> str:
    """Generate a token or signing key."""
    return secrets.token_urlsafe(32)
