"""The registry as an HTTP server."""

from __future__ import annotations

import ipaddress
import logging
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import SecretStr

from async_bento._core.concurrency import open_portal
from async_bento._core.s3 import MAX_PUT_SIZE, MIN_PART_SIZE
from async_bento._core.urls import is_loopback
from async_bento.errors import ConfigError
from async_bento.registry.app import Api
from async_bento.registry.base_url import BaseUrl
from async_bento.registry.blobs.base import IO_CHUNK
from async_bento.registry.cleanup import Cleanup, running
from async_bento.registry.connections import accepting, close_server
from async_bento.registry.directory import TOKEN_FILE, check_token, read_or_create_token
from async_bento.registry.loading import load_backend, load_pages
from async_bento.registry.mirror.source import MirrorSource
from async_bento.registry.operation import AccessLogger
from async_bento.registry.retention import RetentionPolicy
from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.tls import TlsFiles
from async_bento.registry.tokens import Actor
from async_bento.registry.transmission import TransmissionPolicy

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.registry.records.retention import RetentionRecords
    from async_bento.registry.records.tokens import TokenRecords
    from async_bento.registry.transmission import Transmission


log = logging.getLogger(__package__)

_CANCEL_TIMEOUT = 0.01
"""Seconds that aiohttp waits for a request before it cancels it; `Operation.drain` has waited before."""


class LocalRegistry:
    """A registry that runs in this process, as a context manager or by `start` and `close`.

    `async with` runs it on the event loop of the caller, and `with` on an event loop in a thread of its own.

    Records, bytes and the token survive a restart. By default a directory holds all of them, which one process at a
    time may use. Any number of copies of the registry may share a PostgreSQL database and a bucket. Requires
    `pip install "async-bento[registry]"`.

    Example:
        ```python
        async with LocalRegistry("/srv/bentos") as registry:
            async with AsyncBentoAPI(endpoint=registry.endpoint, api_token=registry.api_token) as api:
                await api.push("iris_classifier:v1")
        ```

    Args:
        root: The directory, which is created for its owner only if it does not exist; None if `database` and `bucket`
            hold all.
        database: The URL of the PostgreSQL database that holds the records, such as
            `postgresql://user:password@host/bentos`; None for a SQLite file in the directory. Requires
            `pip install "async-bento[postgres]"`.
        bucket: The bucket that holds the bytes; None for files in the directory.
        transmission: How clients send and receive the bytes. `"presigned_url"`: in parts, each by a presigned URL, so
            that a push can be resumed. `"proxy"`: in one request through the registry. `"auto"` or None: the client
            requests one presigned URL for the whole tar.
        strategies: The transmission of single repositories, by name; they override `transmission`.
        presign: Whether clients get presigned URLs for the whole tar. With False and `transmission="auto"`, clients
            use `"proxy"` instead.
        host: The host name or IP address to listen on.
        port: The TCP port to listen on; 0 for any free port.
        api_token: A token for the role `admin`; None for the one in `token_file`. It replaces the one that was passed
            before. `async-bento registry token` creates further tokens, with a role and an expiry.
        token_file: The file that holds that token. A missing file is created for its owner only, with a random token.
            By default `api_token` in the directory. Without a directory, a registry that has tokens needs no file.
        public_url: The URL at which clients reach the registry, with the path if there is one, if a proxy in front
            changes the address. None for the address that each request was sent to, so that port forwarding works.
        forwarded_allow_ips: The IP addresses and networks of proxies, or `*` for all. From these addresses, the
            headers `X-Forwarded-Proto`, `-Host` and `-Prefix`, or `Forwarded`, name the URL at which clients reach the
            registry. `public_url` overrides them. `X-Forwarded-For` names the address of the client.
        tls_cert: A PEM file with the certificate of the host and its chain, to serve https; None for plain HTTP.
        tls_key: The PEM file of the private key; None if it is in the file of the certificate.
        url_expiry: The lifetime of presigned URLs in seconds; by default an hour, as in Yatai. A bucket rounds to whole
            seconds and allows seven days at most.
        min_part_size: The minimum size of every part but the last, in bytes; by default S3's 5 MiB. A bucket ignores
            this option and enforces its own limit.
        max_put_size: The maximum size of one presigned PUT, in bytes; by default S3's 5 GiB. A bucket ignores this
            option and enforces its own limit.
        min_free: The bytes that stay free on the disk: an upload that would use them is refused with 507, so that the
            database still has room. A bucket ignores this option.
        immutable: Whether versions whose upload succeeded keep their manifest and their bytes: forced pushes are
            refused. Labels and the description may change, and a version may be deleted.
        prune_keep: Delete old versions every hour: all but the newest complete ones of each repository, this many. None
            for no such condition. With `prune_older_than`, both conditions must allow the deletion.
        prune_older_than: Delete versions every hour that were neither registered nor pushed for this time, in seconds.
            None for no such condition. A model that a remaining bento names stays.
        upstream: The URL of another registry: this one is a mirror then, which answers pulls from its own directory,
            fetches what it lacks, and refuses pushes. The upstream's records answer as long as it is reachable. A
            mirror ignores `transmission`, `strategies` and `presign`.
        upstream_token: The API token for the upstream; clients of the mirror need the mirror's own token.
        mirror_size: The most bytes that a mirror keeps; it deletes what was pulled least recently. None for no limit.
        grace: How long `close` waits for running requests before it cancels them, in seconds.
        pages: Whether browsers get pages that show what the registry has, after a login with a token.
        access_log: A logger that gets a line per request, without queries and headers, which hold secrets. None
            disables the access log.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        database: str | None = None,
        bucket: S3Bucket | None = None,
        transmission: Transmission = "presigned_url",
        strategies: Mapping[str, Transmission] | None = None,
        presign: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        api_token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        public_url: str | None = None,
        forwarded_allow_ips: Iterable[str] = (),
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        url_expiry: float = 3600.0,
        min_part_size: int = MIN_PART_SIZE,
        max_put_size: int = MAX_PUT_SIZE,
        min_free: int = 0,
        immutable: bool = False,
        prune_keep: int | None = None,
        prune_older_than: float | None = None,
        upstream: str | None = None,
        upstream_token: str | SecretStr | None = None,
        mirror_size: int | None = None,
        grace: float = 5.0,
        pages: bool = True,
        access_log: logging.Logger | None = None,
    ) -> None:
        if api_token is not None:
            check_token(api_token, "api_token")
            if token_file is not None:
                raise ConfigError("api_token and token_file contradict each other. Pass one of them.")
        if url_expiry <= 0:
            raise ConfigError(f"invalid url_expiry {url_expiry:g}: it is not above 0 seconds. Use more.")
        if isinstance(root, S3Bucket):
            raise ConfigError("a bucket holds no records. Pass it as bucket=, together with a directory or database=.")
        if root is None and (database is None or bucket is None):
            raise ConfigError("the registry has no directory. Pass one, or both database= and bucket=.")
        self._root = None if root is None else Path(root)
        self._database = None if database is None else SecretStr(database)
        self._bucket = bucket
        self._min_part_size = min_part_size
        self._max_put_size = max_put_size
        self._transmission = TransmissionPolicy(transmission, strategies, presign=presign)
        self._host = host
        self._port = port
        self._given_token = None if api_token is None else SecretStr(api_token)
        self._token_file = None if token_file is None else Path(token_file)
        self._base_url = BaseUrl(public_url, forwarded_allow_ips)
        self._tls = TlsFiles.of(tls_cert, tls_key)
        self._url_expiry = url_expiry
        self._min_free = min_free
        self._immutable = immutable
        self._policy: RetentionPolicy | None = None
        if prune_keep is not None or prune_older_than is not None:
            self._policy = RetentionPolicy(prune_keep, prune_older_than)
        self._source = MirrorSource.of(upstream, upstream_token, mirror_size)
        if self._source is not None:
            self._transmission = TransmissionPolicy("proxy", presign=False)
            if bucket is not None:
                raise ConfigError("a mirror keeps its bytes in a directory. Leave out the bucket (`--s3`).")
            if immutable:
                raise ConfigError("a mirror has no versions of its own. Leave out immutable (`--immutable`).")
        self._grace = grace
        self._has_pages = pages
        self._access_log = access_log
        self._running: _Running | None = None
        self._thread: ExitStack

    def __repr__(self) -> str:
        place = self._bucket if self._root is None else self._root
        return f"LocalRegistry({str(place)!r}, endpoint={self._running and self._running.endpoint!r})"

    @property
    def endpoint(self) -> str:
        """The URL of the registry, such as `http://127.0.0.1:3000`.

        Raises:
            ConfigError: The registry is not running.
        """
        return self._started.endpoint

    @property
    def public_url(self) -> str:
        """The URL at which clients reach the registry: the argument of that name, or else the endpoint.

        Raises:
            ConfigError: The registry is not running.
        """
        return self._base_url.public_url or self._started.endpoint

    @property
    def api_token(self) -> str:
        """The token of the role `admin` that the registry was started with.

        Raises:
            ConfigError: The registry is not running, or was started without a token.
        """
        if self._started.api_token is None:
            raise ConfigError(
                "the registry was started without a token, and the database has digests only. Pass api_token or "
                "token_file."
            )
        return self._started.api_token

    @property
    def token_file(self) -> Path | None:
        """The file that holds that token; None if the registry uses no file."""
        if self._given_token is not None:
            return None
        return self._token_file or (None if self._root is None else self._root / TOKEN_FILE)

    @property
    def has_new_token(self) -> bool:
        """Whether this start has created the token.

        Raises:
            ConfigError: The registry is not running.
        """
        return self._started.has_new_token

    @property
    def _started(self) -> _Running:
        if self._running is None:
            raise ConfigError("the registry is not running. Use `with` or `async with`, or await its start() first.")
        return self._running

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(open_portal("bento-registry"))
            portal.call(self.start)
            stack.callback(portal.call, self.close)
            self._thread = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the directory or bucket, and start to listen.

        Raises:
            ConfigError: The registry is already running, another process uses the directory or the port, or the
                directory, bucket or address is unusable.
        """
        if self._running is not None:
            raise ConfigError("cannot start the registry: it is already running")
        async with AsyncExitStack() as stack:
            backend = await load_backend(
                root=self._root,
                database=None if self._database is None else self._database.get_secret_value(),
                bucket=self._bucket,
                min_part_size=self._min_part_size,
                max_put_size=self._max_put_size,
                min_free=self._min_free,
                immutable=self._immutable,
            )
            opened = await stack.enter_async_context(backend.open(url_expiry=self._url_expiry, policy=self._policy))
            api_token, has_new_token = await self._set_first_token(opened.tokens)
            await stack.enter_async_context(running(opened.cleanup))
            mirror = None
            if self._source is not None:
                mirror = await stack.enter_async_context(await self._source.open(opened))
            pages = await load_pages() if self._has_pages else None
            api = Api(opened, self._transmission, self._base_url, mirror, pages)
            # Exits run in reverse: accept no more, drain, close the connections, wait for the handlers, and only then
            # close the mirror and the storage that they use.
            stack.push_async_callback(api.operation.wait_for_handlers)
            port = await self._listen(stack, api)
            endpoint = _endpoint(self._host, port, is_tls=self._tls is not None)
            if self._source is not None and self._source.url in {endpoint, self._base_url.public_url}:
                raise ConfigError("a mirror cannot be its own upstream. Pass the URL of another registry.")
            if self._is_exposed():
                log.warning(
                    "others can read tokens and bytes on the way: %s:%d is plain HTTP. Pass tls_cert, or run a proxy "
                    "with TLS and pass public_url.",
                    self._host,
                    port,
                )
            self._running = _Running(
                endpoint,
                api_token,
                has_new_token,
                opened.cleanup,
                opened.retention,
                stack.pop_all(),
            )

    async def close(self) -> None:
        """Stop listening, wait up to `grace` seconds for running requests, and close the directory or bucket."""
        running, self._running = self._running, None
        if running is not None:
            await running.stack.aclose()

    async def _set_first_token(self, tokens: TokenRecords) -> tuple[str | None, bool]:
        """Make the token that was passed, or that of the file, valid; return it, and whether it is new."""
        is_new = False
        if self._given_token is not None:
            token = self._given_token.get_secret_value()
        elif self.token_file is not None:
            token, is_new = await read_or_create_token(self.token_file)
        elif await tokens.has_any():
            return None, False
        else:
            raise ConfigError(
                "the registry has no token yet. Pass --token-file (token_file= in Python): the file gets the first one."
            )
        if not await tokens.set_first(token, by=Actor("registry")):
            log.warning("the token in %s was revoked or has expired. Write another one into the file.", self.token_file)
        return token, is_new

    def _is_exposed(self) -> bool:
        """Whether other machines reach the registry by plain HTTP, as far as it knows."""
        return self._tls is None and not self._base_url.is_behind_proxy and not is_loopback(self._host)

    async def _listen(self, stack: AsyncExitStack, api: Api) -> int:
        tls = None if self._tls is None else await self._tls.load()
        options: dict[str, object] = {
            "access_log": self._access_log,
            "access_log_class": AccessLogger,
            # A gzip-encoded body is stored unchanged.
            "auto_decompress": False,
            # A rejected body is not read.
            "lingering_time": 0,
            # aiohttp reads ahead up to twice this size.
            "read_bufsize": IO_CHUNK // 2,
        }
        runner = web.AppRunner(api.application(), shutdown_timeout=_CANCEL_TIMEOUT)
        stack.push_async_callback(close_server, runner)
        stack.push_async_callback(api.operation.drain, self._grace)
        await runner.setup()
        try:
            return await stack.enter_async_context(accepting(runner, (self._host, self._port), tls, options))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}. Check the host and the port."
            ) from error


@dataclass(frozen=True)
class _Running:
    """The state of a running registry."""

    endpoint: str
    api_token: str | None = field(repr=False)
    has_new_token: bool
    cleanup: Cleanup
    retention: RetentionRecords
    stack: AsyncExitStack


def _endpoint(host: str, port: int, *, is_tls: bool = False) -> str:
    scheme = "https" if is_tls else "http"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{scheme}://{host}:{port}"
    is_v6 = isinstance(address, ipaddress.IPv6Address)
    if address.is_unspecified:  # clients cannot connect to it
        address = ipaddress.ip_address("::1" if is_v6 else "127.0.0.1")
    return f"{scheme}://[{address}]:{port}" if is_v6 else f"{scheme}://{address}:{port}"
