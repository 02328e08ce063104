"""Where bytes go to or come from: one request to it, the proxy on the way, and what a broken connection means."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from async_bento._core.retry import seconds_to_wait
from async_bento._core.urls import origin, without_queries
from async_bento.errors import APIConnectionError

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import AsyncGenerator, Mapping

    from async_bento._core.retry import HostThrottle

AUTH_HEADER = "X-YATAI-API-TOKEN"
"""What opens the registry, at BentoCloud too (`bentoml/_internal/cloud/client.py`)."""


@dataclass(frozen=True)
class Address:
    """Where bytes go to or come from, and what opens it.

    Attributes:
        url: The URL; its query may be a secret.
        session: What speaks to it.
        headers: What each request must carry; may hold the token.
        proxy: The URL of the proxy on the way, or None.
        ssl: The TLS context, or whether to verify.
        token_source: Where the token came from, where the registry itself passes the bytes on; None for a storage.
        throttle: When which host may be asked, for all addresses of a client.
    """

    url: URL = field(repr=False)
    session: aiohttp.ClientSession = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    ssl: ssl_module.SSLContext | bool = field(repr=False)
    token_source: str | None
    throttle: HostThrottle = field(repr=False)

    @property
    def token(self) -> str:
        """The token that is sent, or an empty text."""
        return self.headers.get(AUTH_HEADER, "")

    def __str__(self) -> str:
        """The URL, without what opens it."""
        return str(self.url.with_query(None).with_user(None))

    @asynccontextmanager
    async def request(
        self,
        method: str,
        limits: aiohttp.ClientTimeout,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        data: bytes | aiohttp.Payload | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send one request, when its host is not to be left alone for a while.

        No redirect is followed: a token, or what a presigned URL opens, stays where it belongs.

        Args:
            method: The HTTP method.
            limits: How long to wait for what.
            headers: Headers besides the address's own.
            params: The query.
            data: The body.

        Yields:
            The response, its body not yet read.

        Raises:
            aiohttp.ClientError: The connection broke.
            asyncio.TimeoutError: A timeout passed.
        """
        proxy, password = without_password(self.proxy)
        host = f"{self.url.host}:{self.url.port}"
        is_tunnel = self.url.scheme == "https"  # to which the proxy is asked first; else it reads the request itself
        await self.throttle.wait(host)
        try:
            async with self.session.request(
                method,
                self.url,
                headers={**self.headers, **({} if is_tunnel else password), **(headers or {})},
                params=params,
                data=data,
                timeout=limits,
                allow_redirects=False,
                proxy=proxy,
                proxy_headers=password if is_tunnel and password else None,
                ssl=self.ssl,
                skip_auto_headers=("Content-Type",),  # a presigned URL does not count on it
                raise_for_status=False,  # a lent session may say otherwise; what a status means is ours to tell
            ) as response:
                self.throttle.record(host, response.status, seconds_to_wait(response.headers.get("Retry-After")))
                yield response
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            _forget_queries(error)
            raise


def connection_error(address: Address, error: Exception) -> APIConnectionError:
    """Tell that the registry was not reached, or the connection to it broke.

    Args:
        address: Where.
        error: What was raised.

    Returns:
        The error to raise.
    """
    place = origin(str(address))
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0  # asyncio's own words for it name the address, not the reason
        reason = os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
        hint = "is it running, and is the endpoint right?"
        if address.proxy is not None and error.host == URL(address.proxy).host:
            place += f" through the proxy at {error.host}:{error.port}"
            hint = "is the proxy right?"
        elif isinstance(error, aiohttp.ClientSSLError):
            reason = error.os_error.strerror or str(error.os_error)  # OpenSSL counts its errors its own way
            hint = "if its certificate is your own, pass ssl= or set SSL_CERT_FILE"
        return APIConnectionError(f"cannot reach the registry at {place}: {reason}; {hint}")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        proxy = URL(address.proxy or "")
        return APIConnectionError(
            f"cannot reach the registry at {place}: the proxy at {proxy.host}:{proxy.port} refused: "
            f"{error.status} {error.message}"
        )
    return APIConnectionError(f"the connection to the registry at {place} broke: {describe(error)}")


def describe(error: BaseException) -> str:
    """Say what a foreign exception says, without what opens a presigned URL.

    Args:
        error: What was raised.

    Returns:
        Its text, or its name where it has none.
    """
    return without_queries(str(error)) or type(error).__name__


def proxy_of_environment(url: URL) -> str | None:
    """The proxy that `HTTPS_PROXY` and its like name for a URL, as other clients find it.

    aiohttp's `trust_env` would do the same, and read netrc besides, whose password would go to the storage.

    Args:
        url: Where a request goes.

    Returns:
        The URL of the proxy, or None for none.
    """
    proxy = None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy  # curl takes it without a scheme, too


def without_password(proxy: str | None) -> tuple[URL | None, dict[str, str]]:
    """Take the password out of a proxy's URL: left there, it would stand in aiohttp's errors.

    Args:
        proxy: The URL, or None.

    Returns:
        The URL without user and password, and the headers that say them.
    """
    if proxy is None:
        return None, {}
    url = URL(proxy)
    if url.user is None:
        return url, {}
    return url.with_user(None), {"Proxy-Authorization": aiohttp.encode_basic_auth(url.user, url.password or "")}


def _forget_queries(error: Exception) -> None:
    """Take from one of aiohttp's errors what it shows of the request: queries, and even its headers."""
    if isinstance(error, aiohttp.ClientResponseError):  # of an answer that is no HTTP; it shows the whole request
        asked = error.request_info
        url = asked.url.with_query(None).with_user(None)
        error.request_info = aiohttp.RequestInfo(url, asked.method, CIMultiDictProxy(CIMultiDict[str]()), url)
        error.args = (error.request_info, error.history)
        return
    error.args = tuple(without_queries(value) if isinstance(value, str) else value for value in error.args)
    if isinstance(error, OSError) and isinstance(error.strerror, str):
        error.strerror = without_queries(error.strerror)
