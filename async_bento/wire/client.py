"""RestApiClient: sessions, the token, retries, and errors for what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from functools import cache, partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import aiohttp
import anyio.to_thread
from pydantic import BaseModel, SecretStr
from yarl import URL

from async_bento._version import __version__
from async_bento.config import BENTOML_VERSION, Config, KiB
from async_bento.credentials import Credentials, find_credentials, needs_contexts, origin
from async_bento.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    ConfigError,
)
from async_bento.retry import Pauses, with_retries
from async_bento.wire.address import AUTH_HEADER, Address, connection_error, proxy_of_environment
from async_bento.wire.answers import clock_of, is_not_found, read_answer, status_error
from async_bento.wire.routes import ItemRoutes
from async_bento.wire.schemas import (
    BentoFullSchema,
    BentoRepositorySchema,
    BentoWithRepositoryListSchema,
    ModelRepositorySchema,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
    Request,
    UserSchema,
)

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__name__)

USER_AGENT = f"async-bento/{__version__} python/{sys.version_info.major}.{sys.version_info.minor}"

READ_BUFFER = 256 * KiB
"""Bytes a connection may hold before it is read; above aiohttp's 64 KiB it is woken less often."""

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class _Heard(NamedTuple):
    """An answer, whatever it is."""

    status: int
    headers: Mapping[str, str]
    said: bytes
    request: str


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


class RestApiClient:
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
        self._pauses = Pauses(self.config.retry)
        self._lent_session = session
        self._proxy = proxy
        self._ssl = ssl
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self.bentos = ItemRoutes(self, "bento", BentoRepositorySchema, BentoFullSchema, BentoWithRepositoryListSchema)
        self.models = ItemRoutes(
            self, "model", ModelRepositorySchema, ModelWithRepositorySchema, ModelWithRepositoryListSchema
        )

    def __repr__(self) -> str:
        return f"RestApiClient(endpoint={self._credentials.endpoint!r})" if self._credentials else "RestApiClient()"

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

    async def current_user(self) -> UserSchema:
        """Ask whose token it is: GET `/api/v1/auth/current`.

        Returns:
            The user.

        Raises:
            APIError: The registry was not reached, or refused.
        """
        return await self.ask("GET", "auth/current", UserSchema)

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
        heard = await self._say("GET", "auth/current", None, None, self._timeout)
        seconds = time.time() - began
        date = clock_of(heard.headers)
        skew = None if date is None else began + seconds / 2 - date
        if heard.status != HTTPStatus.OK:
            return Probe(seconds, skew, None, self._refusal(heard))
        return Probe(seconds, skew, read_answer(heard.said, UserSchema, heard.request), None)

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
            pauses=self._pauses,
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

    async def ask(
        self,
        method: str,
        path: str,
        schema: type[AnswerT],
        *,
        body: Request | None = None,
        params: Mapping[str, str] | None = None,
        retry: bool = True,
        patience: float | None = None,
    ) -> AnswerT:
        """Ask the registry something.

        Args:
            method: The HTTP method.
            path: Below `/api/v1/`, quoted.
            schema: What the answer should be.
            body: What to say.
            params: The query.
            retry: Whether asking twice does no harm, so that a transient fault is tried again.
            patience: Seconds for the answer; those of the client by default.

        Returns:
            The answer.

        Raises:
            APIConnectionError: The registry was not reached, or did not answer in time.
            APIStatusError: It refused.
            APIResponseError: Its answer does not fit the protocol.
        """

        async def once() -> AnswerT:
            return await self._ask_once(method, path, schema, body, params, patience or self._timeout)

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
            return await self.ask(method, path, schema, params=params)
        except APIStatusError as error:
            if is_not_found(error):
                return None
            raise

    async def _ask_once(
        self,
        method: str,
        path: str,
        schema: type[AnswerT],
        body: Request | None,
        params: Mapping[str, str] | None,
        patience: float,
    ) -> AnswerT:
        heard = await self._say(method, path, body, params, patience)
        if heard.status != HTTPStatus.OK:
            raise self._refusal(heard)
        return read_answer(heard.said, schema, heard.request)

    def _refusal(self, heard: _Heard) -> APIError:
        credentials = self.credentials
        token = credentials.api_token.get_secret_value()
        return status_error(heard.status, heard.headers, heard.said, heard.request, credentials.source, token)

    async def _say(
        self, method: str, path: str, body: Request | None, params: Mapping[str, str] | None, patience: float
    ) -> _Heard:
        address = self.registry_address(path)
        request = f"{method} {address}"
        timeout = aiohttp.ClientTimeout(total=patience, sock_connect=self.config.timeouts.connect)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        data = body.model_dump_json(by_alias=True).encode() if body else None
        try:
            async with address.request(method, timeout, headers=headers, params=params, data=data) as response:
                said = await response.read()
        except aiohttp.ConnectionTimeoutError as error:
            raise APITimeoutError(f"{request}: no connection within {timeout.sock_connect:g} s") from error
        except asyncio.TimeoutError as error:
            raise APITimeoutError(f"{request}: no answer within {patience:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise connection_error(address, error) from error
        return _Heard(response.status, response.headers, said, request)


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
