"""The arguments of a mirror. The other modules of this package are imported when a mirror starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.loading import load_module

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.mirror.mirror import Mirror


@dataclass(frozen=True)
class MirrorSource:
    """The registry that a mirror copies, and the most bytes that it keeps."""

    url: str
    api_token: SecretStr
    size: int | None

    @classmethod
    def of(cls, url: str | None, api_token: str | SecretStr | None, size: int | None) -> MirrorSource | None:
        """Check the arguments of a mirror; None if the registry is none."""
        if url is None:
            if api_token is not None or size is not None:
                raise ConfigError("upstream_token and mirror_size require upstream. Pass its URL.")
            return None
        token = api_token if isinstance(api_token, SecretStr) else SecretStr(api_token or "")
        if not token.get_secret_value().strip():
            raise ConfigError("the mirror has no token for its upstream. Pass upstream_token.")
        if size is not None and size <= 0:
            raise ConfigError(f"invalid mirror_size {size}: it is not above 0 bytes. Use more.")
        return cls(check_endpoint(url), token, size)

    async def open(self, opened: OpenBackend) -> AbstractAsyncContextManager[Mirror]:
        """Mirror the registry in a block."""
        module = await load_module("async_bento.registry.mirror.mirror")
        mirror: AbstractAsyncContextManager[Mirror] = module.open_mirror(opened, self.url, self.api_token, self.size)
        return mirror
