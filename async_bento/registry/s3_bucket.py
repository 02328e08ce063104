"""The bucket of a registry, which holds the bytes.

    <prefix>registry.json                           the format version of this layout
    <prefix>blobs/<items>/<name>/<version>.tar      see `blobs/s3.py`; `<items>` is `bentos` or `models`

aiobotocore is imported when a bucket is opened, since the extra may not be installed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads
from async_bento._core.urls import check_endpoint
from async_bento.errors import ConfigError
from async_bento.registry.errors import RegistryError, UnsupportedByStorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento.registry.blobs.bucket import Bucket
    from async_bento.registry.blobs.s3 import S3Blobs
    from async_bento.registry.records.database import Database

_FORMAT = 2
"""Format 1 had the records in the bucket, too; see `records/bucket_records.py`."""

_MAX_URL_EXPIRY = 7 * 24 * 3600
"""SigV4's limit, in seconds."""

_SWEEP_INTERVAL = 3600.0
"""Seconds between searches for abandoned uploads."""

log = logging.getLogger(__package__)


class S3Bucket:
    """A bucket on S3 or a compatible server, in which a `LocalRegistry` keeps the bytes of bentos and models.

    Credentials and region come from the usual AWS sources: environment variables, `~/.aws`, or the role of the
    container or machine. The bucket must exist. Requires `pip install "async-bento[s3]"`.

    Example:
        ```python
        bucket = S3Bucket("my-bucket", endpoint="http://127.0.0.1:9000", prefix="team")
        async with LocalRegistry("/srv/bentos", bucket=bucket) as registry: ...
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
    async def open(self, database: Database, *, url_expiry: float) -> AsyncGenerator[S3Blobs]:
        """Open the bucket; `LocalRegistry.start` calls this.

        Args:
            database: The registry's database, into which the records of a bucket of format 1 are copied.
            url_expiry: The lifetime of presigned URLs in seconds.

        Yields:
            The blobs.

        Raises:
            ConfigError: aiobotocore or credentials are missing, or the bucket is inaccessible.
        """
        if url_expiry > _MAX_URL_EXPIRY:
            raise ConfigError(
                f"invalid url_expiry {url_expiry:g}: S3 signs URLs for at most {_MAX_URL_EXPIRY} seconds. Use less."
            )
        await _import_aiobotocore()
        from async_bento.registry.blobs.bucket import Bucket, connect
        from async_bento.registry.blobs.s3 import S3Blobs

        async with AsyncExitStack() as stack:
            client, presigning = await stack.enter_async_context(connect(self._endpoint, self._public_endpoint))
            bucket = Bucket(client, self._bucket, self._prefix)
            try:
                await bucket.check()
                await self._prepare(bucket, database)
            except RegistryError as error:
                raise ConfigError(f"cannot use {self}: {error.message}") from error
            blobs = S3Blobs(bucket, presigning, url_expiry=max(1, round(url_expiry)))
            sweeper = asyncio.create_task(_abort_abandoned_periodically(blobs))
            stack.push_async_callback(_cancel, sweeper)
            yield blobs

    async def _prepare(self, bucket: Bucket, database: Database) -> None:
        """Check the bucket's format; copy the records of format 1 and its token into the database."""
        stored = await bucket.read("registry.json")
        try:
            found = json.loads(stored)["format"] if stored else _FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"cannot use {self}: async-bento did not write its registry.json. Use another prefix."
            ) from error
        if found > _FORMAT:
            raise ConfigError(f"cannot use {self}: a newer async-bento wrote it (format {found}). Upgrade async-bento.")
        if found < _FORMAT:
            from async_bento.registry.records.bucket_records import copy_records

            log.info("copying the records of %s into the database", self)
            await copy_records(bucket, database)
        if stored is None or found < _FORMAT:
            await bucket.write("registry.json", json.dumps({"format": _FORMAT}).encode())


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
        except UnsupportedByStorageError as error:
            log.warning("abandoned uploads stay in the bucket: %s. Remove them by its own means.", error.message)
            return
        except RegistryError as error:
            log.warning("cannot abort abandoned uploads: %s", error.message)
        await asyncio.sleep(_SWEEP_INTERVAL)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
