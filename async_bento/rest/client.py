"""RestApiClient: the public client of one registry's REST API, which the APIs of `api` build or receive."""

from __future__ import annotations

import math
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from async_bento._core.retry import HostThrottle
from async_bento.config import Config
from async_bento.errors import ConfigError
from async_bento.rest.credentials import LazyCredentials
from async_bento.rest.responses import parse_response, read_date, status_error
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
from async_bento.rest.session import ApiRequest, RestSession
from async_bento.rest.transport import Connections

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    import aiohttp
    from typing_extensions import Self

    from async_bento.errors import APIError
    from async_bento.rest.credentials import Credentials

_CURRENT_USER = ApiRequest("GET", "auth/current")


class Probe(NamedTuple):
    """Latency, clock and token of a registry, measured by one request."""

    seconds: float
    clock_skew: float | None  # seconds this machine is ahead of the registry, to about 1 s; None without a Date header
    user: UserSchema | None  # None when the registry rejects the token
    error: APIError | None  # why the registry rejects the token


class RestApiClient:
    """Call one registry's REST API.

    A client belongs to one event loop at a time; it opens connections on first use.

    Args:
        endpoint: The registry's URL; by default that of a context or a variable, as "Endpoint and token" of the
            reference describes.
        api_token: The API token; by default found like the endpoint.
        timeout: Seconds to wait for a response; `config.timeouts.api` by default.
        context: A context of `.yatai.yaml` to take the endpoint and the token from.
        config: The settings; `Config.from_env()` by default.
        session: An aiohttp session for requests to the registry; the caller closes it. Requests to the storage always
            use a session of the client, so that no header or cookie of the caller's session reaches the storage. Its
            connector allows at least 2 connections: one for API calls, one for transfers through the registry.
        proxy: The URL of a proxy; by default that of the environment (`HTTPS_PROXY`, `NO_PROXY` …).
        ssl: A TLS context, or False for no verification; by default Python's defaults, including `SSL_CERT_FILE`.

    Raises:
        ConfigError: The endpoint is not a URL, a setting is invalid, or the session allows 1 connection. If only
            `.yatai.yaml` has the token, the first request reads that file and raises, since reading blocks.

    Attributes:
        config: The settings.
        bentos: The routes of bentos.
        models: The routes of models.

    Examples:
        >>> async with RestApiClient("https://registry.example.com", "token") as client:
        ...     bento = await client.bentos.get("iris_classifier", "v1")
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
        token = api_token.get_secret_value() if isinstance(api_token, SecretStr) else api_token
        self._credentials = LazyCredentials(endpoint, token, context)
        self.config = config or Config.from_env()
        timeout = self.config.timeouts.api if timeout is None else timeout
        if not 0 < timeout < math.inf:  # aiohttp waits forever for 0, and fails for infinity
            raise ConfigError(f"invalid timeout {timeout!r}: it is not a number of seconds above 0")
        connections = Connections(session, proxy, ssl, HostThrottle(self.config.retry))
        self._session = RestSession(self._credentials, connections, self.config, timeout)
        self.bentos = ItemRoutes(
            self._session, "bento", BentoRepositorySchema, BentoFullSchema, BentoWithRepositoryListSchema
        )
        self.models = ItemRoutes(
            self._session, "model", ModelRepositorySchema, ModelWithRepositorySchema, ModelWithRepositoryListSchema
        )

    def __repr__(self) -> str:
        found = self._credentials.found
        return f"RestApiClient(endpoint={found.endpoint!r})" if found else "RestApiClient()"

    @property
    def credentials(self) -> Credentials:
        """The endpoint, the API token and its source. Reads `.yatai.yaml` once, if no other source has a token.

        Raises:
            ConfigError: There is no token, no such context, or the token belongs to another endpoint.
        """
        return self._credentials.get()

    @property
    def endpoint(self) -> str:
        """The registry's URL, without a trailing slash.

        Raises:
            ConfigError: As for `credentials`.
        """
        return self.credentials.endpoint

    async def __aenter__(self) -> Self:
        self._session.check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client's connections. A session passed as `session=` stays open.

        A later call raises `ClosedError`.
        """
        await self._session.aclose()

    async def current_user(self) -> UserSchema:
        """Get the user that the API token belongs to: GET `/api/v1/auth/current`.

        Returns:
            The user.

        Raises:
            APIError: The registry was not reached, or rejected the request.
            ConfigError: There is no token.
        """
        return await self._session.request(_CURRENT_USER, UserSchema)

    async def probe(self) -> Probe:
        """Measure the latency, the clock and the token of the registry by one GET `/api/v1/auth/current`.

        Returns:
            A named tuple: `seconds` of the request; `clock_skew`, the seconds this machine's clock is ahead of the
            registry's, or None; `user`, or None when the registry rejects the token; `error`, the reason for that.

        Raises:
            APIError: The registry was not reached, or its response does not match the protocol. A rejected token is
                part of the result.
            ConfigError: There is no token.
        """
        credentials = await self._credentials.load()
        began = time.time()
        response = await self._session.send(_CURRENT_USER)
        seconds = time.time() - began
        date = read_date(response.headers)
        # The registry wrote its Date about halfway between request and response.
        skew = None if date is None else began + seconds / 2 - date
        if response.status != HTTPStatus.OK:
            return Probe(seconds, skew, None, status_error(response, credentials))
        return Probe(seconds, skew, parse_response(response, UserSchema), None)
