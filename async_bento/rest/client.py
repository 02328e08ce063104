"""RestApiClient: every route of a registry, for bentos and for models."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import anyio.to_thread

from async_bento.rest.responses import clock_of, read_answer
from async_bento.rest.routes import ItemRoutes
from async_bento.rest.schemas import (
    BentoFullSchema,
    BentoRepositorySchema,
    BentoWithRepositoryListSchema,
    ModelRepositorySchema,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
    UserSchema,
)
from async_bento.rest.session import RestSession

if TYPE_CHECKING:
    import ssl as ssl_module

    import aiohttp
    from pydantic import SecretStr

    from async_bento.config import Config
    from async_bento.errors import (
        APIError,
    )


class Probe(NamedTuple):
    """What came of one look at a registry.

    Attributes:
        seconds: How long its answer took.
        skew: How far this machine's clock is ahead of the registry's, in seconds, to about one second; None where the
            registry does not tell its time.
        user: Whose token it is; None where it is not accepted.
        refusal: Why it is not.
    """

    seconds: float
    skew: float | None
    user: UserSchema | None
    refusal: APIError | None


class RestApiClient(RestSession):
    """Client of one registry's REST API.

    A client belongs to one event loop at a time; its connections are opened when they are first used.

    Args:
        endpoint: The registry's URL; found as `find_credentials` says where it is None.
        api_token: The token; likewise.
        timeout: Seconds for one answer of the API; `config.timeouts.api` by default.
        context: A context of `.yatai.yaml` to take endpoint and token from.
        config: The settings; the defaults and the environment by default.
        session: A session for calls to the registry, which stays the caller's to close. The storage is always spoken to
            by a session of our own, so that no header or cookie of this one goes there.
        proxy: The URL of a proxy; that of the environment by default.
        ssl: A TLS context, or False for no verification; Python's defaults, `SSL_CERT_FILE` among them, by default.

    Raises:
        ConfigError: The endpoint is no URL, or a setting does not fit. What only `.yatai.yaml` can tell, the first call
            looks up, since that blocks.

    Attributes:
        bentos: The routes of bentos.
        models: The routes of models.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        api_token: str | SecretStr | None = None,
        timeout: float | None = None,
        *,
        context: str | None = None,
        config: Config | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl_module.SSLContext | bool = True,
    ) -> None:
        super().__init__(
            endpoint, api_token, timeout, context=context, config=config, session=session, proxy=proxy, ssl=ssl
        )
        self.bentos = ItemRoutes(self, "bento", BentoRepositorySchema, BentoFullSchema, BentoWithRepositoryListSchema)
        self.models = ItemRoutes(
            self, "model", ModelRepositorySchema, ModelWithRepositorySchema, ModelWithRepositoryListSchema
        )

    async def current_user(self) -> UserSchema:
        """Ask whose token it is: GET `/api/v1/auth/current`.

        Returns:
            The user.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self.request("GET", "auth/current", UserSchema)

    async def probe(self) -> Probe:
        """Ask whose token it is, once, and look at the registry's clock: GET `/api/v1/auth/current`.

        Returns:
            What came of it.

        Raises:
            APIError: The registry was not reached, or its answer does not fit the protocol. That it refuses is part
                of the answer.
            ConfigError: There is no token.
        """
        if self._credentials is None:
            await anyio.to_thread.run_sync(lambda: self.credentials)
        began = time.time()
        response = await self._send("GET", "auth/current", None, None, self._timeout)
        seconds = time.time() - began
        date = clock_of(response.headers)
        skew = None if date is None else began + seconds / 2 - date
        if response.status != HTTPStatus.OK:
            return Probe(seconds, skew, None, self._refusal(response))
        return Probe(seconds, skew, read_answer(response.body, UserSchema, response.request), None)
