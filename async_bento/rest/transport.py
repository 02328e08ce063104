"""HTTP requests to the registry and its storage: connections, targets, proxies, errors of broken connections."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl as ssl_module
import sys
import time
import warnings
import weakref
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from async_bento._core import platform
from async_bento._core.fork import watch_forks, watch_loop
from async_bento._core.loops import running_loop
from async_bento._core.rate_limit import RateLimit
from async_bento._core.retry import causes, lacks_tls, seconds_to_wait
from async_bento._core.thread_pool import DaemonThreadPool
from async_bento._core.urls import origin, without_queries
from async_bento._core.version import __version__
from async_bento.config import KiB
from async_bento.errors import APIConnectionError, APIError, APITimeoutError, ClosedError, ConfigError, PartError
from async_bento.rest.connector import Connector, Resolver, keep_session, run_step
from async_bento.rest.proxies import check_proxy, proxy_of_environment
from async_bento.rest.storages import GATEWAY_ERRORS, Storages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping

    from async_bento._core.retry import HostThrottle
    from async_bento.rest.credentials import Credentials

AUTH_HEADER = "X-YATAI-API-TOKEN"
"""The header of the token, for Yatai and BentoCloud (`bentoml/_internal/cloud/client.py`)."""

USER_AGENT = f"async-bento/{__version__} python/{sys.version_info.major}.{sys.version_info.minor}"

# S3 needs one, to another region; the limit ends a loop.
_MAX_REDIRECTS = 5
# Without 303 (RFC 9110, 15.4.4), which turns a PUT into a GET.
_REDIRECTS = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)

READ_BUFFER = 256 * KiB
"""Bytes a connection may hold before they are read; more than aiohttp's 64 KiB causes fewer wake-ups."""

REGISTRY_CONNECTIONS = 128
"""Connections of one client to the registry, half for API calls and half for transfers through the registry, so that
neither waits for the other. A process may open 1,024 files by default, and the application needs most of them."""

logger = logging.getLogger(__package__)

_REQUEST_IDS = ("X-Request-Id", "x-amz-request-id")  # of proxies and applications, and of S3

LOOKUP_THREADS = 4
"""Threads of a client that look up names: those of the registry, the storage and a proxy, and one that is stuck."""


MAX_ERROR_BODY = 64 * KiB
"""Bytes read of a response that states why a request failed."""


@dataclass(frozen=True)
class Target:
    """A URL of the registry or its storage, with all that a request to it needs."""

    url: URL = field(repr=False)  # its query may be a secret
    session: aiohttp.ClientSession = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)  # of each request; with the token for the registry
    proxy: str | None = field(repr=False)
    ssl: ssl_module.SSLContext | bool = field(repr=False)
    credentials: Credentials | None  # None for a storage: only the registry gets the token
    throttle: HostThrottle = field(repr=False)
    connections: asyncio.Semaphore | None = field(repr=False)  # bounds those to the registry; None for a storage
    owner: Connections = field(repr=False)
    redirects: int = 0  # that led here
    attempt: int = 1  # of the request, for the log

    def __str__(self) -> str:
        """The URL, without secrets."""
        return str(self.url.with_query(None).with_user(None))

    @property
    def storage(self) -> str:
        """The scheme, the host and the port."""
        return origin(str(self))

    @property
    def is_forwarded(self) -> bool:
        """Whether a proxy reads the request and sends it on; for https it forwards bytes."""
        return self.proxy is not None and self.url.scheme == "http"

    @property
    def host(self) -> str:
        """The host with its port."""
        return f"{self.url.host}:{self.url.port}"

    @property
    def _attempt_note(self) -> str:
        return f", attempt {self.attempt}" if self.attempt > 1 else ""

    @property
    def is_paused(self) -> bool:
        """Whether the host has asked for a pause that is not over."""
        return self.throttle.is_paused(self.host)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Wait for a free connection to the registry and for the end of the host's pause; no timeout counts this."""
        async with self.connections or nullcontext():
            await self.throttle.wait(self.host)
            yield

    @asynccontextmanager
    async def request(
        self,
        method: str,
        timeout: aiohttp.ClientTimeout,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        data: bytes | aiohttp.Payload | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send one request; the caller has waited for its turn. The errors are aiohttp's, without secrets.

        Redirects are not followed: neither the token nor a presigned query may reach another host. `redirected` has the
        target of a storage's redirect.
        """
        proxy, proxy_auth = split_proxy_auth(self.proxy)
        of_request = proxy_auth if self.is_forwarded else {}
        started = time.perf_counter()
        try:
            async with self.session.request(
                method,
                self.url,
                headers={**self.headers, **of_request, **(headers or {})},
                params=params,
                data=data,
                timeout=timeout,
                allow_redirects=False,
                proxy=proxy,
                proxy_headers=proxy_auth or None,  # of a CONNECT alone
                ssl=self.ssl,
                skip_auto_headers=("Content-Type",),  # a presigned URL is signed without one
                raise_for_status=False,  # the caller's session may have it on
            ) as response:
                logger.debug("%s %s: %s%s", method, self, _outcome(response, started), self._attempt_note)
                self.throttle.record(self.host, response.status, seconds_to_wait(response.headers.get("Retry-After")))
                # A gateway error of a forwarding proxy is not an answer of the server.
                if not (self.is_forwarded and response.status in GATEWAY_ERRORS):
                    self.owner.storages.reached.add(self.storage)
                yield response
        # asyncio's TimeoutError is a class of its own, and no OSError, before Python 3.11.
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            _remove_secrets(error)
            note = self._attempt_note
            logger.debug("%s %s: failed after %d ms%s: %s", method, self, _since(started), note, describe(error))
            raise

    def redirected(self, status: int, location: str | None) -> Target | None:
        """The target that a storage redirects to, as S3 does for new buckets and other regions; None for no redirect.

        The method, the body and the Range are to be sent again; the query is the redirect's own.
        """
        if self.credentials is not None or status not in _REDIRECTS or not location:
            return None
        try:
            url = self.url.join(URL(location, encoded=True))
            usable = url.scheme in {"http", "https"} and bool(url.host and url.port)
        except ValueError:
            url, usable = self.url, False
        if not usable:
            problem = "to something that is not an http or https URL"
        elif self.url.scheme == "https" and url.scheme == "http":
            problem = "from https to http"
        elif self.redirects == _MAX_REDIRECTS:
            problem = f"more than {_MAX_REDIRECTS} times"
        else:
            target = self.owner.target(url.with_user(None), {}, None)
            return replace(target, redirects=self.redirects + 1, attempt=self.attempt)
        raise PartError(
            f"{self}: the storage redirects {problem}, which is not followed. "
            "Check the storage settings of the registry.",
            status=status,
        )


class Connections:
    """The aiohttp sessions of one client, opened on first use, for each event loop that uses the client."""

    def __init__(
        self,
        caller_session: aiohttp.ClientSession | None,
        proxy: str | None,
        ssl: ssl_module.SSLContext | bool,
        throttle: HostThrottle,
    ) -> None:
        self._caller_session = caller_session
        self._connection_limit = _connection_limit(caller_session)
        self._proxy = None if proxy is None else check_proxy(proxy, "the argument proxy")
        self._ssl = ssl
        self._throttle = throttle
        self.storages = Storages()
        self._rate_limits: dict[int, RateLimit] = {}
        self._is_closed = False
        self._sessions: dict[tuple[str, asyncio.AbstractEventLoop], aiohttp.ClientSession] = {}
        self._keepers: defaultdict[asyncio.AbstractEventLoop, list[AsyncGenerator[object]]] = defaultdict(list)
        # Of API calls, and of transfers through the registry, on each event loop.
        self._limits: dict[tuple[bool, asyncio.AbstractEventLoop], asyncio.Semaphore] = {}
        self._lookup_threads = DaemonThreadPool(LOOKUP_THREADS, "async-bento-dns")
        weakref.finalize(self, _detach_unclosed, self._sessions).atexit = False
        watch_forks(self)

    def target(
        self, url: URL, headers: Mapping[str, str], credentials: Credentials | None, *, is_transfer: bool = True
    ) -> Target:
        """The target of a URL: of the registry with credentials, of a storage without."""
        self.check_open()
        loop = self._enter_loop()
        if credentials is not None and self._caller_session is not None:
            session = self._caller_session
        else:
            session = self._session("storage" if credentials is None else "registry", loop)
        return Target(
            url=url,
            session=session,
            # Identity: a compressed response would have another size and another checksum than the object.
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers},
            proxy=self._proxy or proxy_of_environment(url),
            ssl=self._ssl,
            credentials=credentials,
            throttle=self._throttle,
            connections=None if credentials is None else self._limits[is_transfer, loop],
            owner=self,
        )

    def rate_limit(self, rate: int | None) -> RateLimit | None:
        """The limit of all transfers of the client that have this rate, in bytes per second; None for no limit."""
        if rate is None:
            return None
        return self._rate_limits.setdefault(rate, RateLimit(rate))

    def check_open(self) -> None:
        """Raise ClosedError if the client was closed."""
        if self._is_closed:
            raise ClosedError("the client was closed. Create a new one.")

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = running_loop()
        if (True, loop) not in self._limits:
            self._forget(lambda other: other.is_closed())
            limit = self._connection_limit // 2
            self._limits |= {(is_transfer, loop): asyncio.Semaphore(limit) for is_transfer in (False, True)}
            watch_loop(loop)
        return loop

    def _session(self, name: str, loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
        if (name, loop) not in self._sessions:
            # Without `trust_env`: netrc would add Authorization to presigned URLs, which S3 answers with 400.
            session = self._sessions[name, loop] = aiohttp.ClientSession(
                auto_decompress=False,  # sizes, ranges and checksums are those of the bytes sent
                cookie_jar=aiohttp.DummyCookieJar(),  # cookies ignore ports: a storage would get the registry's
                # Bounded by `Target.connections` and `Transfer.concurrency`.
                connector=Connector(limit=0, resolver=Resolver(self._lookup_threads)),
                read_bufsize=READ_BUFFER,
            )
            keeper = keep_session(session)
            run_step(keeper.__anext__())
            self._keepers[loop].append(keeper)
        return self._sessions[name, loop]

    async def aclose(self) -> None:
        """Close the sessions, except the caller's; sessions of other event loops are closed by their loops."""
        # First, so that no call opens a session meanwhile.
        self._is_closed = True
        for keeper in self._keepers.pop(asyncio.get_running_loop(), []):
            await keeper.aclose()
        self._forget(lambda _: True)
        self._lookup_threads.shutdown()

    def forget_parent(self) -> None:
        """See `ForkAware`."""
        for keeper in [keeper for keepers in self._keepers.values() for keeper in keepers]:
            run_step(keeper.aclose())  # which closes nothing in another process
        self._forget(lambda _: True)

    def _forget(self, is_over: Callable[[asyncio.AbstractEventLoop], bool]) -> None:
        """Drop what belongs to some event loops; those that still run close their sessions."""
        for name, loop in [key for key in self._sessions if is_over(key[1])]:
            self._sessions.pop((name, loop)).detach()
            self._keepers.pop(loop, None)
        for key in [key for key in self._limits if is_over(key[1])]:
            del self._limits[key]


def _outcome(response: aiohttp.ClientResponse, started: float) -> str:
    """Describe a response whose body is not yet read, for the log."""
    size = response.content_length
    request_id = next(filter(None, map(response.headers.get, _REQUEST_IDS)), None)
    return (
        f"{response.status} after {_since(started)} ms"
        + (f", {size} bytes" if size is not None else "")
        + (f", request id {request_id}" if request_id else "")
    )


def _since(started: float) -> int:
    return round(1000 * (time.perf_counter() - started))


def _connection_limit(caller_session: aiohttp.ClientSession | None) -> int:
    """The most connections to the registry. Waiting within a caller's smaller pool would count as connecting."""
    limits = [REGISTRY_CONNECTIONS]
    if caller_session is not None and caller_session.connector is not None:
        limits += [caller_session.connector.limit, caller_session.connector.limit_per_host]
    limit = min(limit for limit in limits if limit)  # 0: no limit
    if limit == 1:
        raise ConfigError(
            "cannot use the argument session: its connector allows 1 connection, for which API calls and transfers "
            "would wait for each other. Raise its limit or limit_per_host to 2 or more."
        )
    return limit


def _detach_unclosed(sessions: Mapping[Any, aiohttp.ClientSession]) -> None:
    """Warn of a client that was collected without being closed; the event loops close its sessions."""
    is_open = [session for session in sessions.values() if not session.closed]
    for session in is_open:
        session.detach()
    if is_open:
        warnings.warn("unclosed client. Use it in an `async with` statement, or await aclose().", ResourceWarning, 2)


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body until more than `limit` bytes have arrived; the rest is left unread, and its connection closed."""
    body = bytearray()
    while len(body) <= limit and (piece := await response.content.readany()):
        body += piece
    return bytes(body)


@contextmanager
def translate_errors(request: str, target: Target, timeout: aiohttp.ClientTimeout) -> Generator[None]:
    """Raise the errors of aiohttp, asyncio and the system as an APIConnectionError or APITimeoutError."""
    try:
        yield
    # Before TimeoutError, of which it is a subclass.
    except aiohttp.ConnectionTimeoutError as error:
        raise APITimeoutError(no_connection(request, target, timeout)) from error
    except asyncio.TimeoutError as error:
        raise APITimeoutError(
            f"{request}: no response within {timeout.total:g} s. Check the registry, or raise the timeout."
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise connection_error(target, error) from error


def failed_to_connect(error: APIError) -> bool:
    """Whether no connection was made: refused, of an unknown host, out of time, or by a proxy."""
    kinds = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    return any(isinstance(cause, kinds) for cause in causes(error))


def no_connection(request: str, target: Target, timeout: aiohttp.ClientTimeout) -> str:
    """The message for a connection that was not ready in time: TCP, the proxy's tunnel and TLS."""
    what = f"{request}: no connection within {timeout.connect:g} s"
    if target.proxy is None:
        return f"{what}. Check the endpoint and the network."
    proxy = URL(target.proxy)
    return f"{what} through the proxy at {proxy.host}:{proxy.port}. Check the proxy and the network."


def connection_error(target: Target, error: Exception) -> APIConnectionError:
    """The error for a connection to the registry that was not made, or broke."""
    return APIConnectionError(explain_failure(target, error))


def explain_failure(target: Target, error: Exception) -> str:
    """Why a connection to the registry or its storage was not made, or broke, and what to check."""
    server = "storage" if target.credentials is None else "registry"
    place = f"the {server} at {origin(str(target))}"
    proxy = URL(target.proxy or "")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return (
            f"cannot reach {place}: the proxy at {proxy.host}:{proxy.port} answered {error.status} {error.message}. "
            "Check the proxy and its password."
        )
    if not isinstance(error, aiohttp.ClientConnectorError):
        return f"the connection to {place} broke: {describe(error)}"
    reason = str(error.os_error) if isinstance(error, aiohttp.ClientSSLError) else platform.reason(error.os_error)
    # aiohttp names the proxy if the connection to the proxy failed.
    if target.proxy is not None and (error.host, error.port) == (proxy.host, proxy.port):
        return f"cannot reach {place} through the proxy at {proxy.host}:{proxy.port}: {reason}. Check the proxy."
    if lacks_tls(error):
        where = "endpoint" if server == "registry" else "storage settings of the registry"
        return (
            f"cannot reach {place}: the server does not use TLS on this port. "
            f"Use an http URL, or the port for https, in the {where}."
        )
    return f"cannot reach {place}: {reason}. {_check(server, error)}"


def _check(server: str, error: aiohttp.ClientConnectorError) -> str:
    """What to check where the server was not reached."""
    if isinstance(error.os_error, ssl_module.SSLCertVerificationError):
        return "If its certificate is from a private authority, set SSL_CERT_FILE to the authority's certificate."
    if isinstance(error, aiohttp.ClientSSLError):
        return f"Check the TLS settings of the {server}."
    if server == "registry":
        return "Check that the registry is running and that the endpoint is right."
    return "Check that the storage is running and that this machine can reach it."


def describe(error: BaseException) -> str:
    """The text of a foreign exception without presigned queries, or the name of its class if it has none."""
    return without_queries(str(error)) or type(error).__name__


def split_proxy_auth(proxy: str | None) -> tuple[URL | None, dict[str, str]]:
    """Move the user and password of a proxy's URL, which aiohttp's errors would show, into a header."""
    if proxy is None:
        return None, {}
    url = URL(proxy)
    if url.user is None:
        return url, {}
    return url.with_user(None), {"Proxy-Authorization": aiohttp.encode_basic_auth(url.user, url.password or "")}


_QUOTED = re.compile(r"\sb?['\"].*", re.DOTALL)
"""The bytes of a response that is not HTTP, in the message of aiohttp's error; they may echo the request."""


def _remove_secrets(error: Exception) -> None:
    """Remove queries and headers from an aiohttp error, in place: it is raised as a cause, and logged."""
    if isinstance(error, aiohttp.ClientResponseError):  # for a response that is not HTTP; shows the whole request
        request = error.request_info
        url = request.url.with_query(None)  # aiohttp has removed the user
        error.request_info = aiohttp.RequestInfo(url, request.method, CIMultiDictProxy(CIMultiDict[str]()), url)
        error.args = (error.request_info, error.history)
        error.message = " ".join(_QUOTED.sub("", error.message).split()).rstrip(":")
        error.__cause__ = error.__context__ = None  # the parser's error, of the same message
        return
    error.args = tuple(without_queries(value) if isinstance(value, str) else value for value in error.args)
    if isinstance(error, OSError) and isinstance(error.strerror, str):
        error.strerror = without_queries(error.strerror)
