"""The backend on an S3 bucket: records, blobs and token, for any number of copies of the registry.

    <prefix>registry.json                           the format version of this layout
    <prefix>api_token                               the token that clients must send
    <prefix>repositories/<items>/<name>.json        see `records/s3.py`; `<items>` is `bentos` or `models`
    <prefix>items/<items>/<name>/<version>.json
    <prefix>blobs/<items>/<name>/<version>.tar      see `blobs/s3.py`

aiobotocore is imported when a bucket is opened, since the extra may not be installed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads
from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.backend import OpenBackend, new_secret
from async_bento.registry.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento.registry.blobs.bucket import Bucket
    from async_bento.registry.blobs.s3 import S3Blobs

_FORMAT = 1

_MAX_URL_EXPIRY = 7 * 24 * 3600
"""SigV4's limit, in seconds."""

_SWEEP_INTERVAL = 3600.0
"""Seconds between searches for abandoned uploads."""

_PROBE_WRITERS = 4
"""Concurrent writers of the probe for conditional writes. In SeaweedFS 4.16, three of three won (its issue 8800)."""

log = logging.getLogger(__package__)


class S3Bucket:
    """A bucket on S3 or a compatible server, in which a `LocalRegistry` keeps its data.

    Any number of copies of the registry, on any number of machines, may share a bucket and prefix. Credentials and
    region come from the usual AWS sources: environment variables, `~/.aws`, or the role of the container or machine.
    The bucket must exist and honour conditional writes, which `LocalRegistry.start` verifies. Requires
    `pip install "async-bento[s3]"`.

    Example:
        ```python
        bucket = S3Bucket("my-bucket", endpoint="http://127.0.0.1:9000", prefix="team")
        async with LocalRegistry(bucket) as registry: ...
        ```

    Args:
        bucket: The name of the bucket.
        endpoint: The URL of the S3 server; None for AWS. With an endpoint, URLs name the bucket in their path instead
            of their host.
        public_endpoint: The URL of the S3 server as clients reach it, if it differs from `endpoint`; presigned URLs
            begin with it.
        prefix: The prefix of all keys, so that several registries may share a bucket; a slash is appended.

    Raises:
        ConfigError: The name is empty, or an endpoint is not a URL.
    """

    def __init__(
        self, bucket: str, *, endpoint: str | None = None, public_endpoint: str | None = None, prefix: str = ""
    ) -> None:
        if not bucket:
            raise ConfigError("invalid S3 bucket: its name is empty. Pass the name of an existing bucket.")
        self._bucket = bucket
        self._endpoint = endpoint and check_endpoint(endpoint)
        self._public_endpoint = public_endpoint and check_endpoint(public_endpoint)
        prefix = prefix.strip("/")
        self._prefix = prefix and f"{prefix}/"

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}" + (f" at {self._endpoint}" if self._endpoint else "")

    @asynccontextmanager
    async def open(self, *, api_token: str | None, url_expiry: float) -> AsyncGenerator[OpenBackend]:
        """Open the bucket; `LocalRegistry.start` calls this.

        Args:
            api_token: The token that clients must send; None for the one in the bucket, which is created if missing.
            url_expiry: The lifetime of presigned URLs in seconds.

        Yields:
            The records, the blobs and the token.

        Raises:
            ConfigError: aiobotocore or credentials are missing, or the bucket is inaccessible or does not honour
                conditional writes.
        """
        if url_expiry > _MAX_URL_EXPIRY:
            raise ConfigError(
                f"invalid url_expiry {url_expiry:g}: S3 signs URLs for at most {_MAX_URL_EXPIRY} seconds. Use less."
            )
        await _import_aiobotocore()
        from async_bento.registry.blobs.bucket import Bucket, connect
        from async_bento.registry.blobs.s3 import S3Blobs
        from async_bento.registry.records.s3 import S3Records

        async with AsyncExitStack() as stack:
            client, presigning = await stack.enter_async_context(connect(self._endpoint, self._public_endpoint))
            bucket = Bucket(client, self._bucket, self._prefix)
            try:
                await bucket.check()
                await self._check_format(bucket)
                await self._check_conditional_writes(bucket)
                if api_token is None:
                    api_token = await self._read_or_create_token(bucket)
            except RegistryError as error:
                raise ConfigError(f"cannot use {self}: {error.message}") from error
            blobs = S3Blobs(bucket, presigning, url_expiry=max(1, round(url_expiry)))
            sweeper = asyncio.create_task(_abort_abandoned_periodically(blobs))
            stack.push_async_callback(_cancel, sweeper)
            yield OpenBackend(S3Records(bucket), blobs, api_token)

    async def _read_or_create_token(self, bucket: Bucket) -> str:
        await bucket.create("api_token", new_secret().encode())  # fails if there is a token, or another copy is first
        stored = await bucket.read("api_token")
        token = stored.body.decode().strip() if stored else ""
        if not token:
            raise ConfigError(f"cannot use {self}: its object api_token is empty. Delete the object for a new token.")
        return token

    async def _check_format(self, bucket: Bucket) -> None:
        await bucket.create("registry.json", json.dumps({"format": _FORMAT}).encode())
        stored = await bucket.read("registry.json")
        try:
            found = json.loads(stored.body)["format"] if stored else 0
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"cannot use {self}: async-bento did not write its registry.json. Use another prefix."
            ) from error
        if found != _FORMAT:
            raise ConfigError(f"cannot use {self}: a newer async-bento wrote it (format {found}). Upgrade async-bento.")

    async def _check_conditional_writes(self, bucket: Bucket) -> None:
        """Reject a bucket that ignores write conditions: copies of the registry would lose each other's records."""
        key = f"probes/{secrets.token_hex(16)}"
        try:
            created = await asyncio.gather(*(bucket.create(key, b"%d" % number) for number in range(_PROBE_WRITERS)))
            stored = await bucket.read(key)
            etag = stored.etag if stored else ""
            replaced = await asyncio.gather(
                *(bucket.replace(key, b"again %d" % number, etag) for number in range(_PROBE_WRITERS))
            )
        finally:
            await bucket.delete(key)
        for condition, winners in (("If-None-Match: *", sum(created)), ("If-Match", sum(replaced))):
            if winners != 1:
                raise ConfigError(
                    f"cannot use {self}: the bucket does not honour conditional writes ({condition}: {winners} of "
                    f"{_PROBE_WRITERS} racing PUTs won instead of one), so copies of the registry would overwrite each "
                    "other's records. Use another S3 server or release."
                )


async def _import_aiobotocore() -> None:
    """Import aiobotocore in a thread, since it reads many files."""
    threads = Threads(1)
    try:
        await threads.run(import_module, "async_bento.registry.blobs.bucket")
    except ModuleNotFoundError as error:
        raise ConfigError(f'cannot use S3: {error}. Run: pip install "async-bento[s3]"') from error
    finally:
        threads.close()


async def _abort_abandoned_periodically(blobs: S3Blobs) -> None:
    while True:
        try:
            await blobs.abort_abandoned()
        except RegistryError as error:
            log.warning("cannot abort abandoned uploads: %s", error.message)
        await asyncio.sleep(_SWEEP_INTERVAL)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
