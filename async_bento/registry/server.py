"""The registry as a server: on this machine, with its records and bytes in a directory or in a bucket."""

from __future__ import annotations

import ipaddress
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from pydantic import SecretStr

from async_bento._core.s3 import MAX_PUT_SIZE, MIN_PART_SIZE
from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.app import Api
from async_bento.registry.blobs.disk import HOP
from async_bento.registry.disk_backend import Directory
from async_bento.registry.s3_backend import S3Bucket

if TYPE_CHECKING:
    import logging
    import os
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.registry.backend import Backend
    from async_bento.rest.schemas import TransmissionStrategy

Transmission = Literal["presigned_url", "proxy", "auto"] | None
"""Which way the bytes go: in presigned parts, through the registry, or as the client finds out by asking."""


class LocalRegistry:
    """A registry on this machine: `async with LocalRegistry("/srv/bentos") as registry`.

    Everything is kept in one place, and survives a restart: records, bytes, the token, and, in a directory, the key of
    the presigned URLs. One process at a time may use a directory; any number of them, on any number of machines, a
    bucket.

    Args:
        root: The directory, which is made where there is none, for nobody else to read; or an `S3Bucket`.
        transmission: Which way the bytes go. `"presigned_url"`: in parts, each to a URL of its own, so that a push can
            be resumed. `"proxy"`: through the registry. `"auto"` or None: the client is told nothing and asks for a
            URL to PUT the whole to.
        strategies: What holds for single repositories instead, by name.
        presign: Whether clients that ask for a URL get one. With False, and `transmission="auto"`, they fall back to
            `"proxy"`.
        host: Where to listen.
        port: Where to listen; 0 for any free port.
        api_token: What clients must send; None for one that is made once and kept in the directory or bucket.
        public_url: Where clients reach the registry, when a proxy in front of it changes that. None for wherever a
            request says it was sent, so that port forwarding just works.
        url_expiry: How long presigned URLs live, in seconds. An hour, as at Yatai. A bucket takes whole seconds,
            and seven days at most.
        min_part_size: How small a part of a multipart upload may be that is not the last, in bytes. S3's 5 MiB. A
            bucket has its own limit.
        max_put_size: How much one presigned PUT may bring, in bytes. S3's 5 GiB. A bucket has its own limit.
        grace: How long requests may go on after `close`, in seconds, before they are cut.
        access_log: Told of every request, without its query, since that may be a secret. None for nobody.

    Raises:
        ConfigError: An argument does not fit.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | S3Bucket,
        *,
        transmission: Transmission = "presigned_url",
        strategies: Mapping[str, Transmission] | None = None,
        presign: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        api_token: str | None = None,
        public_url: str | None = None,
        url_expiry: float = 3600.0,
        min_part_size: int = MIN_PART_SIZE,
        max_put_size: int = MAX_PUT_SIZE,
        grace: float = 5.0,
        access_log: logging.Logger | None = None,
    ) -> None:
        if api_token is not None and not (api_token.isascii() and api_token.isprintable() and api_token.strip()):
            raise ConfigError("the api_token must be printable ASCII, and not empty")
        if url_expiry <= 0:
            raise ConfigError("url_expiry must be more than 0 seconds")
        self._backend: Backend = (
            root
            if isinstance(root, S3Bucket)
            else Directory(Path(root), min_part_size=min_part_size, max_put_size=max_put_size)
        )
        self._transmission: TransmissionStrategy | None = _strategy(transmission)
        self._strategies: dict[str, TransmissionStrategy | None] = {
            name: _strategy(value) for name, value in (strategies or {}).items()
        }
        if not presign and "presigned_url" in {self._transmission, *self._strategies.values()}:
            raise ConfigError('transmission="presigned_url" needs presign=True')
        self._presign = presign
        self._host = host
        self._port = port
        self._given_token = None if api_token is None else SecretStr(api_token)
        self._public_url = public_url and check_endpoint(public_url)
        self._url_expiry = url_expiry
        self._grace = grace
        self._access_log = access_log
        self._running: _Running | None = None

    def __repr__(self) -> str:
        return f"LocalRegistry({str(self._backend)!r}, endpoint={self._running and self._running.endpoint!r})"

    @property
    def endpoint(self) -> str:
        """Where it listens, like `http://127.0.0.1:3000`; only while it runs."""
        return self._started.endpoint

    @property
    def api_token(self) -> str:
        """What clients must send; only while it runs."""
        return self._started.api_token

    @property
    def _started(self) -> _Running:
        if self._running is None:
            raise ConfigError("the registry is not running: `async with` it, or await its start()")
        return self._running

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the directory or bucket, and listen.

        Raises:
            ConfigError: It runs already, another process uses the directory or the port, or one of them, or the bucket,
                cannot be used.
        """
        if self._running is not None:
            raise ConfigError("the registry is running already")
        async with AsyncExitStack() as stack:
            given = None if self._given_token is None else self._given_token.get_secret_value()
            opening = self._backend.open(api_token=given, url_expiry=self._url_expiry)
            opened = await stack.enter_async_context(opening)
            api = Api(
                opened.records,
                opened.blobs,
                api_token=opened.api_token,
                strategy=self._strategy_of,
                presign=self._presign,
                public_url=self._public_url,
            )
            stack.push_async_callback(api.drained)
            port = await self._listen(stack, api.application(opened.routes))
            self._running = _Running(_endpoint(self._host, port), opened.api_token, stack.pop_all())

    async def close(self) -> None:
        """Stop listening, let the requests under way end, and close the directory or bucket."""
        running, self._running = self._running, None
        if running is not None:
            await running.stack.aclose()

    def _strategy_of(self, repository: str) -> TransmissionStrategy | None:
        return self._strategies.get(repository, self._transmission)

    async def _listen(self, stack: AsyncExitStack, app: web.Application) -> int:
        runner = web.AppRunner(
            app,
            access_log=self._access_log,
            access_log_class=PathLogger,
            # A gzip-encoded body is kept as it is, and one hop's worth of it read ahead.
            auto_decompress=False,
            read_bufsize=HOP // 2,
            # To aiohttp, no time is any time.
            shutdown_timeout=max(self._grace, 0.01),
        )
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._host}:{self._port}: {error.strerror or error}") from error
        port: int = runner.addresses[0][1]
        return port


@dataclass(frozen=True)
class _Running:
    """What there is while the registry runs."""

    endpoint: str
    api_token: str = field(repr=False)
    stack: AsyncExitStack


class PathLogger(AbstractAccessLogger):
    """A line per request: method, path, status, bytes, seconds. No query and no header, where the secrets are."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """See `AbstractAccessLogger`."""
        self.logger.info(
            "%s %s %d %d %.3f", request.method, request.rel_url.raw_path, response.status, response.body_length, time
        )


def _strategy(transmission: Transmission) -> TransmissionStrategy | None:
    if transmission is None or transmission == "auto":
        return None
    if transmission in ("presigned_url", "proxy"):
        return transmission
    raise ConfigError(f'transmission={transmission!r} must be "presigned_url", "proxy", "auto" or None')


def _endpoint(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    is_v6 = isinstance(address, ipaddress.IPv6Address)
    if address.is_unspecified:  # a place to listen, not one to go to
        address = ipaddress.ip_address("::1" if is_v6 else "127.0.0.1")
    return f"http://[{address}]:{port}" if is_v6 else f"http://{address}:{port}"
