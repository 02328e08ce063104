"""RestApiClient: sessions, the token, retries, and errors for what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from functools import cache, partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import aiohttp
import anyio.to_thread
from pydantic import BaseModel, SecretStr
from yarl import URL

from async_bento._core.retry import HostThrottle, with_retries
from async_bento._core.urls import origin
from async_bento._core.version import __version__
from async_bento.config import BENTOML_VERSION, Config, KiB
from async_bento.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    ConfigError,
)
from async_bento.rest.credentials import Credentials, find_credentials, needs_contexts
from async_bento.rest.responses import is_not_found, read_answer, status_error
from async_bento.rest.transport import AUTH_HEADER, Address, connection_error, proxy_of_environment

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.rest.request_schemas import Request

logger = logging.getLogger(__name__)

USER_AGENT = f"async-bento/{__version__} python/{sys.version_info.major}.{sys.version_info.minor}"

READ_BUFFER = 256 * KiB
"""Bytes a connection may hold before it is read; above aiohttp's 64 KiB it is woken less often."""

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class _RawResponse(NamedTuple):
    """An answer, whatever it is."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request: str


class RestSession:
    """Speaks to one registry.

    It belongs to one event loop at a time, on which its sessions are opened when first used.

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
        self._find_credentials = partial(find_credentials, endpoint, token, context)
        self._credentials: Credentials | None = None
        if not needs_contexts(token, context):
            self._credentials = self._find_credentials()
        self.config = config or Config.from_env()
        self._timeout = self.config.timeouts.api if timeout is None else timeout
        if not 0 < self._timeout < math.inf:  # aiohttp takes 0 for "for ever", and cannot count to infinity
            raise ConfigError(f"timeout={timeout!r}: it must be a number of seconds above 0")
        self._throttle = HostThrottle(self.config.retry)
        self._lent_session = session
        self._proxy = proxy
        self._ssl = ssl
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(endpoint={self._credentials.endpoint!r})" if self._credentials else f"{name}()"

    @property
    def credentials(self) -> Credentials:
        """Where the registry is and what opens it. Reads `.yatai.yaml`, once, where nothing else says it.

        Raises:
            ConfigError: There is no token, no such context, or the token is meant for another endpoint.
        """
        if self._credentials is None:
            self._credentials = self._find_credentials()
        return self._credentials

    @property
    def endpoint(self) -> str:
        """The registry's URL, without a slash at its end.

        Raises:
            ConfigError: As `credentials` does.
        """
        return self.credentials.endpoint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; a lent session is left open."""
        sessions, self._sessions = self._sessions, {}
        if self._loop is asyncio.get_running_loop():
            for session in sessions.values():
                await session.close()

    def storage_address(self, presigned_url: SecretStr) -> Address:
        """Where a presigned URL leads, spoken to without the token, cookies or netrc.

        Args:
            presigned_url: As the registry gave it, signature and all.

        Returns:
            The address.

        Raises:
            APIResponseError: It is no URL.
        """
        try:
            url = URL(presigned_url.get_secret_value(), encoded=True)  # quoted anew, the signature would not hold
            usable = url.scheme in {"http", "https"} and bool(url.host) and bool(url.port)
        except ValueError:
            url, usable = URL(), False
        if not usable:
            raise APIResponseError("the registry presigned something that is no http or https URL")
        return self._address(url, "storage", {}, None)

    def registry_address(self, path: str) -> Address:
        """Where the registry itself answers, with the token.

        Args:
            path: Below `/api/v1/`, quoted.

        Returns:
            The address.
        """
        headers = {
            AUTH_HEADER: self.credentials.api_token.get_secret_value(),
            "X-Bentoml-Version": BENTOML_VERSION,
        }
        url = URL(f"{self.endpoint}/api/v1/{path}", encoded=True)
        if url.scheme == "http" and not _is_here(url.host or ""):
            _warn_of_plain_http(origin(self.endpoint))
        return self._address(url, "registry", headers, self.credentials.source)

    def _address(self, url: URL, session: str, headers: Mapping[str, str], token_source: str | None) -> Address:
        return Address(
            url=url,
            session=self._session(session),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers},
            proxy=self._proxy or proxy_of_environment(url),
            ssl=self._ssl,
            token_source=token_source,
            throttle=self._throttle,
        )

    def _session(self, name: str) -> aiohttp.ClientSession:
        if name == "registry" and self._lent_session is not None:
            return self._lent_session
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._sessions, self._loop = {}, loop  # those of a loop that has ended cannot be used, nor closed
        if name not in self._sessions:
            self._sessions[name] = aiohttp.ClientSession(
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),  # cookies ignore ports: one host's would reach another's
                connector=aiohttp.TCPConnector(limit=0),  # bounded by Transfer.concurrency
                read_bufsize=READ_BUFFER,
            )
        return self._sessions[name]

    async def request(
        self,
        method: str,
        path: str,
        schema: type[AnswerT],
        *,
        body: Request | None = None,
        params: Mapping[str, str] | None = None,
        retry: bool = True,
        timeout: float | None = None,
    ) -> AnswerT:
        """Ask the registry something.

        Args:
            method: The HTTP method.
            path: Below `/api/v1/`, quoted.
            schema: What the answer should be.
            body: What to say.
            params: The query.
            retry: Whether asking twice does no harm, so that a transient fault is tried again.
            timeout: Seconds for the answer; those of the client by default.

        Returns:
            The answer.

        Raises:
            APIConnectionError: The registry was not reached, or did not answer in time.
            APIStatusError: It refused.
            APIResponseError: Its answer does not fit the protocol.
        """

        async def once() -> AnswerT:
            return await self._request_once(method, path, schema, body, params, timeout or self._timeout)

        if self._credentials is None:
            await anyio.to_thread.run_sync(lambda: self.credentials)
        return await with_retries(self.config.retry, once) if retry else await once()

    async def find(
        self, method: str, path: str, schema: type[AnswerT], *, params: Mapping[str, str] | None = None
    ) -> AnswerT | None:
        """Ask the registry for something that may not be there.

        Args:
            method: The HTTP method.
            path: Below `/api/v1/`, quoted.
            schema: What the answer should be.
            params: The query.

        Returns:
            The answer, or None where there is no such record.

        Raises:
            APIError: As `ask` does.
        """
        try:
            return await self.request(method, path, schema, params=params)
        except APIStatusError as error:
            if is_not_found(error):
                return None
            raise

    async def _request_once(
        self,
        method: str,
        path: str,
        schema: type[AnswerT],
        body: Request | None,
        params: Mapping[str, str] | None,
        timeout: float,
    ) -> AnswerT:
        response = await self._send(method, path, body, params, timeout)
        if response.status != HTTPStatus.OK:
            raise self._refusal(response)
        return read_answer(response.body, schema, response.request)

    def _refusal(self, response: _RawResponse) -> APIError:
        credentials = self.credentials
        token = credentials.api_token.get_secret_value()
        return status_error(
            response.status, response.headers, response.body, response.request, credentials.source, token
        )

    async def _send(
        self, method: str, path: str, body: Request | None, params: Mapping[str, str] | None, timeout: float
    ) -> _RawResponse:
        address = self.registry_address(path)
        request = f"{method} {address}"
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=self.config.timeouts.connect)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        data = body.model_dump_json(by_alias=True).encode() if body else None
        try:
            async with address.request(method, limits, headers=headers, params=params, data=data) as response:
                answer = await response.read()
        except aiohttp.ConnectionTimeoutError as error:
            raise APITimeoutError(f"{request}: no connection within {limits.sock_connect:g} s") from error
        except asyncio.TimeoutError as error:
            raise APITimeoutError(f"{request}: no answer within {timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise connection_error(address, error) from error
        return _RawResponse(response.status, response.headers, answer, request)


def _is_here(host: str) -> bool:
    """Whether a host is this machine, by its name or address."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def _warn_of_plain_http(registry: str) -> None:
    """Say it once for each registry, however many clients there are."""
    logger.warning("the API token goes to %s unencrypted: whoever is on the way can read it; use https", registry)
